"""What a run file costs: parameters, arithmetic and memory, counted without weights or data.

Arithmetic is counted by torch on the meta device. Memory is counted by running one forward and
backward pass on tensors that have shapes and types but no contents (`FakeTensorMode`), and adding
up what is alive at every moment; so a change of the network changes the count by itself.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measuring import flop_of
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hourglass_transformer import HourglassTransformer
from sundae.codec.vqgan import new_vqgan
from sundae.codec.vqgan.architecture import Architecture
from sundae.codec.vqgan.backbone import VQGAN
from sundae.common.errors import UserError
from sundae.config.run_file import RunConfig
from sundae.prior.network import build_network
from sundae.sampling.strategies import STRATEGIES

# The loss takes logits a few rows at a time and sampling draws so: this much stands at once at most
# in training, whatever the batch.
LOGITS_BYTES = 256 * 2**20

# Numbers a parameter that an optimiser keeps, in float32.
_MOMENTS = {"adam": 2, "adamw": 2, "adamax": 2, "rmsprop": 1, "sgd": 0}

# Batches at which memory is counted: the peak of a small one lies elsewhere than of a large one.
_SMALL, _LARGE = (4, 8), (128, 256)


@dataclass(frozen=True)
class Growth:
    """Bytes that grow with the batch: the larger of a few straight lines (fixed, per sample)."""

    lines: tuple[tuple[float, float], ...]

    def at(self, batch: int) -> float:
        """Bytes at a batch of at least 1."""
        return max(fixed + batch * slope for fixed, slope in self.lines)

    @property
    def per_sample(self) -> float:
        """Bytes of one more sample in a large batch."""
        return max(slope for _, slope in self.lines)

    def largest(self, room: float) -> int:
        """The largest batch that stays within `room` bytes; 0 where not even one sample does."""
        return max(0, math.floor(min((room - fixed) / slope for fixed, slope in self.lines)))

    def __add__(self, more: float) -> Growth:
        return Growth(tuple((fixed + more, slope) for fixed, slope in self.lines))


def growth_of(bytes_at: Callable[[int], float]) -> Growth:
    """What a count at a few batches says of all of them.

    A peak is the largest of many moments, each linear in the batch; two lines, through small and
    through large batches, meet it where it matters.
    """
    lines = []
    for low, high in (_SMALL, _LARGE):
        less, more = bytes_at(low), bytes_at(high)
        slope = (more - less) / (high - low)
        lines.append((less - low * slope, slope))
    return Growth(tuple(lines))


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors made inside it while they live.

    Attributes:
        now, peak: bytes, at this moment and at most so far.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        """known: tensors that existed before and do not count; views of them do not either."""
        super().__init__()
        self.now = self.peak = 0
        # A storage is named by its address, which another may take over once it is gone.
        self._seen = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._seen:
            return
        self._seen.add(storage._cdata)
        weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)

    def _forget(self, name: int, size: int) -> None:
        self._seen.discard(name)
        self.now -= size


# -- arithmetic ------------------------------------------------------------------------------------


def meta_network(cfg: RunConfig) -> nn.Module:
    """The network of a run file without its weights; UserError where it cannot be built."""
    with torch.device("meta"):
        return build_network(cfg).eval()


def parameter_count(net: nn.Module) -> int:
    """Numbers that a network learns."""
    return sum(parameter.numel() for parameter in net.parameters())


def inputs(cfg: RunConfig, batch: int, device: str = "cpu") -> tuple[Tensor, Tensor | None]:
    """Tokens (batch, length) and, for a conditional network, classes (batch,)."""
    tokens = torch.zeros(batch, cfg.data.sequence_length, dtype=torch.long, device=device)
    classes = torch.zeros(batch, dtype=torch.long, device=device) if cfg.net.conditional else None
    return tokens, classes


def forward_flops(cfg: RunConfig, net: nn.Module, positions: int | None = None) -> int:
    """Of one sample through a network on the meta device.

    Args:
        positions: how many tokens get logits; all of them unless given.
    """
    tokens, classes = inputs(cfg, 1, "meta")
    where = None if positions is None else tokens[:, :positions]
    return flop_of(lambda: net(tokens, classes, where))


def training_flops(cfg: RunConfig, net: nn.Module, *, checkpointing: bool = False) -> int:
    """Of one sample in training: forward, twice that backward, once more where it is recomputed."""
    return (4 if checkpointing else 3) * cfg.unroll_steps * forward_flops(cfg, net)


def sampling_positions(cfg: RunConfig) -> list[int]:
    """How many tokens get logits in every step of [sampling]."""
    schedule, length = cfg.sampling, cfg.data.sequence_length
    strategy, free = STRATEGIES[schedule.resolved_strategy], torch.tensor([length])
    counts = []
    for step in range(schedule.steps):
        if schedule.proportion_at(step) == 0:
            counts.append(0)
        elif strategy.sees_logits(step):
            counts.append(length)
        else:
            counts.append(int(strategy.count(schedule, step, free).max()))
    return counts


def sampling_flops(cfg: RunConfig, net: nn.Module) -> int:
    """Of one picture, all steps of [sampling], without early stopping and without decoding.

    Guidance other than 1 asks the network twice in a step.
    """
    length, schedule = cfg.data.sequence_length, cfg.sampling
    all_of_them, one = forward_flops(cfg, net), forward_flops(cfg, net, 1)
    head = (all_of_them - one) / max(1, length - 1)
    total = 0.0
    for step, count in enumerate(sampling_positions(cfg)):
        asked = 0 if count == 0 else 1 if schedule.guidance_at(step) == 1 else 2
        total += asked * (one + (count - 1) * head)
    return round(total)


# -- memory ----------------------------------------------------------------------------------------


def pass_bytes(
    cfg: RunConfig,
    batch: int,
    *,
    bf16: bool,
    checkpointing: bool = False,
    build: Callable[[RunConfig], HourglassTransformer] = build_network,
    fake: bool = True,
) -> int:
    """Bytes at the peak of one unroll step's forward and backward pass.

    Beyond weights and gradients, which stand already, and without the last map's logits, which are
    never whole (`LOGITS_BYTES`): activations, bf16 copies of the weights, and what passes by.

    Args:
        bf16: whether under bfloat16 autocast; else in float32.
        build: makes the network; its `to_logits` is replaced.
        fake: count without computing; False computes it all, on the CPU, to compare.
    """
    with FakeTensorMode() if fake else nullcontext():
        net = build(cfg).train()
        head = net.to_logits
        assert isinstance(head, nn.Linear)
        net.to_logits = nn.Linear(head.in_features, 1)
        net.set_gradient_checkpointing(checkpointing)
        for parameter in net.parameters():
            parameter.grad = torch.zeros_like(parameter)
        tokens, classes = inputs(cfg, batch)
        gradients = (p.grad for p in net.parameters() if p.grad is not None)
        known = [*net.parameters(), *net.buffers(), *gradients, tokens]
        with LiveBytes(known if classes is None else [*known, classes]) as live:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = net(tokens, classes).float().mean()
            loss.backward()
        # Of the last map: its gradient, made with the loss and kept until it is added; and a copy.
        return live.peak + (6 if bf16 else 4) * head.weight.numel()


def state_bytes(cfg: RunConfig, parameters: int, gpus: int = 1) -> int:
    """Weights, gradients, the optimiser's moments and the average, all of them in float32.

    Several GPUs keep the gradients twice: torch sends them in buckets of its own.
    """
    numbers = 2 + _MOMENTS[cfg.trainer.optimizer_name]
    numbers += (cfg.trainer.ema_decay > 0) + (gpus > 1)
    return 4 * numbers * parameters


def training_bytes(
    cfg: RunConfig, parameters: int, *, bf16: bool, checkpointing: bool = False, gpus: int = 1
) -> Growth:
    """All that training holds, by the mini-batch."""
    growth = growth_of(partial(pass_bytes, cfg, bf16=bf16, checkpointing=checkpointing))
    return growth + (state_bytes(cfg, parameters, gpus) + LOGITS_BYTES)


def sampling_pass_bytes(cfg: RunConfig, batch: int, *, bf16: bool) -> int:
    """Bytes at the peak of a sampling step beyond the float32 weights, logits included.

    Under autocast the weights' bf16 copies are among them.
    """
    schedule, count = cfg.sampling, max(1, *sampling_positions(cfg), 0)
    guided = any(schedule.guidance_at(step) != 1 for step in range(schedule.steps))
    rows = batch * (2 if guided else 1)
    with FakeTensorMode():
        net = build_network(cfg).eval()
        tokens, classes = inputs(cfg, rows)
        positions = tokens[:, :count]
        known = [*net.parameters(), *net.buffers(), tokens]
        with LiveBytes(known if classes is None else [*known, classes]) as live, torch.no_grad():
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                logits = net(tokens, classes, positions)
            if guided:  # both halves and what they make, in float32
                conditional, null = logits.float().chunk(2)
                logits = null + 2 * (conditional - null)
        return live.peak


def sampling_bytes(cfg: RunConfig, parameters: int, *, bf16: bool) -> Growth:
    """All that sampling holds, by the batch: the weights, a forward, what draws the tokens.

    In bf16 linear maps have no float32 weights beside those that they compute with.
    """
    growth = growth_of(partial(sampling_pass_bytes, cfg, bf16=bf16))
    maps = (m.weight for m in meta_network(cfg).modules() if isinstance(m, nn.Linear))
    replaced = sum(weight.numel() for weight in maps) if bf16 else 0
    return growth + (4 * (parameters - replaced) + LOGITS_BYTES)


# -- the codec -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CodecCosts:
    """A VQ-GAN at one size of picture.

    Attributes:
        parameters: numbers.
        size: (height, width) in pixels.
        encode_flops, decode_flops: of a picture.
        decode_bytes: at the peak of decoding one picture, without the weights.
    """

    parameters: int
    size: tuple[int, int]
    encode_flops: int
    decode_flops: int
    decode_bytes: int


def codec_costs(config: Path, grid: tuple[int, int], *, bf16: bool) -> CodecCosts:
    """Of the VQ-GAN that a config describes, for pictures of (height, width) tokens.

    Raises:
        UserError: the config is missing or leaves something open.
    """
    with torch.device("meta"):
        codec = new_vqgan(config, precision="fp32")
        model = codec.model
        height, width = (side * codec.factor for side in grid)
        tokens = torch.zeros(1, *grid, dtype=torch.long)
        pixels = torch.zeros(1, 3, height, width)
    return CodecCosts(
        parameters=parameter_count(model),
        size=(height, width),
        encode_flops=flop_of(lambda: model.encode(pixels)),
        decode_flops=flop_of(lambda: model.decode(model.quantize.embed(tokens))),
        decode_bytes=_decode_bytes(model.arch, codec.rules.distance, grid, bf16),
    )


def _decode_bytes(arch: Architecture, distance: str, grid: tuple[int, int], bf16: bool) -> int:
    with FakeTensorMode():
        model = VQGAN(arch, distance).eval()
        tokens = torch.zeros(1, *grid, dtype=torch.long)
        with LiveBytes([*model.parameters(), *model.buffers(), tokens]) as live, torch.no_grad():
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                pixels = model.decode(model.quantize.embed(tokens))
            pixels.float()
        return live.peak


def codec_of(cfg: RunConfig, *, bf16: bool) -> CodecCosts | str:
    """The codec's costs, or in a word why there are none."""
    if cfg.vqgan is None:
        return "none: tokens are grey levels of pixels"
    if cfg.vqgan.config is None:
        return "not counted: vqgan.config is not set"
    try:
        return codec_costs(cfg.vqgan.config, cfg.grid_shape, bf16=bf16)
    except UserError as error:
        return f"not counted: {error}"
