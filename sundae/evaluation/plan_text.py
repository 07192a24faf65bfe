"""A plan as text."""

from __future__ import annotations

from collections.abc import Callable

from sundae.evaluation.cost import CodecCost
from sundae.evaluation.plan import CARDS, GIB, LARGE_BATCH, USABLE, Plan, Span


def gib(size: float) -> str:
    """Bytes as GiB with three figures."""
    return f"{size / GIB:.3g} GiB" if size < 100 * GIB else f"{size / GIB:.0f} GiB"


def amount(value: float) -> str:
    """A number with three figures and a K or M."""
    if value >= 1e4:
        return f"{value / 1e6:.3g}M" if value >= 1e6 else f"{value / 1e3:.3g}K"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Seconds in the unit that reads best."""
    for size, unit in ((86_400, "days"), (3600, "h"), (60, "min"), (1, "s")):
        if seconds >= (1.5 * size if size > 1 else 1):
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1000:.3g} ms"


def row(label: str, value: str) -> str:
    """A line of the table."""
    return f"  {label:<42}{value}"


def between(span: Span, show: Callable[[float], str] = duration) -> str:
    """An expected amount with its range."""
    return f"{show(span.expected)}  ({show(span.least)} to {show(span.most)})"


def describe(plan: Plan, config: str) -> str:
    """The whole plan; `config` is the run file's name."""
    card, several = plan.card, f"{plan.gpus} x " if plan.gpus > 1 else ""
    kind, peak = ("bf16", card.bf16) if plan.bf16 else ("float32", card.fp32)
    numbers = [f"{card.memory:g} GB"]
    numbers += [f"{peak:g} TFLOP/s {kind}"] if peak else []
    numbers += [f"{card.bandwidth:g} GB/s"] if card.bandwidth else []
    lines = [f"{config} on {several}{card.label} ({', '.join(numbers)})"]
    lines += [f"  {card.note}"] if card.note else []
    lines += ["", "Network and codec", *_sizes(plan)]
    lines += ["", f"Memory of training, {kind}", *_training_memory(plan)]
    if plan.training.largest:
        lines += ["", "Time of training", *_training_time(plan)]
    return "\n".join([*lines, "", "Sampling", *_sampling(plan)])


def _sizes(plan: Plan) -> list[str]:
    codec, forward = plan.codec, f"{plan.forward_flops / 1e9:,.4g} GFLOP a forward"
    if isinstance(codec, CodecCost):
        codec = (
            f"{codec.parameters / 1e6:,.1f}M parameters, an image of "
            f"{codec.size[0]}x{codec.size[1]}: encode {codec.encode_flops / 1e9:,.4g}, "
            f"decode {codec.decode_flops / 1e9:,.4g} GFLOP"
        )
    network = f"{plan.parameters / 1e6:,.1f}M parameters, {forward} of {plan.length} tokens"
    return [row("network", network), row("codec", codec)]


def _training_memory(plan: Plan) -> list[str]:
    plain, again = plan.plain, plan.checkpointed
    return [
        row("weights, gradients, optimiser, average",
            f"{gib(plan.states)}, {plan.states // plan.parameters} bytes a parameter"),
        row("activations of a sample, one unroll step", f"{gib(plain.needed.per_sample)}; "
            f"{gib(again.needed.per_sample)} with gradient checkpointing"),
        row("usable", f"{gib(plan.room)} ({USABLE:.0%} of {plan.card.memory:g} GiB)"),
        row("largest mini_batch_size",
            f"{plain.largest}; {again.largest} with gradient checkpointing"),
        *(_advice(plan) if plan.training.largest else _too_large(plan)),
    ]  # fmt: skip


def _advice(plan: Plan) -> list[str]:
    """Whether the run file's mini-batch fits, and what to set if not."""
    training, label = plan.training, f"mini_batch_size = {plan.mini}"
    needed = gib(training.needed.at(plan.mini))
    if plan.share % plan.mini:
        return [row(label, f"does not divide the {plan.share} samples a GPU has in a step: "
                    f"set it to {training.best}")]  # fmt: skip
    if plan.mini <= training.largest:
        extra = " with gradient_checkpointing = true" if plan.checkpointing else ""
        larger = f"; {training.best} would fit, too" if training.best > plan.mini else ""
        return [row(label, f"fits{extra}: {needed}{larger}")]
    change = f"trainer.mini_batch_size = {training.best}"
    change += ", trainer.gradient_checkpointing = true" if plan.checkpointing else ""
    lines = [row(label, f"does not fit: {needed}"), row("set", change)]
    if not plan.checkpointing and plan.checkpointed.largest >= plan.mini:
        lines += [row("or", "trainer.gradient_checkpointing = true, a third more time")]
    return lines


def _too_large(plan: Plan) -> list[str]:
    need = plan.checkpointed.needed.at(1)
    others = [key for key, card in CARDS.items()
              if card.memory * GIB * USABLE >= need and (card.bf16 or not plan.bf16)]  # fmt: skip
    change = "a smaller net.dim or net.depth"
    if plan.states >= 20 * plan.parameters:
        saved = 4 * plan.parameters
        enough = ", which is enough" if need - saved <= plan.room else ""
        change += f" or trainer.ema_decay = 0 (saves {gib(saved)}{enough})"
    return [
        row("too large for this card", f"one sample needs {gib(need)} with gradient checkpointing"),
        row("change", change),
        row("or use", ", ".join(others) or "no card of the table holds it"),
    ]


def _training_time(plan: Plan) -> list[str]:
    step = plan.step_seconds
    samples = step.per_second(plan.batch_size)
    again = ", forward computed twice" if plan.checkpointing else ""
    lines = [
        f"  {plan.train_rate.source}",
        row("optimiser step", f"{between(step)}, {plan.batch_size} samples, "
            f"{plan.step_flops / 1e12:,.3g} TFLOP{again}"),
        row("samples/s", between(samples, amount)),
        row("tokens/s", between(samples.times(plan.length), amount)),
    ]  # fmt: skip
    if plan.gpus > 1:
        lines.append(f"  {plan.gpus} GPUs are counted as {plan.gpus} times one; exchanging "
                     "gradients costs some of that")  # fmt: skip
    epochs = ""
    if plan.images:
        epoch = step.times(plan.images / plan.batch_size)
        lines.append(row(f"an epoch of {plan.images:,} images", between(epoch)))
        epochs = f", {plan.max_steps * plan.batch_size / plan.images:,.3g} epochs"
    if plan.max_steps:
        whole = between(step.times(plan.max_steps))
        lines.append(row(f"max_steps = {plan.max_steps:,}", whole + epochs))
    elif not plan.images:
        lines.append(row("max_steps = 0", "until stopped; --images N gives the time of an epoch"))
    return lines


def _sampling(plan: Plan) -> list[str]:
    if not plan.sampling_largest:
        need = gib(plan.sampling.at(1))
        return [row("too large for this card", f"one image needs {need} of {gib(plan.room)}")]
    batch = min(LARGE_BATCH, plan.sampling_largest)
    work = plan.sample_rate.seconds(plan.sampling_flops)
    lines = [
        row("memory", f"{gib(plan.sampling.at(1))} for one image, "
            f"{gib(plan.sampling.at(batch))} for {batch}"),
        row("largest batch", f"{plan.sampling_largest}"),
    ]  # fmt: skip
    codec = plan.codec if isinstance(plan.codec, CodecCost) else None
    if codec and plan.decode_bytes > plan.room:
        lines.append(row("decoding does not fit", f"it needs {gib(plan.decode_bytes)}"))
    told = {plan.train_rate.source}
    if plan.sample_rate.source not in told:
        lines.append(f"  {plan.sample_rate.source}")
    lines.append(row(f"{plan.steps} steps, an image at batch {batch}", between(work)))
    lines.append(row(f"{plan.steps} steps, batch 1", f"at least {_single(plan, work)}"))
    if codec:
        if plan.decode_rate.source not in told | {plan.sample_rate.source}:
            lines.append(f"  {plan.decode_rate.source}")
        lines.append(
            row("decoding, an image", between(plan.decode_rate.seconds(codec.decode_flops)))
        )
    return lines


def _single(plan: Plan, work: Span) -> str:
    """One image alone: every step reads all weights; nor is it faster than its FLOPs allow."""
    if not plan.card.bandwidth:
        return f"{duration(work.least)} (its arithmetic; kernel launches add to it)"
    reading = plan.steps * plan.parameters * (2 if plan.bf16 else 4) / (plan.card.bandwidth * 1e9)
    reason = "reading the weights" if reading > work.least else "its arithmetic"
    return f"{duration(max(reading, work.least))} ({reason}; kernel launches add to it)"
