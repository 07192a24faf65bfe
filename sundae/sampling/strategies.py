"""Which tokens take a new value in a step. The loop around it is `sundae.sampling.loop.sample`.

A strategy ranks the tokens of each sample and says how many of the first take a fresh draw. What it
does is a function of the sample's seed, the step and what the network says, never of the batch.
"""

from __future__ import annotations

import functools
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from sundae.config.sections import SamplingConfig, StrategyName
from sundae.prior.categorical import seeded_uniforms
from sundae.sampling.schedule import Schedule

# Streams of noise within one sample: one for the first tokens, then two a step.
_START, _DRAW, _CHOOSE = 0, 1, 2


def starting_tokens(seeds: Tensor, length: int, vocab_size: int) -> Tensor:
    """Uniform tokens, one row a seed: (batch,) int64 -> (batch, length) int64."""
    return (seeded_uniforms(seeds, _START, length) * vocab_size).long()


def draw_noise(seeds: Tensor, step: int | Tensor, length: int) -> Tensor:
    """(batch, length) float32 in [0, 1): what the fresh values of a step are drawn with."""
    return seeded_uniforms(seeds, 2 * step + _DRAW, length)


class Rows(NamedTuple):
    """Everything that has a row per sample, so that it is indexed together.

    Attributes:
        home: (batch,) int64, where the row goes in the batch that was asked for.
        seeds: (batch,) int64.
        classes: (batch,) int64 or None.
        start: (batch, length) int64, the tokens before the first step.
        tokens: (batch, length) int64, as they are now.
        free: (batch, length) bool, the tokens that may change.
        offered: (batch, length) bool, the tokens that were offered a value in the last step.
        settled: (batch, length) bool, those that were since the sample last changed.
        served: (batch,) int64, how many offers there were in all steps so far.
        done: (batch,) bool, the samples that change no more although they are still here.
    """

    home: Tensor
    seeds: Tensor
    classes: Tensor | None
    start: Tensor
    tokens: Tensor
    free: Tensor
    offered: Tensor
    settled: Tensor
    served: Tensor
    done: Tensor

    def taken(self, places: Tensor) -> Rows:
        """The rows at `places` (count,) int64, in that order."""
        parts = (None if part is None else part.index_select(0, places) for part in self)
        return Rows(*parts)  # type: ignore[arg-type]

    def moved(
        self, tokens: Tensor, offered: Tensor, settled: Tensor, served: Tensor, done: Tensor
    ) -> Rows:
        """The same samples after a step."""
        return self._replace(
            tokens=tokens, offered=offered, settled=settled, served=served, done=done
        )


class Turn(NamedTuple):
    """A step, as a strategy sees it: tensors on the device, so that one compiled step serves all.

    Attributes:
        rows: the samples.
        counts: (batch,) int64, how many tokens of each sample take a fresh draw.
        step: () int64, from 0.
        temperature, guidance: () float32, of the step.
        choice_temperature: () float32, of the step.
        may_stop: () bool, whether a sample may be called done after this step.
        layout: what the strategy knows of the grid; see `Strategy.layout`.
    """

    rows: Rows
    counts: Tensor
    step: Tensor
    temperature: Tensor
    guidance: Tensor
    choice_temperature: Tensor
    may_stop: Tensor
    layout: Tensor | None

    def noise(self) -> Tensor:
        """(batch, length) float32 in [0, 1), independent of what values are drawn with."""
        return seeded_uniforms(self.rows.seeds, 2 * self.step + _CHOOSE, self.rows.tokens.shape[1])


def counted(free: Tensor, share: float) -> Tensor:
    """How many tokens a share is: the nearest number, at least one of them unless the share is 0.

    Args:
        free: (...) int64, how many tokens may change.
        share: in [0, 1].

    Returns:
        (...) int64, from 0 to `free`.
    """
    if share == 0:
        return torch.zeros_like(free)
    return (free.double() * share).round().long().clamp_(min=1).minimum(free)


class Strategy:
    """The paper's own choice (arXiv 2206.12351): a random proportion of the tokens.

    It is also the base of the other strategies, which say what they do differently.
    """

    # Draw the most likely value whatever the temperature.
    greedy: ClassVar[bool] = False

    def sees_logits(self, step: int) -> bool:
        """Whether `rank` needs logits; if not, they are computed for the chosen tokens only."""
        return False

    def count(self, schedule: Schedule, step: int, free: Tensor) -> Tensor:
        """How many tokens of a sample take a fresh draw in a step whose proportion is not 0.

        Args:
            free: (...) int64, how many tokens of a sample may change.

        Returns:
            (...) int64, from 0 to `free`.
        """
        return counted(free, schedule.proportion_at(step))

    def layout(self, grid: tuple[int, int], device: torch.device) -> Tensor | None:
        """What `rank` has to know of the (height, width) that the tokens make in raster order."""
        return None

    def rank(self, turn: Turn, logits: Tensor | None) -> Tensor:
        """(batch, length) numbers: the tokens with the lowest ones take a fresh draw.

        It runs compiled: functions of tensors, and no question to the device.

        Args:
            logits: (batch, length, vocab) for the tokens as they are, where `sees_logits`.
        """
        return turn.noise()

    def others(self, rows: Rows) -> Tensor:
        """(batch, length) int64: the values of tokens that take no fresh draw.

        Tokens that may not change must be as they are; they are so from the start.
        """
        return rows.tokens


class Confidence(Strategy):
    """The tokens that the network finds least likely first, with Gumbel noise that fades.

    MaskGIT's rule (arXiv 2202.04200) for tokens that may be revised: what counts is the log
    likelihood of the value a token has, plus choice_temperature times Gumbel noise. Choosing by the
    value makes likely values stay longer, so this seeks modes; only where the noise outweighs the
    likelihoods are samples distributed as with a random choice.
    """

    def sees_logits(self, step: int) -> bool:
        return True

    def rank(self, turn: Turn, logits: Tensor | None) -> Tensor:
        assert logits is not None
        logits = logits.float()
        own = logits.gather(-1, turn.rows.tokens[..., None])[..., 0]
        gumbel = -torch.log(-torch.log(turn.noise() + 2.0**-25))
        return own - logits.logsumexp(-1) + turn.choice_temperature * gumbel


class Halton(Strategy):
    """A fixed order in which any stretch is spread evenly over the grid, taken in turns.

    The Halton scheduler (arXiv 2503.17076): tokens that are drawn at once are far from each other,
    where they depend on each other least. Each step goes on where the last one stopped, around and
    around, so no token waits longer than another.
    """

    def layout(self, grid: tuple[int, int], device: torch.device) -> Tensor:
        return halton_order(*grid, device)

    def rank(self, turn: Turn, logits: Tensor | None) -> Tensor:
        rows, order = turn.rows, turn.layout
        assert order is not None
        number = rows.free[:, order].cumsum(1) - 1  # of each token among those that may change
        total = rows.free.sum(1, keepdim=True).clamp_(min=1)
        place = (number - rows.served[:, None]).remainder(total)
        return torch.empty_like(place).scatter_(1, order.expand_as(place), place)


@functools.cache
def halton_order(height: int, width: int, device: torch.device) -> Tensor:
    """(height*width,) int64: the cells of a grid, by raster number, in the order in which the
    Halton sequence of bases 2 and 3 visits them. Kept, since it takes a while.
    """
    order: dict[int, None] = {}
    point = 0
    while len(order) < height * width:
        point += 1
        row = int(_radical_inverse(point, 2) * height)
        order.setdefault(row * width + int(_radical_inverse(point, 3) * width))
    return torch.tensor(list(order), device=device)


def _radical_inverse(number: int, base: int) -> float:
    """The digits of a number mirrored at the decimal point, in [0, 1)."""
    value, scale = 0.0, 1.0
    while number:
        number, digit = divmod(number, base)
        scale /= base
        value += digit * scale
    return value


class Argmax(Strategy):
    """Argmax-unrolled decoding (SUNDAE, arXiv 2112.06749): the sure tokens first, then the others.

    In even steps the proportion of tokens that the network is surest about take their most likely
    value. In odd steps the tokens that had to wait take theirs, predicted from what the sure ones
    have become. Nothing but the starting noise is random and the temperature does not count: this
    finds modes and does not sample.
    """

    greedy = True

    def sees_logits(self, step: int) -> bool:
        return step % 2 == 0

    def count(self, schedule: Schedule, step: int, free: Tensor) -> Tensor:
        sure = counted(free, schedule.proportion_at(step - step % 2))
        if step % 2 == 0:
            return sure
        return torch.where(sure < free, free - sure, free)

    def rank(self, turn: Turn, logits: Tensor | None) -> Tensor:
        if logits is None:
            return turn.rows.offered.float()
        logits = logits.float()
        return logits.logsumexp(-1) - logits.amax(-1)


class Renoise(Strategy):
    """Everything anew, and a shrinking share set back to the sample's own first noise.

    After Paella (arXiv 2211.07292). In step n = 1 .. N a share (n/N)^((1-p)/p) of the tokens keep a
    fresh draw, where p is the proportion: from 1/N to all of them, evenly at p = 1/2, sooner above
    it, all at once at 1. The others hold the value the sample started with.
    """

    def count(self, schedule: Schedule, step: int, free: Tensor) -> Tensor:
        proportion = schedule.proportion_at(step)
        kept = ((step + 1) / schedule.steps) ** ((1 - proportion) / proportion)
        return counted(free, kept)

    def others(self, rows: Rows) -> Tensor:
        return rows.start


STRATEGIES: dict[StrategyName, Strategy] = {
    "random": Strategy(),
    "confidence": Confidence(),
    "halton": Halton(),
    "argmax": Argmax(),
    "renoise": Renoise(),
}


def schedule_of(sampling: SamplingConfig) -> Schedule:
    """The run file's [sampling] section as the sampler takes it, its strategy no longer 'auto'."""
    temperature, end_temperature = sampling.temperature_ramp
    proportion, end_proportion = sampling.proportion_ramp
    guidance, end_guidance = sampling.guidance_ramp
    return Schedule(
        steps=sampling.steps,
        temperature=temperature,
        end_temperature=end_temperature,
        sample_proportion=proportion,
        end_sample_proportion=end_proportion,
        min_steps=sampling.min_steps,
        early_stop=sampling.early_stop,
        strategy=sampling.resolved_strategy,
        temperature_curve=sampling.temperature_curve,
        proportion_curve=sampling.proportion_curve,
        guidance=guidance,
        end_guidance=end_guidance,
        guidance_curve=sampling.guidance_curve,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        choice_temperature=sampling.choice_temperature,
    )
