"""Sampling: one refinement step, and the loop around it that yields tokens as they improve."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sundae.categorical import draw_tokens, seeded_uniforms

# (tokens (batch, length), classes (batch,) or None) -> logits (batch, length, vocab)
ClassDenoise = Callable[[Tensor, Tensor | None], Tensor]

# Streams of noise within one sample: one for the first tokens, then two a step.
_START, _DRAW, _CHOOSE = 0, 1, 2


@dataclass(frozen=True)
class Schedule:
    """How a sample is refined.

    Attributes:
        steps: refinement steps at most, at least 1.
        temperature, end_temperature: of the draws in the first and in the last step, at least 0.
        sample_proportion, end_sample_proportion: share of tokens that take their fresh draw in the
            first and in the last step, in [0, 1].
        min_steps: steps before a sample may be called done.
        early_stop: stop a sample once a step after `min_steps` changes none of its tokens.
    """

    steps: int
    temperature: float = 1.0
    end_temperature: float = 1.0
    sample_proportion: float = 1.0
    end_sample_proportion: float = 1.0
    min_steps: int = 0
    early_stop: bool = True

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")

    def temperature_at(self, step: int) -> float:
        """Temperature of step 0 .. steps-1, a linear ramp that meets both ends."""
        return self._ramp(self.temperature, self.end_temperature, step)

    def proportion_at(self, step: int) -> float:
        """Update proportion of step 0 .. steps-1, a linear ramp that meets both ends."""
        return self._ramp(self.sample_proportion, self.end_sample_proportion, step)

    def _ramp(self, start: float, end: float, step: int) -> float:
        return start + (end - start) * step / max(1, self.steps - 1)


@dataclass(frozen=True)
class Refinement:
    """The state after a step.

    Attributes:
        tokens: (batch, length) int64, all samples in the order they were asked for. A tensor of its
            own: later steps do not write to it.
        step: how many steps have been done; 0 is the starting noise.
        running: how many samples are not done yet.
    """

    tokens: Tensor
    step: int
    running: int


@dataclass
class _Rows:
    """Everything that has a row per sample, so that it is indexed together."""

    index: Tensor  # where the row goes in the batch that was asked for
    tokens: Tensor
    seeds: Tensor
    classes: Tensor | None
    frozen: Tensor | None

    def keep(self, going: Tensor) -> _Rows:
        """The rows where `going` (batch,) bool is true."""
        parts = (self.index, self.tokens, self.seeds, self.classes, self.frozen)
        return _Rows(*(None if part is None else part[going] for part in parts))  # type: ignore[arg-type]


def starting_tokens(seeds: Tensor, length: int, vocab_size: int) -> Tensor:
    """Uniform tokens, one row a seed: (batch,) int64 -> (batch, length) int64."""
    return (seeded_uniforms(seeds, _START, length) * vocab_size).long()


def refine(
    logits: Tensor,
    tokens: Tensor,
    *,
    seeds: Tensor,
    step: int,
    temperature: float,
    proportion: float,
    frozen: Tensor | None = None,
) -> Tensor:
    """One step: a fresh draw for every token, taken by a random `proportion` of them.

    Args:
        logits: (batch, length, vocab) for `tokens`.
        tokens: (batch, length) int64.
        seeds: (batch,) int64, with `step` the source of all randomness.
        step: number of the step, from 0.
        temperature: of the draw.
        proportion: chance of each token to take its draw; 0 changes none, 1 offers all a change.
        frozen: (batch, length) bool; true never changes.

    Returns:
        (batch, length) int64, a new tensor.
    """
    length = tokens.shape[1]
    drawn = draw_tokens(logits, seeded_uniforms(seeds, 2 * step + _DRAW, length), temperature)
    takes = seeded_uniforms(seeds, 2 * step + _CHOOSE, length) < proportion
    if frozen is not None:
        takes &= ~frozen
    return torch.where(takes, drawn, tokens)


def sample(
    denoise: ClassDenoise,
    *,
    seeds: Tensor,
    length: int,
    vocab_size: int,
    schedule: Schedule,
    classes: Tensor | None = None,
    tokens: Tensor | None = None,
    frozen: Tensor | None = None,
) -> Iterator[Refinement]:
    """Refine all tokens of a batch in parallel (arXiv 2206.12351), step by step.

    Sample i depends on seeds[i] and on row i of the other arguments alone: not on the batch it is
    computed in, nor on samples that are done and have left it.

    Args:
        denoise: tokens (batch, length), classes (batch,) or None -> logits (batch, length, vocab).
        seeds: (batch,) int64; its device is where everything happens.
        length: tokens a sample.
        vocab_size: number of distinct tokens.
        schedule: steps, temperatures, proportions, stopping.
        classes: (batch,) int64 for a conditional network.
        tokens: (batch, length) int64 to start from; uniform noise unless given.
        frozen: (batch, length) bool; these positions keep the value they start with.

    Returns:
        an iterator of the Refinement after 0, 1, 2 .. steps, until all steps are done or all
        samples are.

    Raises:
        ValueError: frozen without tokens (frozen noise), or rows that do not match the seeds.
    """
    if frozen is not None and tokens is None:
        raise ValueError("frozen positions need tokens to keep")
    for name, value in (("classes", classes), ("tokens", tokens), ("frozen", frozen)):
        if value is not None and len(value) != len(seeds):
            raise ValueError(f"{name} has {len(value)} rows for {len(seeds)} seeds")
    start = starting_tokens(seeds, length, vocab_size) if tokens is None else tokens.clone()
    index = torch.arange(len(seeds), device=seeds.device)
    return _refine_all(denoise, _Rows(index, start, seeds, classes, frozen), schedule)


@torch.no_grad()
def _refine_all(denoise: ClassDenoise, rows: _Rows, schedule: Schedule) -> Iterator[Refinement]:
    """The loop of `sample`."""
    everything = rows.tokens
    yield Refinement(everything, 0, len(rows.index))
    for step in range(schedule.steps):
        updated = refine(
            denoise(rows.tokens, rows.classes),
            rows.tokens,
            seeds=rows.seeds,
            step=step,
            temperature=schedule.temperature_at(step),
            proportion=schedule.proportion_at(step),
            frozen=rows.frozen,
        )
        going = (updated != rows.tokens).any(dim=1)
        rows.tokens = updated
        everything = everything.index_copy(0, rows.index, updated)
        if schedule.early_stop and step >= schedule.min_steps and not bool(going.all()):
            rows = rows.keep(going)
        yield Refinement(everything, step + 1, len(rows.index))
        if len(rows.index) == 0:
            return
