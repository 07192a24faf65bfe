"""What fits my GPU, and how long will it take?

    python benchmarks/plan.py config/ffhq256.toml --gpu rtx4090
    python benchmarks/plan.py config/ffhq1024.toml --gpu h100 --gpus 8 --images 140000
    python benchmarks/plan.py config/ffhq256.toml --memory 12 --tflops 58 --bandwidth 500

Parameters, arithmetic and memory are counted (`benchmarks/costs.py`), no GPU is needed. Times are
the arithmetic over what a card was measured to do; where nothing was measured a share of the
vendor's peak is assumed, and that is said.
"""

from __future__ import annotations

import argparse
import difflib
import json
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks import costs
from benchmarks.costs import CodecCosts, Growth
from benchmarks.efficiency import MEASURED, read_measured
from sundae.common.errors import UserError
from sundae.common.files import write_text
from sundae.config.run_file import RunConfig, load_config
from sundae.sampling.prior import Prior
from utils import run_cli

GIB = 2**30

# Of a card's memory; the rest is the driver's, the libraries' and lost between blocks.
USABLE = 0.92
# Share of the vendor's peak that is assumed where nothing was measured: usual, and from .. to.
ASSUMED, ASSUMED_LOW, ASSUMED_HIGH = 0.40, 0.25, 0.45
# Pictures at once for the figure of a large batch.
LARGE_BATCH = 32
# Pixels that `sundae.codec.interface.ChunkedCodec` decodes together.
PIXELS_AT_ONCE = 2**20
_SECONDS_A_DAY = 86_400


@dataclass(frozen=True)
class Card:
    """A GPU by its vendor's numbers.

    Attributes:
        label: what the vendor calls it.
        memory: GiB.
        bf16: TFLOP/s of dense matrices, sums in float32; None where there is no bfloat16.
        fp32: TFLOP/s outside the matrix units, which is what float32 training runs on.
        bandwidth: of its memory, GB/s; None if unknown.
        note: what else there is to know.
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
class Rate:
    """TFLOP/s that one card keeps up: expected, and from slow to fast.

    Attributes:
        source: where the numbers come from, for the reader.
    """

    expected: float
    slow: float
    fast: float
    source: str

    def seconds(self, flops: float, cards: int = 1) -> Span:
        """For so much arithmetic, shared out evenly."""
        return Span(*(flops / (cards * rate * 1e12)
                      for rate in (self.expected, self.fast, self.slow)))  # fmt: skip


@dataclass(frozen=True)
class Span:
    """An expected amount, least and most."""

    expected: float
    least: float
    most: float

    def times(self, factor: float) -> Span:
        """All three, multiplied."""
        return Span(self.expected * factor, self.least * factor, self.most * factor)

    def per_second(self, amount: float) -> Span:
        """Seconds for an amount -> the amount in a second."""
        return Span(amount / self.expected, amount / self.most, amount / self.least)


# -- the card --------------------------------------------------------------------------------------


def choose_card(
    name: str | None, memory: float | None, tflops: float | None, bandwidth: float | None
) -> Card:
    """A card of the table, changed by what else is given; or one that is described by it alone.

    Raises:
        UserError: neither a known name nor enough to go by.
    """
    card = CARDS.get(name or "")
    if card is None and (memory is None or tflops is None):
        if name is None:
            raise UserError(f"--gpu is missing; one of {', '.join(CARDS)}, or --memory and "
                            "--tflops of your card")  # fmt: skip
        near = difflib.get_close_matches(name.lower(), CARDS, n=3, cutoff=0.4) or list(CARDS)
        raise UserError(f"--gpu {name}: no such card in the table; nearest: {', '.join(near)}; "
                        "or give --memory and --tflops of your card")  # fmt: skip
    if card is None:
        assert memory is not None
        return Card(name or "your card", memory, tflops, None, bandwidth)
    return replace(card, memory=memory or card.memory, bf16=tflops or card.bf16,
                   bandwidth=bandwidth or card.bandwidth)  # fmt: skip


def table_key(name: str) -> str:
    """A name as the table writes it, such as 'rtx4090' for 'RTX 4090'; others as they are."""
    key = name.lower().replace(" ", "").replace("_", "-")
    return key if key in CARDS else name


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def same_card(key: str, device: str) -> bool:
    """Whether a device's own name, such as 'NVIDIA A100-SXM4-80GB', is the table's 'a100-80'."""
    fits = [k for k in CARDS if all(part in _plain(device) for part in k.split("-"))]
    # Of 'h100' and 'h100-pcie', or 'l4' and 'l40s', the longer name says more.
    return (bool(fits) and max(fits, key=len) == key) or _plain(key) == _plain(device)


def rate_of(
    card: Card, name: str, kind: str, measured: Mapping[str, Mapping[str, Any]], *, bf16: bool
) -> Rate:
    """What the card keeps up in 'train', 'sample' or 'decode': measured, or assumed.

    Raises:
        UserError: nobody says how fast the card is in this arithmetic.
    """
    precision = "bf16" if bf16 else "fp32"
    for device, entry in measured.items():
        fitting = entry.get("precision", precision) == precision
        if same_card(name, device) and kind in entry and fitting:
            peak = entry.get("tflops") or (card.bf16 if bf16 else card.fp32)
            if peak:
                rate = float(entry[kind]) * peak
                said = f"{entry[kind]:.0%} of {peak:g} TFLOP/s ({entry.get('source', 'no source')})"
                return Rate(rate, 0.9 * rate, 1.1 * rate, f"measured: {said}, a tenth more or less")
    peak = card.bf16 if bf16 else card.fp32
    if not peak:
        raise UserError(f"{card.label}: its speed in {'bf16' if bf16 else 'float32'} is not known; "
                        "give --tflops")  # fmt: skip
    return Rate(ASSUMED * peak, ASSUMED_LOW * peak, ASSUMED_HIGH * peak,
                f"assumed, not measured on this GPU: {ASSUMED:.2f} of its {peak:g} TFLOP/s "
                f"({ASSUMED_LOW} to {ASSUMED_HIGH})")  # fmt: skip


# -- the plan --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Memory:
    """What one way of training, with checkpointing or without, holds on a card.

    Attributes:
        needed: bytes by the mini-batch, everything included.
        largest: the largest mini-batch that fits; 0 for none.
        best: the largest that also divides the batch among the GPUs; 0 for none.
    """

    needed: Growth
    largest: int
    best: int


@dataclass(frozen=True)
class Plan:
    """Everything that is printed; bytes, FLOPs and seconds."""

    config: str
    card: Card
    gpus: int
    bf16: bool
    room: float
    parameters: int
    forward_flops: int
    codec: CodecCosts | str
    states: int
    plain: Memory
    checkpointed: Memory
    mini: int
    checkpointing: bool
    train_rate: Rate
    step_flops: int
    batch_size: int
    length: int
    max_steps: int
    images: int | None
    sampling: Growth
    sampling_largest: int
    sampling_flops: int
    sample_rate: Rate
    steps: int
    decode_rate: Rate | None
    decode_bytes: float

    @property
    def chosen(self) -> Memory:
        """The way of training that times are given for."""
        return self.checkpointed if self.checkpointing else self.plain

    @property
    def step_seconds(self) -> Span:
        """Of an optimiser step."""
        return self.train_rate.seconds(self.step_flops, self.gpus)


def make_plan(
    cfg: RunConfig,
    card: Card,
    *,
    name: str = "",
    config: str = "",
    gpus: int = 1,
    images: int | None = None,
    measured: Mapping[str, Mapping[str, Any]] | None = None,
) -> Plan:
    """Count everything; seconds on a CPU.

    Args:
        name: of the card in the table or in `measured`.
        config: name of the run file, for the title.
        images: pictures of an epoch.
        measured: see `read_measured`.
    """
    bf16 = cfg.trainer.arithmetic != "fp32" and card.bf16 is not None
    net = costs.meta_network(cfg)
    parameters = costs.parameter_count(net)
    room = card.memory * GIB * USABLE
    share = max(1, cfg.trainer.batch_size // gpus)
    if cfg.trainer.batch_size % gpus:
        raise UserError(f"--gpus {gpus}: trainer.batch_size ({cfg.trainer.batch_size}) cannot be "
                        f"shared by {gpus}; change one of them")  # fmt: skip
    ways = {}
    for checkpointing in (False, True):
        needed = costs.training_bytes(
            cfg, parameters, bf16=bf16, checkpointing=checkpointing, gpus=gpus
        )
        largest = needed.largest(room)
        best = max((b for b in range(1, share + 1) if share % b == 0 and b <= largest), default=0)
        ways[checkpointing] = Memory(needed, largest, best)
    mini = cfg.trainer.mini_batch_size or share
    # Without checkpointing where that fits at all, since checkpointing costs a third more time.
    wanted = cfg.trainer.gradient_checkpointing
    checkpointing = wanted or not ways[False].best
    codec = costs.codec_of(cfg, bf16=bf16)
    codec_weights = 4 * codec.parameters if isinstance(codec, CodecCosts) else 0
    sampling = costs.sampling_bytes(cfg, parameters, bf16=bf16) + codec_weights
    fits = sampling.largest(room)
    at_once = Prior(net, cfg, torch.device("cpu")).rows_at_once(fits) if fits else 0
    measured = measured or {}
    return Plan(
        config=config, card=card, gpus=gpus, bf16=bf16, room=room, parameters=parameters,
        forward_flops=costs.forward_flops(cfg, net), codec=codec,
        states=costs.state_bytes(cfg, parameters, gpus),
        plain=ways[False], checkpointed=ways[True], mini=mini, checkpointing=checkpointing,
        train_rate=rate_of(card, name, "train", measured, bf16=bf16),
        step_flops=cfg.trainer.batch_size
        * costs.training_flops(cfg, net, checkpointing=checkpointing),
        batch_size=cfg.trainer.batch_size, length=cfg.data.sequence_length,
        max_steps=cfg.trainer.max_steps, images=images,
        sampling=sampling, sampling_largest=at_once,
        sampling_flops=costs.sampling_flops(cfg, net),
        sample_rate=rate_of(card, name, "sample", measured, bf16=bf16), steps=cfg.sampling.steps,
        decode_rate=rate_of(card, name, "decode", measured, bf16=bf16)
        if isinstance(codec, CodecCosts) else None,
        decode_bytes=4 * parameters + codec_weights + _decoding(codec),
    )  # fmt: skip


def _decoding(codec: CodecCosts | str) -> float:
    """Bytes beyond the weights while pictures are decoded, as many at once as the scripts do."""
    if not isinstance(codec, CodecCosts):
        return 0
    return codec.decode_bytes * max(1, PIXELS_AT_ONCE // math.prod(codec.size))


# -- what is printed -------------------------------------------------------------------------------


def gib(size: float) -> str:
    """Bytes as GiB with three figures."""
    return f"{size / GIB:.3g} GiB" if size < 100 * GIB else f"{size / GIB:.0f} GiB"


def amount(value: float) -> str:
    """A number with three figures and a K or M."""
    for limit, unit in ((1e6, "M"), (1e4, "K")):
        if value >= limit:
            return f"{value / (limit if unit == 'M' else 1e3):.3g}{unit}"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Seconds in the unit that reads best."""
    for size, unit in ((_SECONDS_A_DAY, "days"), (3600, "h"), (60, "min"), (1, "s")):
        if seconds >= (1.5 * size if size > 1 else 1):
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1000:.3g} ms"


def _row(label: str, value: str) -> str:
    return f"  {label:<42}{value}"


def _span(span: Span, show: Any = duration) -> str:
    return f"{show(span.expected)}  ({show(span.least)} to {show(span.most)})"


def describe(plan: Plan) -> str:
    """The plan as text."""
    card, several = plan.card, f"{plan.gpus} x " if plan.gpus > 1 else ""
    peak = card.bf16 if plan.bf16 else card.fp32
    kind = "bf16" if plan.bf16 else "float32"
    speed = f", {peak:g} TFLOP/s {kind}" if peak else ""
    width = f", {card.bandwidth:g} GB/s" if card.bandwidth else ""
    lines = [f"{plan.config} on {several}{card.label} ({card.memory:g} GB{speed}{width})"]
    lines += [f"  {card.note}"] if card.note else []
    lines += ["", "Network and codec", *_sizes(plan)]
    lines += ["", f"Memory of training, {kind}", *_training_memory(plan)]
    if plan.chosen.largest:
        lines += ["", "Time of training", *_training_time(plan)]
    return "\n".join([*lines, "", "Sampling", *_sampling(plan)])


def _sizes(plan: Plan) -> list[str]:
    forward = f"{plan.forward_flops / 1e9:,.4g} GFLOP a forward of {plan.length} tokens"
    lines = [_row("network", f"{plan.parameters / 1e6:,.1f}M parameters, {forward}")]
    codec = plan.codec
    if isinstance(codec, str):
        return [*lines, _row("codec", codec)]
    height, width = codec.size
    return [*lines, _row("codec", f"{codec.parameters / 1e6:,.1f}M parameters, a picture of "
                         f"{height}x{width}: encode {codec.encode_flops / 1e9:,.4g}, "
                         f"decode {codec.decode_flops / 1e9:,.4g} GFLOP")]  # fmt: skip


def _training_memory(plan: Plan) -> list[str]:
    per_parameter = plan.states // plan.parameters
    plain, checkpointed = plan.plain, plan.checkpointed
    lines = [
        _row("weights, gradients, optimiser, average",
             f"{gib(plan.states)}, {per_parameter} bytes a parameter"),
        _row("activations of a sample, one unroll step",
             f"{gib(plain.needed.per_sample)}; "
             f"{gib(checkpointed.needed.per_sample)} with gradient checkpointing"),
        _row("usable", f"{gib(plan.room)} ({USABLE:.0%} of {plan.card.memory:g} GiB)"),
        _row("largest mini_batch_size",
             f"{plain.largest}; {checkpointed.largest} with gradient checkpointing"),
    ]  # fmt: skip
    return [*lines, *_advice(plan)]


def _advice(plan: Plan) -> list[str]:
    """Whether the file's mini-batch fits, and what to set if not."""
    chosen, mini, share = plan.chosen, plan.mini, plan.batch_size // plan.gpus
    if not chosen.largest:
        return _too_large(plan)
    if not mini or share % mini:
        return [_row(f"mini_batch_size = {mini}", f"does not divide the {share} samples a GPU "
                     f"has in a step: set it to {chosen.best}")]  # fmt: skip
    if mini <= chosen.largest:
        extra = " with gradient_checkpointing = true" if plan.checkpointing else ""
        line = f"fits{extra}: {gib(chosen.needed.at(mini))}"
        larger = f"; {chosen.best} would fit, too" if chosen.best > mini else ""
        return [_row(f"mini_batch_size = {mini}", line + larger)]
    lines = [_row(f"mini_batch_size = {mini}", f"does not fit: {gib(chosen.needed.at(mini))}")]
    if plan.checkpointing:
        lines += [_row("set", f"trainer.mini_batch_size = {chosen.best}, "
                       "trainer.gradient_checkpointing = true")]  # fmt: skip
    else:
        lines += [_row("set", f"trainer.mini_batch_size = {chosen.best}")]
        if plan.checkpointed.largest >= mini:
            lines += [_row("or", "trainer.gradient_checkpointing = true, a third more time")]
    return lines


def _too_large(plan: Plan) -> list[str]:
    need = plan.checkpointed.needed.at(1)
    others = [key for key, card in CARDS.items()
              if card.memory * GIB * USABLE >= need and (card.bf16 or not plan.bf16)]  # fmt: skip
    lines = [_row("too large for this card",
                  f"one sample needs {gib(need)} with gradient checkpointing")]  # fmt: skip
    change = ["a smaller net.dim or net.depth"]
    if plan.states >= 20 * plan.parameters:
        saved = 4 * plan.parameters
        enough = ", which is enough" if need - saved <= plan.room else ""
        change.append(f"trainer.ema_decay = 0 (saves {gib(saved)}{enough})")
    lines.append(_row("change", " or ".join(change)))
    return [*lines, _row("or use", ", ".join(others) or "no card of the table holds it")]


def _training_time(plan: Plan) -> list[str]:
    step = plan.step_seconds
    samples = step.per_second(plan.batch_size)
    again = ", forward computed twice" if plan.checkpointing else ""
    lines = [
        f"  {plan.train_rate.source}",
        _row("optimiser step", f"{_span(step)}, {plan.batch_size} samples, "
             f"{plan.step_flops / 1e12:,.3g} TFLOP{again}"),
        _row("samples/s", _span(samples, amount)),
        _row("tokens/s", _span(samples.times(plan.length), amount)),
    ]  # fmt: skip
    if plan.gpus > 1:
        lines.append(f"  {plan.gpus} GPUs are counted as {plan.gpus} times one; exchanging "
                     "gradients costs some of that")  # fmt: skip
    if plan.images:
        epoch = step.times(plan.images / plan.batch_size)
        lines.append(_row(f"an epoch of {plan.images:,} images", _span(epoch)))
    if plan.max_steps:
        passes = plan.max_steps * plan.batch_size / plan.images if plan.images else 0
        epochs = f", {passes:,.3g} epochs" if passes else ""
        whole = _span(step.times(plan.max_steps))
        lines.append(_row(f"max_steps = {plan.max_steps:,}", whole + epochs))
    elif not plan.images:
        lines.append(_row("max_steps = 0", "until stopped; --images N gives the time of an epoch"))
    return lines


def _sampling(plan: Plan) -> list[str]:
    """Memory and seconds a picture."""
    if not plan.sampling_largest:
        need = gib(plan.sampling.at(1))
        return [_row("too large for this card", f"one picture needs {need} of {gib(plan.room)}")]
    batch = min(LARGE_BATCH, plan.sampling_largest)
    work = plan.sample_rate.seconds(plan.sampling_flops)
    lines = [
        _row("memory", f"{gib(plan.sampling.at(1))} for one picture, "
             f"{gib(plan.sampling.at(batch))} for {batch}"),
        _row("largest batch", f"{plan.sampling_largest}"),
    ]  # fmt: skip
    if plan.decode_rate and plan.decode_bytes > plan.room:
        lines.append(_row("decoding does not fit", f"it needs {gib(plan.decode_bytes)}"))
    if plan.sample_rate.source != plan.train_rate.source:
        lines.append(f"  {plan.sample_rate.source}")
    lines.append(_row(f"{plan.steps} steps, a picture at batch {batch}", _span(work)))
    lines.append(_row(f"{plan.steps} steps, batch 1", f"at least {_single(plan, work)}"))
    if plan.decode_rate and isinstance(plan.codec, CodecCosts):
        decode = plan.decode_rate.seconds(plan.codec.decode_flops)
        if plan.decode_rate.source not in (plan.sample_rate.source, plan.train_rate.source):
            lines.append(f"  {plan.decode_rate.source}")
        lines.append(_row("decoding, a picture", _span(decode)))
    return lines


def _single(plan: Plan, work: Span) -> str:
    """A picture on its own: every step reads all weights; nor is it faster than its arithmetic."""
    if not plan.card.bandwidth:
        return f"{duration(work.least)} (its arithmetic; kernel launches add to it)"
    reading = plan.steps * plan.parameters * (2 if plan.bf16 else 4) / (plan.card.bandwidth * 1e9)
    reason = "reading the weights" if reading > work.least else "its arithmetic"
    return f"{duration(max(reading, work.least))} ({reason}; kernel launches add to it)"


def to_dict(plan: Plan) -> dict[str, Any]:
    """Plain numbers for JSON; bytes, FLOPs, seconds."""
    step = plan.step_seconds
    samples = step.per_second(plan.batch_size)
    return asdict(plan) | {
        "optimiser_step_seconds": asdict(step),
        "samples_per_second": asdict(samples),
        "tokens_per_second": asdict(samples.times(plan.length)),
        "days": asdict(step.times(plan.max_steps / _SECONDS_A_DAY)),
        "seconds_a_picture": asdict(plan.sample_rate.seconds(plan.sampling_flops)),
        "memory_of_the_files_mini_batch": plan.chosen.needed.at(plan.mini),
    }


# -- the command -----------------------------------------------------------------------------------


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add --plan and what belongs to it; --json is the script's own."""
    group = parser.add_argument_group("cost model")
    group.add_argument("--plan", type=Path, metavar="FILE", help="run file to plan for")
    _add_card_flags(group)


def _add_card_flags(group: Any) -> None:
    flag = group.add_argument
    flag("--gpu", metavar="NAME", help=f"one of {', '.join(CARDS)}")
    flag("--gpus", type=int, default=1, metavar="N", help="GPUs that train together (default: 1)")
    flag("--memory", type=float, metavar="GB", help="of the card, where the table has another")
    flag("--tflops", type=float, metavar="X", help="its dense bf16 peak, where the table has "
         "another")  # fmt: skip
    flag("--bandwidth", type=float, metavar="GB/S", help="of its memory")
    flag("--images", type=int, metavar="N", help="pictures of an epoch")
    flag("--efficiency", type=Path, metavar="FILE", help="measured on this card: what speed.py "
         "--json wrote, or a file like benchmarks/efficiency.json")  # fmt: skip
    flag("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE",
         help="override a key of the run file; may be repeated")  # fmt: skip


def run_plan(args: argparse.Namespace) -> None:
    """Print a plan, and write it where --json says.

    Raises:
        UserError: the run file, the card or the measurements are wrong.
    """
    for name in ("gpus", "memory", "tflops", "bandwidth", "images"):
        value = getattr(args, name)
        if value is not None and not value > 0:
            raise UserError(f"--{name} {value:g}: expected a number above 0")
    cfg = load_config(args.plan, args.overrides)
    measured = read_measured(MEASURED)
    name, tflops, memory = args.gpu and table_key(args.gpu), args.tflops, args.memory
    if args.efficiency:
        own = read_measured(args.efficiency)
        if name is None and len(own) == 1:
            name = next((key for key in CARDS if same_card(key, next(iter(own)))), next(iter(own)))
        if name is not None and not any(same_card(name, device) for device in own):
            raise UserError(f"--efficiency {args.efficiency}: measured on {', '.join(own)}, "
                            f"not on {name}; leave it out, or name that card")  # fmt: skip
        measured = {**measured, **own}
    entry: dict[str, Any] = {}
    if name is not None and name not in CARDS:
        entry = next((e for device, e in measured.items() if same_card(name, device)), {})
        tflops, memory = tflops or entry.get("tflops"), memory or entry.get("memory_gb")
    card = choose_card(name, memory, tflops, args.bandwidth)
    if entry.get("precision") == "fp32":
        card = replace(card, bf16=None, fp32=tflops)
    plan = make_plan(cfg, card, name=name or "", config=str(args.plan), gpus=args.gpus,
                     images=args.images, measured=measured)  # fmt: skip
    print(describe(plan))
    if getattr(args, "json", None):
        write_text(args.json, json.dumps(to_dict(plan), indent=2, default=str) + "\n")


def main() -> None:
    """The plan of one run file on one card."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("plan", type=Path, metavar="FILE", help="run file (TOML)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there, too")
    _add_card_flags(parser)
    run_plan(parser.parse_args())


if __name__ == "__main__":
    run_cli(main)
