"""What fits a GPU and how long it takes: counted costs over a card's measured or assumed speed."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sundae.common import memory
from sundae.common.errors import UserError
from sundae.config.run_file import RunConfig
from sundae.evaluation.cost import CodecCost, Cost, Growth

GIB = 2**30

# Share of a card's memory; the rest is the driver's, the libraries' and fragmentation.
USABLE = 0.92
# Share of the vendor's peak that is assumed where nothing was measured: expected, slow, fast.
ASSUMED = (0.40, 0.25, 0.45)
# Images of the figure for a large batch.
LARGE_BATCH = 32
_SECONDS_PER_DAY = 86_400

# device -> {"train", "sample", "decode": share of "tflops", or of the vendor's peak where that is
# missing; "source": text; "precision": "bf16" or "fp32"; "memory_gb" of a device outside CARDS}
Efficiency = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Card:
    """A GPU by its vendor's numbers.

    Attributes:
        memory: GiB.
        bf16: TFLOP/s of dense matrices, sums in float32; None without bfloat16.
        fp32: TFLOP/s outside the matrix units, which float32 training runs on.
        bandwidth: GB/s of its memory; None if unknown.
    """

    label: str
    memory: float
    bf16: float | None
    fp32: float | None = None
    bandwidth: float | None = None
    note: str = ""


_NO_BF16 = "no bfloat16, so the scripts train and sample in float32; its {} of float16 lie idle"

# Vendors' data sheets: dense (without sparsity), boost clock, sums in float32.
CARDS = {
    "h100": Card("NVIDIA H100 SXM", 80, 989, 67, 3350),
    "h100-pcie": Card("NVIDIA H100 PCIe", 80, 756, 51, 2000),
    "h200": Card("NVIDIA H200 SXM", 141, 989, 67, 4800),
    "a100-40": Card("NVIDIA A100 40 GB", 40, 312, 19.5, 1555),
    "a100-80": Card("NVIDIA A100 80 GB SXM", 80, 312, 19.5, 2039),
    "l40s": Card("NVIDIA L40S", 48, 362, 91.6, 864),
    "l4": Card("NVIDIA L4", 24, 121, 30.3, 300),
    "a10": Card("NVIDIA A10", 24, 125, 31.2, 600),
    "rtx5090": Card("GeForce RTX 5090", 32, 209.5, 104.8, 1792),
    "rtx4090": Card("GeForce RTX 4090", 24, 165.2, 82.6, 1008),
    "rtx4080": Card("GeForce RTX 4080", 16, 97.5, 48.7, 717),
    "rtx3090": Card("GeForce RTX 3090", 24, 71, 35.6, 936),
    "rtx3080": Card("GeForce RTX 3080", 10, 59.5, 29.8, 760),
    "v100": Card("NVIDIA V100 SXM2 32 GB", 32, None, 15.7, 900, _NO_BF16.format("125 TFLOP/s")),
    "t4": Card("NVIDIA T4", 16, None, 8.1, 320, _NO_BF16.format("65 TFLOP/s")),
    "gtx1080ti": Card("GeForce GTX 1080 Ti", 11, None, 11.3, 484,
                      "no matrix units, no bfloat16: float32 throughout"),
}  # fmt: skip


@dataclass(frozen=True)
class Span:
    """An expected amount, the least and the most."""

    expected: float
    least: float
    most: float

    def times(self, factor: float) -> Span:
        """All three, multiplied."""
        return Span(self.expected * factor, self.least * factor, self.most * factor)

    def per_second(self, amount: float) -> Span:
        """Seconds for an amount -> the amount per second."""
        return Span(amount / self.expected, amount / self.most, amount / self.least)


@dataclass(frozen=True)
class Rate:
    """TFLOP/s that one card sustains: expected, slow, fast; and where the numbers come from."""

    expected: float
    slow: float
    fast: float
    source: str

    def seconds(self, flops: float, num_gpus: int = 1) -> Span:
        """For so many FLOPs, divided evenly."""
        rates = (self.expected, self.fast, self.slow)
        return Span(*(flops / (num_gpus * rate * 1e12) for rate in rates))


# -- the card --------------------------------------------------------------------------------------


def read_efficiency(path: Path) -> dict[str, Any]:
    """Measured shares by device, from benchmarks/efficiency.json or what speed.py wrote.

    Raises:
        UserError: the file cannot be read or holds neither.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot read the measurements: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None
    if isinstance(content, dict):
        content = content.get("efficiency", content)
        if isinstance(content, dict) and all(isinstance(v, dict) for v in content.values()):
            return content
    form = '{"device": {"train": share, "sample": share, "source": text}}'
    raise UserError(f"{path}: expected what speed.py --json writes, or {form}")


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def same_card(key: str, device: str) -> bool:
    """Whether a device's own name, such as 'NVIDIA A100-SXM4-80GB', is the table's 'a100-80'."""
    fits = [k for k in CARDS if all(part in _plain(device) for part in k.split("-"))]
    # Of 'h100' and 'h100-pcie', or 'l4' and 'l40s', the longer name says more.
    return (bool(fits) and max(fits, key=len) == key) or _plain(key) == _plain(device)


def choose_card(
    name: str | None,
    measured: Efficiency,
    memory: float | None = None,
    tflops: float | None = None,
    bandwidth: float | None = None,
) -> tuple[str, Card]:
    """(name, card): of the table, changed by what else is given; or described by that alone.

    Args:
        name: such as "rtx4090" or "RTX 4090", or a measured device's.

    Raises:
        UserError: neither a known name nor enough numbers.
    """
    key = (name or "").lower().replace(" ", "").replace("_", "-")
    if key in CARDS:
        card = CARDS[key]
        return key, replace(card, memory=memory or card.memory, bf16=tflops or card.bf16,
                            bandwidth=bandwidth or card.bandwidth)  # fmt: skip
    entry = next((e for device, e in measured.items() if name and same_card(name, device)), {})
    tflops, memory = tflops or entry.get("tflops"), memory or entry.get("memory_gb")
    if tflops and memory:
        fp32_only = entry.get("precision") == "fp32"
        bf16, fp32 = (None, tflops) if fp32_only else (tflops, None)
        return name or "", Card(name or "your card", memory, bf16, fp32, bandwidth)
    if name is None:
        raise UserError(f"--gpu is missing; one of {', '.join(CARDS)}, or --memory and --tflops "
                        "of your card")  # fmt: skip
    near = difflib.get_close_matches(key, CARDS, n=3, cutoff=0.4) or list(CARDS)
    raise UserError(f"--gpu {name}: no such card in the table; nearest: {', '.join(near)}; or give "
                    "--memory and --tflops of your card")  # fmt: skip


def rate_of(card: Card, name: str, kind: str, measured: Efficiency, *, bf16: bool) -> Rate:
    """What the card sustains in 'train', 'sample' or 'decode': measured, or assumed.

    Raises:
        UserError: the card's speed in this precision is unknown.
    """
    precision, peak = ("bf16", card.bf16) if bf16 else ("fp32", card.fp32)
    for device, entry in measured.items():
        fits = same_card(name, device) and entry.get("precision", precision) == precision
        top = entry.get("tflops") or peak
        if fits and kind in entry and top:
            rate = float(entry[kind]) * top
            text = f"{entry[kind]:.0%} of {top:g} TFLOP/s ({entry.get('source', 'no source')})"
            return Rate(rate, 0.9 * rate, 1.1 * rate, f"measured: {text}, a tenth more or less")
    if not peak:
        raise UserError(f"{card.label}: its speed in {'bf16' if bf16 else 'float32'} is not known; "
                        "give --tflops")  # fmt: skip
    expected, slow, fast = ASSUMED
    return Rate(expected * peak, slow * peak, fast * peak,
                f"assumed, not measured on this GPU: {expected:.2f} of its {peak:g} TFLOP/s "
                f"({slow} to {fast})")  # fmt: skip


# -- the plan --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Memory:
    """Memory of training on a card, with gradient checkpointing or without.

    Attributes:
        needed: bytes by the mini-batch, everything included.
        largest: the largest mini-batch that fits; 0 for none.
        best: the largest that also divides the batch among the GPUs; 0 for none.
    """

    needed: Growth
    largest: int
    best: int


class Plan:
    """A run file on a card: bytes, FLOPs and seconds; counting them takes seconds on a CPU.

    Attributes:
        room: usable bytes of the card.
        states: bytes of weights, gradients, optimiser and average.
        mini: the run file's mini-batch.
        training: memory and times of the kind of training that fits.
        codec: its cost, or the reason why there is none.
    """

    def __init__(
        self,
        cfg: RunConfig,
        card: Card,
        *,
        name: str = "",
        gpus: int = 1,
        images: int | None = None,
        measured: Efficiency | None = None,
    ) -> None:
        """Args:
            name: of the card in the table or in `measured`, see `read_efficiency`.
            images: images per epoch.

        Raises:
            UserError: the batch cannot be divided among the GPUs, or the card's speed is unknown.
        """
        cost, self.card, self.gpus, self.images = Cost(cfg), card, gpus, images
        self.bf16 = cfg.trainer.use_amp and card.bf16 is not None
        self.room, self.batch_size = card.memory * GIB * USABLE, cfg.trainer.batch_size
        if self.batch_size % gpus:
            raise UserError(f"--gpus {gpus}: trainer.batch_size ({self.batch_size}) cannot be "
                            f"divided by {gpus}; change one of them")  # fmt: skip
        self.share = self.batch_size // gpus
        self.mini = cfg.trainer.mini_batch_size or self.share
        self.length, self.max_steps = cfg.data.sequence_length, cfg.trainer.max_steps
        self.parameters, self.forward_flops = cost.parameters, cost.forward_flops()
        self.states = cost.state_bytes(gpus)
        rates = {kind: rate_of(card, name, kind, measured or {}, bf16=self.bf16)
                 for kind in ("train", "sample", "decode")}  # fmt: skip
        self.train_rate, self.sample_rate, self.decode_rate = rates.values()

        self.plain, self.checkpointed = (self._training(cost, again) for again in (False, True))
        # Without checkpointing where that fits at all, since checkpointing costs a third more time.
        self.checkpointing = cfg.trainer.gradient_checkpointing or not self.plain.best
        self.training = self.checkpointed if self.checkpointing else self.plain
        self.step_flops = self.batch_size * cost.training_flops(checkpointing=self.checkpointing)
        self.step_seconds = self.train_rate.seconds(self.step_flops, gpus)

        self.codec = _codec_cost(cfg, self.bf16)
        codec_weights, decoding = 0, 0
        if isinstance(self.codec, CodecCost):
            codec_weights = 4 * self.codec.parameters
            images = max(1, memory.PIXELS // math.prod(self.codec.size))
            decoding = self.codec.decode_bytes * images
        self.steps = cfg.sampling.steps
        self.sampling = cost.sampling_bytes(bf16=self.bf16) + codec_weights
        logits = self.length * cfg.data.vocab_size
        at_once = max(1, memory.LOGITS // logits)
        self.sampling_largest = min(self.sampling.largest(self.room), at_once)
        self.sampling_flops = cost.sampling_flops()
        self.decode_bytes = 4 * self.parameters + codec_weights + decoding

    def _training(self, cost: Cost, checkpointing: bool) -> Memory:
        needed = cost.training_bytes(
            bf16=self.bf16, checkpointing=checkpointing, num_gpus=self.gpus
        )
        largest = needed.largest(self.room)
        divisors = (n for n in range(1, self.share + 1) if self.share % n == 0 and n <= largest)
        return Memory(needed, largest, max(divisors, default=0))

    def to_json(self) -> str:
        """All numbers."""
        samples = self.step_seconds.per_second(self.batch_size)
        more = {
            "optimiser_step_seconds": self.step_seconds,
            "samples_per_second": samples,
            "tokens_per_second": samples.times(self.length),
            "days": self.step_seconds.times(self.max_steps / _SECONDS_PER_DAY),
            "seconds_per_image": self.sample_rate.seconds(self.sampling_flops),
            "memory_of_the_files_mini_batch": self.training.needed.at(self.mini),
        }
        return json.dumps(vars(self) | more, indent=2, default=asdict) + "\n"


def _codec_cost(cfg: RunConfig, bf16: bool) -> CodecCost | str:
    if cfg.vqgan is None:
        return "none: tokens are grey levels of pixels"
    if cfg.vqgan.config is None:
        return "not counted: vqgan.config is not set"
    try:
        return CodecCost.of(cfg.vqgan.config, cfg.grid_shape, bf16=bf16)
    except UserError as error:
        return f"not counted: {error}"
