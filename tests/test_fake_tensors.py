"""Network, sampling steps, objective and codec under torch's own FakeTensorMode, on "cuda".

Its tensors have a shape, a type and a device, and no values: a tensor left on the CPU fails as it
would on a GPU. Without a driver there are no generators, no autocast and no backward passes;
`test_fake_cuda.py` has a device of our own for these, and for what looks at values.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import small_nets
import torch
from conftest import make_schedule
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from hourglass_transformer import HourglassTransformer
from sundae.codec.vqgan.architecture import Architecture, Stack
from sundae.codec.vqgan.backbone import VQGAN
from sundae.codec.vqgan.codec import Rules, VQGANCodec
from sundae.config.sections import SamplingConfig
from sundae.prior.objective import unroll
from sundae.sampling import strategies
from sundae.sampling.canvas import windowed
from sundae.sampling.loop import _advance, _Network, _StepTable
from sundae.sampling.state import SampleState

GRID, CODES, CLASSES, BATCH = (4, 4), 16, 3, 2
LENGTH = GRID[0] * GRID[1]
NETWORKS: dict[str, dict[str, Any]] = {
    "hourglass": {},
    "plain transformer": {"depth": 2},
    "two levels": {"depth": (1, (1, 1, 1), 1), "shorten_factor": (4, 4)},
    "learned positions": {"use_rotary": False},
    "averages": {"resampling": "average"},
    "no attention across levels": {"attn_resampling": False},
    "windows": {"grid": (8, 8), "depth": (2, 1, 2), "window": (4, 0)},
    "scale norm and gates": {"use_scalenorm": True, "use_glu": True},
}


class CudaGenerator(torch.Generator):
    """Says that it is on CUDA."""

    device = torch.device("cuda")


class WithoutGenerators(TorchFunctionMode):
    """Draws, which have no values here, from no generator."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **{k: v for k, v in (kwargs or {}).items() if k != "generator"})


@pytest.fixture
def fake() -> Iterator[FakeTensorMode]:
    with FakeTensorMode() as mode, WithoutGenerators():
        yield mode


def network(**changes: Any) -> HourglassTransformer:
    values = {"num_classes": CLASSES, "class_dropout": 0.1}
    with torch.device("cuda"):
        return small_nets.network(vocab_size=CODES, **{"grid": GRID} | values | changes)


def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.zeros(shape, dtype=dtype, device="cuda")


def on_cuda(value: Any) -> Any:
    """Nested tuples of tensors -> the same shapes and types on the pretended device."""
    if isinstance(value, Tensor):
        return torch.empty(value.shape, dtype=value.dtype, device="cuda")
    if isinstance(value, tuple):
        made = [on_cuda(part) for part in value]
        return type(value)(*made) if hasattr(value, "_fields") else tuple(made)
    return value


@pytest.mark.parametrize("changes", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("count", [None, 5])
def test_forward_pass(changes: dict[str, Any], count: int | None, fake: FakeTensorMode) -> None:
    net = network(**changes)
    length = net.grid[0] * net.grid[1]
    positions = None if count is None else zeros(BATCH, count)
    with torch.no_grad():
        logits = net(zeros(BATCH, length), zeros(BATCH), positions)
    assert logits.device.type == "cuda" and logits.shape == (BATCH, count or length, CODES)


def test_a_tensor_that_was_left_on_the_cpu_fails(fake: FakeTensorMode) -> None:
    net = network(use_rotary=False)
    net.position = nn.Parameter(torch.zeros(LENGTH, 16))
    with pytest.raises(RuntimeError, match="found two different devices|same device"):
        net(zeros(BATCH, LENGTH), zeros(BATCH))
    strategy = strategies.STRATEGIES["random"]
    with pytest.raises(RuntimeError, match="found two different devices|same device"):
        advance(strategy, make_schedule(4), cpu=("counts",))


def advance(
    strategy: strategies.Strategy, schedule: SamplingConfig, cpu: tuple[str, ...] = ()
) -> tuple[Tensor, ...]:
    """A step of a network on the device; `cpu` names parts of the context that are not there."""
    with torch._subclasses.fake_tensor.unset_fake_temporarily():  # a table is made of numbers
        free = torch.full((BATCH,), LENGTH)
        seeds = torch.arange(BATCH)
        table = _StepTable.of(schedule, GRID, free, torch.device("cpu"), rounded=True)
        start = torch.zeros(BATCH, LENGTH, dtype=torch.int64)
        state = SampleState.initial(start, seeds, torch.zeros(BATCH, dtype=torch.int64), None)
        context, signature = table.context(state, 0), table.signatures[0]
    moved = on_cuda(context)
    moved = moved._replace(
        **{name: torch.empty(getattr(context, name).shape).long() for name in cpu}
    )
    assert signature is not None
    net = network()
    with torch.no_grad():
        return _advance(_Network(net, net, CLASSES), strategy, signature, moved)


SCHEDULES = {
    "plain": {},
    "argmax": {"temperature": 0.0, "end_temperature": 0.0},
    "guided": {"guidance": 3.0, "end_guidance": 2.0},
    "top-k and top-p": {"top_k": 4, "top_p": 0.9},
    "all tokens": {"sample_proportion": 1.0, "end_sample_proportion": 1.0},
}


@pytest.mark.parametrize("name", strategies.STRATEGIES)
@pytest.mark.parametrize("changes", SCHEDULES.values(), ids=SCHEDULES)
def test_sampling_step(name: Any, changes: dict[str, Any], fake: FakeTensorMode) -> None:
    schedule = make_schedule(4, strategy=name, **changes)
    tokens, resampled, converged, num_resampled, done = advance(
        strategies.STRATEGIES[name], schedule
    )
    for part in (tokens, resampled, converged, num_resampled, done):
        assert part.device.type == "cuda" and part.shape[0] == BATCH
    assert tokens.shape == (BATCH, LENGTH)


def test_layout_of_a_grid_is_on_the_given_device(fake: FakeTensorMode) -> None:
    strategies.halton_order.cache_clear()
    layout = strategies.STRATEGIES["halton"].layout(GRID, torch.device("cuda"))
    strategies.halton_order.cache_clear()
    assert layout is not None and layout.device.type == "cuda"


def test_canvas(fake: FakeTensorMode) -> None:
    denoise = windowed(network(), GRID, (6, 7), at_once=3)
    with torch.no_grad():
        logits = denoise(zeros(BATCH, 42), zeros(BATCH))
    assert logits.device.type == "cuda" and logits.shape == (BATCH, 42, CODES)


@pytest.mark.parametrize("with_head", [True, False])
def test_objective(with_head: bool, fake: FakeTensorMode) -> None:
    net, classes = network(), zeros(BATCH)
    head = net.to_logits if with_head else None
    steps = unroll(
        lambda tokens: net(tokens, classes, head=head is None),
        zeros(BATCH, LENGTH),
        unroll_steps=3,
        vocab_size=CODES,
        generator=CudaGenerator(),
        head=head,
    )
    with torch.no_grad():
        found = list(steps)
    assert len(found) == 3
    assert all(value.device.type == "cuda" for step in found for value in step[:2])


@pytest.mark.parametrize("distance", ["l2", "cosine", "dot", "gumbel"])
def test_codec(distance: str, fake: FakeTensorMode, monkeypatch: pytest.MonkeyPatch) -> None:
    # Whether numbers are in range depends on values, which do not exist.
    monkeypatch.setattr(VQGANCodec, "_check_images", lambda *_: None)
    monkeypatch.setattr(VQGANCodec, "_check_tokens", lambda *_: None)
    monkeypatch.setattr(VQGAN, "to", lambda model, **_: model)  # fake weights keep their strides
    monkeypatch.setattr(torch, "isfinite", lambda _: SimpleNamespace(all=lambda: True))
    stack = Stack(widths=(32, 32), blocks=(1, 1), attention=(False, True))
    arch = Architecture(stack, stack, 32, 16, 16, 8, CODES, gumbel=distance == "gumbel")
    with torch.device("cuda"):
        model = VQGAN(arch, distance)
    codec = VQGANCodec(model, Rules(distance=distance, input_range="signed"), precision="fp32")
    tokens = codec.encode(torch.zeros(BATCH, 3, 8, 8))  # images may come from the CPU
    assert tokens.device.type == "cuda" and tokens.shape == (BATCH, 4, 4)
    images = codec.decode(torch.zeros(BATCH, 4, 4, dtype=torch.int64))
    assert images.device.type == "cuda" and images.shape == (BATCH, 3, 8, 8)
