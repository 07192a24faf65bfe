"""Networks and sampling on a pretended CUDA device: the CPU's results, and nothing waited for.

`fake_cuda` says what that device refuses: a tensor that is made or left on the CPU fails here. The
other test_fake_cuda_*.py do the same for training, and for codecs, images and scripts.
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import small_nets
import torch
from conftest import LEVELS, make_schedule
from fake_cuda import (
    AUTOCAST,
    CPU,
    CUDA,
    CudaTensor,
    FakeCuda,
    MixedDevicesError,
    assert_same,
    fake_cuda,
    on_the_cpu,
    values,
)
from torch import Tensor, nn

from sundae.codec.interface import Codec, PixelCodec
from sundae.common.compiling import Compiled
from sundae.common.precision import Precision
from sundae.config.run_file import RunConfig
from sundae.config.sections import SamplingConfig
from sundae.editing.sampler import Sampler
from sundae.prior.categorical import draw_seeds
from sundae.prior.network import build_network
from sundae.sampling.loop import Refinement, sample
from sundae.sampling.sampler import BaseSampler, sample_seeds
from sundae.sampling.strategies import STRATEGIES

Config = Callable[..., RunConfig]
EVERY_STRATEGY = pytest.mark.parametrize("strategy", STRATEGIES)


# -- the device itself ----------------------------------------------------------------------------


def x(*shape: int) -> Tensor:
    return torch.ones(shape, device=CUDA)


MIXED: dict[str, Callable[[], Any]] = {
    "a sum": lambda: x(3) + torch.ones(3),
    "a product of matrices": lambda: x(3, 3) @ torch.ones(3, 3),
    "in place": lambda: x(3).add_(torch.ones(3)),
    "in place, on the CPU": lambda: torch.ones(3).add_(x(3)),
    "a choice": lambda: torch.where(torch.ones(3) > 0, x(3), x(3)),
    "a list": lambda: torch.cat((x(3), torch.ones(3))),
    "scattered": lambda: x(3).scatter(0, torch.tensor([0], device=CUDA), torch.ones(1)),
    "gathered by places on the CPU": lambda: x(3).gather(0, torch.tensor([0])),
    "a module": lambda: nn.Linear(3, 3)(x(3)),
    "a module's buffer": lambda: nn.BatchNorm1d(3, affine=False).eval()(x(3, 3)),
}
# What torch lets pass, but a GPU is waited for.
LAX: dict[str, Callable[[], Any]] = {
    "a number in a tensor": lambda: x(3) + torch.ones(()),
    "places on the CPU": lambda: x(3)[torch.tensor([0])],
}


@pytest.mark.parametrize("mix", [*MIXED, *LAX])
def test_mixed_devices_are_refused(mix: str, cuda: FakeCuda) -> None:
    with pytest.raises(MixedDevicesError):
        (MIXED | LAX)[mix]()


def test_torch_itself_refuses_them() -> None:
    """In one test, because the import behind its mode takes seconds."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        for mix in MIXED.values():
            with pytest.raises(Exception, match=r"[Dd]evice"):
                mix()


def test_a_generator_of_the_other_device_is_refused(cuda: FakeCuda) -> None:
    there, here = torch.Generator("cuda").manual_seed(3), torch.Generator().manual_seed(3)
    assert there.device == torch.device("cuda", 0) and here.device == CPU
    assert_same(lambda d: torch.rand(4, generator=torch.Generator(d).manual_seed(3), device=d))
    for generator, device in ((there, CPU), (here, CUDA)):
        with pytest.raises(MixedDevicesError, match="generator"):
            torch.rand(4, generator=generator, device=device)


@pytest.mark.parametrize(
    "question",
    [
        *(Tensor.item, bool, CudaTensor.tolist, Tensor.cpu, Tensor.nonzero, Tensor.unique),
        *(lambda t: t.to("cpu", torch.int64), lambda t: t[t > 0], lambda t: t[[0]]),
        *(lambda t: t.new_tensor([1.0]), lambda t: torch.tensor([1.0], device=t.device)),
        *(lambda t: t.copy_(torch.ones(1)), lambda t: torch.ones(1).to(t.device)),
        *(lambda t: torch.ones(1).to(t.device, non_blocking=True), lambda t: torch.equal(t, t)),
    ],
)
def test_what_the_host_waits_for_is_noted(
    question: Callable[[Tensor], Any], cuda: FakeCuda
) -> None:
    tensor = x(1)
    assert not cuda.waits
    question(tensor)
    assert len(cuda.waits) == 1


def test_what_has_not_arrived_is_not_read(cuda: FakeCuda) -> None:
    """A copy to pinned memory that nobody waits for has arrived when its event has."""
    copied = torch.empty((), pin_memory=True).copy_(x(), non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.synchronize()  # it was never recorded
    with pytest.raises(RuntimeError, match="not arrived"):
        float(copied)
    arrived.record()
    x().add_(1)
    arrived.synchronize()
    assert float(copied) == 1 and not cuda.waits
    arrived.record()
    arrived.synchronize()
    assert cuda.waits == ["synchronize"]


def test_moving_to_where_a_tensor_is_changes_nothing(cuda: FakeCuda) -> None:
    tensor, net = x(3), nn.Linear(3, 3)
    weight = net.weight
    assert tensor.to("cuda") is tensor and tensor.to(tensor.device, torch.float32) is tensor
    assert net.to("cuda").weight is weight and isinstance(weight, CudaTensor)
    assert isinstance(copy.deepcopy(net).weight, nn.Parameter)


# -- the network ----------------------------------------------------------------------------------

NETWORKS: dict[str, dict[str, Any]] = {
    "hourglass": {},
    "plain": {"depth": 2},
    "two levels": {"depth": (1, (1, 1, 1), 1), "dims": (8, 8, 16)},
    "no classes": {"num_classes": 0},
    "learned positions": {"use_rotary": False},
    "mean and repeat": {"resampling": "average"},
    "no attention across": {"attn_resampling": False},
    "windows": {"depth": (2, 1, 2), "window": (4, 0)},
    "windows, positions": {"depth": (2, 1, 2), "window": (4, 2), "use_rotary": False},
    "gates": {"use_scalenorm": True, "use_glu": True},
}
EVERY_NETWORK = pytest.mark.parametrize("network", NETWORKS)


class Network:
    """A network with its inputs, for either device."""

    def __init__(self, name: str) -> None:
        changes = {"num_classes": 3} | NETWORKS[name]
        self.net = small_nets.network(vocab_size=11, grid=(8, 8), **changes)
        nn.init.normal_(self.net.to_logits.weight)
        self.tokens = torch.randint(11, (2, 64))
        self.classes = torch.tensor([0, 2]) if self.net.class_embedding else None
        self.positions = torch.randint(64, (2, 5))

    def on(self, device: torch.device) -> tuple[nn.Module, Tensor, Tensor | None, Tensor]:
        classes = None if self.classes is None else self.classes.to(device)
        net = copy.deepcopy(self.net).to(device)
        return net, self.tokens.to(device), classes, self.positions.to(device)


@EVERY_NETWORK
@pytest.mark.parametrize("head", [True, False], ids=["logits", "features"])
def test_a_network_looks_forward(network: str, head: bool, cuda: FakeCuda) -> None:
    made = Network(network)

    def outputs(device: torch.device) -> tuple[Tensor, Tensor]:
        net, tokens, classes, positions = made.on(device)
        cuda.waits.clear()
        found = net(tokens, classes, head=head), net(tokens, classes, positions, head=head)
        assert not cuda.waits
        return found

    assert_same(outputs)


@EVERY_NETWORK
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
def test_a_network_learns(network: str, checkpointing: bool, cuda: FakeCuda) -> None:
    made = Network(network)
    made.net.set_gradient_checkpointing(checkpointing)

    def gradients(device: torch.device) -> list[Tensor | None]:
        net, tokens, classes, positions = made.on(device)
        cuda.waits.clear()
        net(tokens, classes, positions).square().mean().backward()
        assert not cuda.waits
        return [parameter.grad for parameter in net.parameters()]

    assert_same(gradients)


@EVERY_NETWORK
def test_a_network_looks_forward_in_bfloat16(network: str) -> None:
    made = Network(network)
    with fake_cuda(AUTOCAST), torch.no_grad():

        def logits(device: torch.device) -> Tensor:
            net, *inputs = made.on(device)
            with torch.autocast("cuda", torch.bfloat16):
                return net(*inputs)

        found, expected = values(logits(CUDA)), logits(CPU)
    assert found.dtype == torch.bfloat16 and expected.dtype == torch.float32
    torch.testing.assert_close(found.float(), expected, atol=0.3, rtol=0.1)


def test_a_table_that_stays_behind_is_noticed(cuda: FakeCuda) -> None:
    net, *inputs = Network("hourglass").on(CUDA)
    net.stage.tables.cos_0 = net.stage.tables.cos_0.cpu()
    with pytest.raises(MixedDevicesError):
        net(*inputs)


# -- sampling -------------------------------------------------------------------------------------

ROWS = 6
SAMPLINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "guidance": {"guidance": 2.5},
    "fading guidance": {"guidance": 1.0, "end_guidance": 3.0},
    "top-k": {"top_k": 2},
    "top-p": {"top_p": 0.8},
    "cold": {"temperature": 0.0, "end_temperature": 0.0},
    "cooling": {"end_temperature": 0.0},
    "nothing at last": {"end_sample_proportion": 0.0},
}


class Direct(Compiled):
    """Rounds as what is compiled does, and compiles nothing."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.works = False


def sampler_on(
    device: torch.device,
    config: Config,
    *,
    precision: Precision = "fp32",
    codec: Codec | None = None,
    **options: Any,
) -> Sampler:
    """Always the same network."""
    changes = {"net.class_dropout": 0.1, "net.type": "transformer", "net.depth": 1}
    codec = codec or PixelCodec(LEVELS)
    cfg = config(changes | {"data.vocab_size": codec.codebook_size})
    torch.manual_seed(0)
    net = build_network(cfg)
    nn.init.normal_(net.to_logits.weight)
    return Sampler(net.to(device), codec, cfg, device=device, precision=precision, **options)


def schedule_for(strategy: Any, **changes: Any) -> SamplingConfig:
    basic = {"steps": 4, "sample_proportion": 0.7, "end_sample_proportion": 0.4}
    basic |= {"early_stop": False, "choice_temperature": 2.0}
    return make_schedule(**basic | {"strategy": strategy} | changes)


def refined(
    cuda: FakeCuda, sampler: BaseSampler, schedule: SamplingConfig, **options: Any
) -> list[Tensor]:
    """The tokens after each step, none of which has waited for the device."""
    rows = (sample_seeds(0, ROWS), sampler.class_rows(None, ROWS), schedule)
    running = sampler.refine_tokens(*rows, **options)
    states = [next(running)]
    cuda.waits.clear()
    states += running
    assert not cuda.waits
    return [state.tokens for state in states]


@EVERY_STRATEGY
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_steps_give_the_same_samples_and_ask_the_device_nothing(
    strategy: str, sampling: str, config: Config, cuda: FakeCuda
) -> None:
    schedule = schedule_for(strategy, **SAMPLINGS[sampling])
    assert_same(lambda device: refined(cuda, sampler_on(device, config), schedule))


@EVERY_STRATEGY
def test_frozen_tokens_and_canvases_and_rounded_counts_likewise(
    strategy: str, config: Config, cuda: FakeCuda
) -> None:
    schedule = schedule_for(strategy, guidance=2.0)

    def frozen(device: torch.device) -> list[Tensor]:
        tokens = torch.arange(16).remainder(LEVELS).view(4, 4).repeat(ROWS, 1, 1)
        some = torch.arange(ROWS * 16).view(ROWS, 4, 4) % 3 == 0
        sampler = sampler_on(device, config)
        return refined(cuda, sampler, schedule, tokens=tokens, frozen=some)

    def canvas(device: torch.device) -> list[Tensor]:
        return refined(cuda, sampler_on(device, config), schedule, canvas=(6, 5))

    def rounded(device: torch.device) -> list[Tensor]:
        sampler = sampler_on(device, config)
        sampler.compiled = Direct(device)
        return refined(cuda, sampler, schedule)

    for compute in (frozen, canvas, rounded):
        assert_same(compute)


@pytest.mark.parametrize("canvas", [(4, 4), (6, 5)], ids=["grid", "canvas"])
def test_samples_in_bfloat16(canvas: tuple[int, int], config: Config) -> None:
    """By weights that are bfloat16 already, or by those that autocast rounds: the same tokens."""
    schedule = schedule_for("confidence", guidance=2.0, top_k=3)
    with fake_cuda(AUTOCAST) as cuda:
        samplers = [
            sampler_on(CUDA, config, precision="bf16", owns_network=owns) for owns in (True, False)
        ]
        assert samplers[0].network.to_logits.weight.dtype == torch.bfloat16  # type: ignore
        one, other = (values(refined(cuda, s, schedule, canvas=canvas)) for s in samplers)
    torch.testing.assert_close(one, other)


def climbing(tokens: Tensor, classes: Tensor | None) -> Tensor:
    """Sure that every token is one level above what it is, until the highest."""
    higher = (tokens + 1).clamp(max=LEVELS - 1)
    return 50.0 * (higher[..., None] == torch.arange(LEVELS, device=tokens.device)).float()


@EVERY_STRATEGY
def test_samples_leave_early_and_the_device_is_not_waited_for(
    strategy: str, cuda: FakeCuda
) -> None:
    """The higher a sample starts, the sooner it is done."""
    sizes: list[int] = []

    def watched(tokens: Tensor, classes: Tensor | None) -> Tensor:
        sizes.append(len(tokens))
        return climbing(tokens, classes)

    def states(device: torch.device) -> list[Refinement]:
        running = sample(
            watched,
            seeds=draw_seeds(20, torch.Generator().manual_seed(0)).to(device),
            length=16,
            vocab_size=LEVELS,
            schedule=schedule_for(strategy, steps=40, early_stop=True),
            tokens=(torch.arange(20, device=device) // 2)
            .clamp(max=LEVELS - 1)[:, None]
            .repeat(1, 16),
            grid=(4, 4),
        )
        first = next(running)
        cuda.waits.clear()
        found = [first, *running]
        assert not cuda.waits
        return found

    there = states(CUDA)
    if strategy == "posterior":  # its tokens change until the end
        assert set(sizes) == {20}
    else:
        assert len(set(sizes)) > 1 and (there[-1].num_running == 0 or strategy == "renoise")
    with on_the_cpu():
        here = states(CPU)
    here += here[-1:] * (len(there) - len(here))  # a GPU is told later that all are done
    for found, expected in zip(there, here, strict=True):
        torch.testing.assert_close(values(found.tokens), expected.tokens)
        assert found.num_running >= expected.num_running


def test_a_layout_that_stays_behind_is_noticed(
    config: Config, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    halton = STRATEGIES["halton"]
    layout = halton.layout((4, 4), CPU)
    monkeypatch.setattr(halton, "layout", lambda grid, device: layout)
    with pytest.raises(MixedDevicesError):
        refined(cuda, sampler_on(CUDA, config), schedule_for("halton"))
