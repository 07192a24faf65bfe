"""What a run file costs: parameters, FLOPs and memory, counted without weights, data or a GPU.

FLOPs are counted by torch on the meta device. Memory is counted by one forward and backward pass on
tensors that have shapes and types but no contents (`FakeTensorMode`), adding up what is alive at
every moment, so a change of the network changes the count by itself.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from sundae.codec.vqgan import new_vqgan
from sundae.codec.vqgan.backbone import VQGAN
from sundae.config.run_file import RunConfig
from sundae.prior.network import build_network
from sundae.sampling.strategies import STRATEGIES
from sundae.training.optimizers import hidden_matrices

# The loss takes logits a few rows at a time, and so do the draws of sampling: an upper bound of
# what is alive at once in training, whatever the batch.
LOGITS_BYTES = 256 * 2**20

# Float32 numbers per parameter in an optimiser's state.
_MOMENTS = {"muon": 2, "adam": 2, "adamw": 2, "adamax": 2, "rmsprop": 1, "sgd": 0}

# Batches at which memory is counted: the peak of a small one lies elsewhere than of a large one.
_SMALL, _LARGE = (4, 8), (128, 256)


def flop_of(call: Callable[[], object]) -> int:
    """FLOPs of the matrix products in a call; on the meta device nothing is computed."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    return counter.get_total_flops()


def parameter_count(net: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in net.parameters())


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors created inside it while they are alive.

    Attributes:
        now, peak: bytes, at this moment and at most so far.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        """known: tensors that existed before; they and views of them do not count."""
        super().__init__()
        self.now = self.peak = 0
        # A storage is named by its address, which another may take over once it is freed.
        self._seen = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)

    def _forget(self, address: int, size: int) -> None:
        self._seen.discard(address)
        self.now -= size


@dataclass(frozen=True)
class Growth:
    """Bytes as a function of the batch: the maximum of a few lines (fixed, per sample)."""

    lines: tuple[tuple[float, float], ...]

    @classmethod
    def of(cls, bytes_at: Callable[[int], float]) -> Growth:
        """Lines through the counts at two small and at two large batches.

        A peak is the largest of many moments, each linear in the batch.
        """
        lines = []
        for low, high in (_SMALL, _LARGE):
            less, more = bytes_at(low), bytes_at(high)
            slope = (more - less) / (high - low)
            lines.append((less - low * slope, slope))
        return cls(tuple(lines))

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


class Cost:
    """Counts of one run file's network, which is `net`, on the meta device."""

    def __init__(self, cfg: RunConfig) -> None:
        self.cfg = cfg
        with torch.device("meta"):
            self.net = build_network(cfg).eval()
        self.parameters = parameter_count(self.net)
        self._flops = cache(self._count_flops)

    def inputs(self, batch: int, device: str = "cpu") -> list[Tensor]:
        """Tokens (batch, length) and, for a conditional network, classes (batch,)."""
        tokens = torch.zeros(batch, self.cfg.data.sequence_length, dtype=torch.long, device=device)
        return [tokens, tokens[:, 0].clone()] if self.cfg.net.conditional else [tokens]

    # -- FLOPs of one sample ----------------------------------------------------------------------

    def forward_flops(self, num_positions: int | None = None) -> int:
        """Of a forward pass with logits at so many positions, all of them unless given."""
        return self._flops(num_positions)

    def _count_flops(self, num_positions: int | None) -> int:
        tokens, *classes = self.inputs(1, "meta")
        positions = {} if num_positions is None else {"positions": tokens[:, :num_positions]}
        return flop_of(lambda: self.net(tokens, *classes, **positions))

    def training_flops(self, *, checkpointing: bool = False) -> int:
        """Of all unroll steps: forward, backward twice that, forward again where recomputed."""
        passes = 1 + (self.cfg.unroll_steps - 1) * self.cfg.objective.unroll_share
        return round((4 if checkpointing else 3) * passes * self.forward_flops())

    def sampling_positions(self) -> list[int]:
        """Number of tokens with logits in every step of [sampling]."""
        sampling, length = self.cfg.sampling, self.cfg.data.sequence_length
        strategy, free = STRATEGIES[sampling.resolved_strategy], torch.tensor([length])
        return [
            0 if sampling.proportion_at(step) == 0
            else length if strategy.needs_logits(step)
            else int(strategy.count(sampling, step, free))
            for step in range(sampling.steps)
        ]  # fmt: skip

    def sampling_flops(self) -> int:
        """Of all steps of [sampling], without early stopping and decoding; guidance doubles it."""
        one, sampling = self.forward_flops(1), self.cfg.sampling
        head = (self.forward_flops() - one) / max(1, self.cfg.data.sequence_length - 1)
        total = 0.0
        for step, count in enumerate(self.sampling_positions()):
            passes = 0 if count == 0 else 1 if sampling.guidance_at(step) == 1 else 2
            total += passes * (one + (count - 1) * head)
        return round(total)

    # -- memory -----------------------------------------------------------------------------------

    def state_bytes(self, num_gpus: int = 1) -> int:
        """Weights, gradients, the optimiser's moments and the average, all in float32.

        On several GPUs the gradients count twice: torch sends them in buckets of its own.
        """
        trainer = self.cfg.trainer
        numbers = 2 + _MOMENTS[trainer.optimizer_name] + (trainer.ema_decay > 0) + (num_gpus > 1)
        spared = 0
        if trainer.optimizer_name == "muon":  # one moment of these, two of the others
            spared = sum(matrix.numel() for matrix in hidden_matrices(self.net))
        return 4 * (numbers * self.parameters - spared)

    def pass_bytes(self, batch: int, *, bf16: bool, checkpointing: bool = False) -> int:
        """Bytes at the peak of one unroll step's forward and backward pass.

        Included are activations, bf16 copies of the weights and temporaries; not included are
        weights, gradients and the logits, which are never whole (`LOGITS_BYTES`).
        """
        with FakeTensorMode():
            net = build_network(self.cfg).train()
            head = net.to_logits
            net.to_logits = nn.Linear(head.in_features, 1)
            net.set_gradient_checkpointing(checkpointing)
            for parameter in net.parameters():
                parameter.grad = torch.zeros_like(parameter)
            inputs = self.inputs(batch)
            gradients = (p.grad for p in net.parameters() if p.grad is not None)
            with LiveBytes([*net.parameters(), *net.buffers(), *gradients, *inputs]) as live:
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    loss = net(*inputs).float().mean()
                loss.backward()
            # Of the last map: its gradient, alive from the loss until it is added; and a copy.
            return live.peak + (6 if bf16 else 4) * head.weight.numel()

    def training_bytes(
        self, *, bf16: bool, checkpointing: bool = False, num_gpus: int = 1
    ) -> Growth:
        """Everything in memory during training, by the mini-batch."""
        growth = Growth.of(partial(self.pass_bytes, bf16=bf16, checkpointing=checkpointing))
        return growth + (self.state_bytes(num_gpus) + LOGITS_BYTES)

    def sampling_pass_bytes(self, batch: int, *, bf16: bool) -> int:
        """Bytes at the peak of a sampling step beyond the float32 weights, logits included."""
        sampling, count = self.cfg.sampling, max(1, *self.sampling_positions(), 0)
        guided = any(sampling.guidance_at(step) != 1 for step in range(sampling.steps))
        with FakeTensorMode():
            net = build_network(self.cfg).eval()
            tokens, *classes = self.inputs(batch * (2 if guided else 1))
            with inference([*net.parameters(), *net.buffers(), tokens, *classes], bf16) as live:
                logits = net(tokens, *classes, positions=tokens[:, :count])
                if guided:  # both halves and their combination, in float32
                    conditional, null = logits.float().chunk(2)
                    logits = null + 2 * (conditional - null)
            return live.peak

    def sampling_bytes(self, *, bf16: bool) -> Growth:
        """Everything in memory during sampling, by the batch: weights, a forward pass, the draws.

        In bf16, linear maps have bfloat16 weights only.
        """
        linears = [module for module in self.net.modules() if isinstance(module, nn.Linear)]
        replaced = sum(linear.weight.numel() for linear in linears) if bf16 else 0
        growth = Growth.of(partial(self.sampling_pass_bytes, bf16=bf16))
        return growth + (4 * (self.parameters - replaced) + LOGITS_BYTES)


@contextmanager
def inference(known: Iterable[Tensor], bf16: bool) -> Iterator[LiveBytes]:
    """A count of bytes without gradients, under bfloat16 autocast where `bf16`."""
    amp = torch.autocast("cpu", torch.bfloat16, enabled=bf16)
    with LiveBytes(known) as live, torch.no_grad(), amp:
        yield live


@dataclass(frozen=True)
class CodecCost:
    """Counts of a VQ-GAN at one image size.

    Attributes:
        size: (height, width) in pixels.
        encode_flops, decode_flops: of one image.
        decode_bytes: at the peak of decoding one image, without the weights.
    """

    parameters: int
    size: tuple[int, int]
    encode_flops: int
    decode_flops: int
    decode_bytes: int

    @classmethod
    def of(cls, config: Path, grid: tuple[int, int], *, bf16: bool) -> CodecCost:
        """Of the VQ-GAN in a YAML file, for images of (height, width) tokens.

        Raises:
            UserError: the file is missing or incomplete.
        """
        with torch.device("meta"):
            codec = new_vqgan(config, precision="fp32")
            model, size = codec.model, (grid[0] * codec.factor, grid[1] * codec.factor)
            tokens, pixels = torch.zeros(1, *grid, dtype=torch.long), torch.zeros(1, 3, *size)
        with FakeTensorMode():
            fake = VQGAN(model.arch, codec.rules.distance).eval()
            given = torch.zeros(1, *grid, dtype=torch.long)
            with inference([*fake.parameters(), *fake.buffers(), given], bf16) as live:
                fake.decode(fake.quantize.embed(given)).float()
        return cls(
            parameters=parameter_count(model),
            size=size,
            encode_flops=flop_of(lambda: model.encode(pixels)),
            decode_flops=flop_of(lambda: model.decode(model.quantize.embed(tokens))),
            decode_bytes=live.peak,
        )
