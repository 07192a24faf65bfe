"""What one step of sampling works on: the samples, and the numbers of the step."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sundae.prior.categorical import seeded_uniforms

# Streams of noise within one sample: one for the first tokens, then two a step.
_START, _DRAW, _CHOOSE = 0, 1, 2

# The first of the streams that churn has, one a step; steps are far fewer.
_CHURN = 2**30

# The stream that selects the tokens of a variation; no step has it, since steps count from 0.
VARY = -1


class SampleState(NamedTuple):
    """Everything that has a row per sample, so that it is indexed together.

    Attributes:
        batch_index: (batch,) int64, row of the sample in the first batch.
        seeds: (batch,) int64.
        classes: (batch,) int64 or None.
        start: (batch, length) int64, tokens before the first step.
        free: (batch, length) bool, tokens that may change.
        tokens: (batch, length) int64, tokens after the last step.
        resampled: (batch, length) bool, tokens that were offered a fresh value in the last step.
        converged: (batch, length) bool, tokens that were since the sample last changed.
        num_resampled: (batch,) int64, offers in all steps so far.
        done: (batch,) bool, samples that no longer change.
    """

    batch_index: Tensor
    seeds: Tensor
    classes: Tensor | None
    start: Tensor
    free: Tensor
    tokens: Tensor
    resampled: Tensor
    converged: Tensor
    num_resampled: Tensor
    done: Tensor

    @classmethod
    def initial(
        cls, start: Tensor, seeds: Tensor, classes: Tensor | None, frozen: Tensor | None
    ) -> SampleState:
        """The state before the first step, of `start` (batch, length) int64."""
        nothing = torch.zeros_like(start, dtype=torch.bool)
        return cls(
            batch_index=torch.arange(len(seeds), device=seeds.device),
            seeds=seeds,
            classes=classes,
            start=start,
            free=~nothing if frozen is None else ~frozen,
            tokens=start,
            resampled=nothing,
            converged=nothing,
            num_resampled=torch.zeros_like(seeds),
            done=torch.zeros_like(seeds, dtype=torch.bool),
        )

    def select(self, rows: Tensor) -> SampleState:
        """The samples at `rows` (count,) int64, in that order."""
        parts = (None if part is None else part.index_select(0, rows) for part in self)
        return SampleState(*parts)  # type: ignore[arg-type]

    def updated(self, changes: tuple[Tensor, ...]) -> SampleState:
        """The same samples after a step, which makes new `tokens` and what follows them."""
        return SampleState(*self[: -len(changes)], *changes)  # type: ignore[arg-type]


class StepContext(NamedTuple):
    """A step as a strategy sees it: tensors on the device, so that one compiled step serves all.

    Attributes:
        state: the samples.
        counts: (batch,) int64, tokens of each sample that take a fresh draw.
        step: () int64, from 0.
        temperature, guidance, choice_temperature: () float32, of the step.
        clean_before, clean_after: () float32, share of tokens that are no noise.
        churn: () float32, chance that a token is drawn and corrupted again.
        may_stop: () bool, whether a sample may be called done after this step.
        layout: what the strategy knows of the grid; see `Strategy.layout`.
    """

    state: SampleState
    counts: Tensor
    step: Tensor
    temperature: Tensor
    guidance: Tensor
    choice_temperature: Tensor
    clean_before: Tensor
    clean_after: Tensor
    churn: Tensor
    may_stop: Tensor
    layout: Tensor | None

    def noise(self) -> Tensor:
        """(batch, length) float32 in [0, 1), independent of what values are drawn with."""
        state = self.state
        return seeded_uniforms(state.seeds, 2 * self.step + _CHOOSE, state.tokens.shape[1])

    def churn_noise(self) -> Tensor:
        """The same, independent of both."""
        return seeded_uniforms(self.state.seeds, self.step + _CHURN, self.state.tokens.shape[1])


def starting_tokens(seeds: Tensor, length: int, vocab_size: int) -> Tensor:
    """Uniform tokens, one row a seed: (batch,) int64 -> (batch, length) int64."""
    return (seeded_uniforms(seeds, _START, length) * vocab_size).long()


def draw_noise(seeds: Tensor, step: int | Tensor, length: int) -> Tensor:
    """(batch, length) float32 in [0, 1): what the fresh values of a step are drawn with."""
    return seeded_uniforms(seeds, 2 * step + _DRAW, length)
