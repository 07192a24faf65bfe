"""Which tokens take a new value in a step. The loop around it is `sundae.sampling.loop.sample`.

A strategy ranks the tokens of each sample and decides how many of the first take a fresh draw, by
the sample's seed, the step and the network's logits, never by the batch. A new one is a subclass of
`Strategy` here, an entry of STRATEGIES, and its name in `sundae.config.sections.StrategyName`.
"""

from __future__ import annotations

import functools
import math
from typing import ClassVar

import torch
from torch import Tensor

from sundae.config.sections import SamplingConfig, StrategyName
from sundae.sampling.state import StepContext

# Shares of noise between which there is churn: above, little is there to correct, and below, more
# would be drawn at once than is right.
_CHURNED = (0.05, 0.6)


class Strategy:
    """The paper's own choice (arXiv 2206.12351): a random proportion of the tokens.

    It is also the base of the other strategies, which override what they do differently.
    """

    # Draw the most likely value whatever the temperature.
    greedy: ClassVar[bool] = False

    # Whether a sample is done once no token takes another value when it is offered one.
    converges: ClassVar[bool] = True

    def needs_logits(self, step: int) -> bool:
        """Whether `rank` needs logits; if not, they are computed for the chosen tokens only."""
        return False

    def count(self, schedule: SamplingConfig, step: int, free: Tensor) -> Tensor:
        """How many tokens of a sample take a fresh draw in a step whose proportion is not 0.

        Args:
            schedule: the settings.
            step: from 0.
            free: (...) int64, how many tokens of a sample may change.

        Returns:
            (...) int64, from 0 to `free`.
        """
        return counted(free, schedule.proportion_at(step))

    def layout(self, grid: tuple[int, int], device: torch.device) -> Tensor | None:
        """What `rank` needs of the (height, width) grid that the tokens form in raster order."""
        return None

    def rank(self, context: StepContext, logits: Tensor | None) -> Tensor:
        """(batch, length) numbers: the tokens with the lowest ones take a fresh draw.

        It runs compiled: functions of tensors, without host-device synchronisation.

        Args:
            context: the samples and the step.
            logits: (batch, length, vocab) of the current tokens, where `needs_logits`.
        """
        return context.noise()

    def combine(self, context: StepContext, fresh: Tensor, chosen: Tensor, codes: int) -> Tensor:
        """(batch, length) int64: the tokens after the step. It runs compiled, as `rank` does.

        Tokens that may not change must keep their values, which they have from the start.

        Args:
            context: the samples and the step.
            fresh: (batch, length) int64, the draws of the chosen tokens; of others anything.
            chosen: (batch, length) bool, which tokens were drawn.
            codes: size of the vocabulary.
        """
        return torch.where(chosen, fresh, context.state.tokens)


class Confidence(Strategy):
    """The tokens that the network finds least likely first, with Gumbel noise that fades.

    MaskGIT's rule (arXiv 2202.04200) for tokens that may be revised: the rank is the log likelihood
    of a token's value plus choice_temperature times Gumbel noise. Choosing by the value makes
    likely values stay longer, so this seeks modes; only where the noise outweighs the likelihoods
    are samples distributed as with a random choice.
    """

    def needs_logits(self, step: int) -> bool:
        return True

    def rank(self, context: StepContext, logits: Tensor | None) -> Tensor:
        assert logits is not None
        logits = logits.float()
        own = logits.gather(-1, context.state.tokens[..., None])[..., 0]
        gumbel = -torch.log(-torch.log(context.noise() + 2.0**-25))
        return own - logits.logsumexp(-1) + context.choice_temperature * gumbel


class Halton(Strategy):
    """A fixed order in which any stretch is spread evenly over the grid.

    The Halton scheduler (arXiv 2503.17076): tokens that are drawn together are far from each other,
    where they depend on each other least. Each step goes on where the last one stopped, around and
    around, so no token waits longer than another.
    """

    def layout(self, grid: tuple[int, int], device: torch.device) -> Tensor:
        return halton_order(*grid, device)

    def rank(self, context: StepContext, logits: Tensor | None) -> Tensor:
        state, order = context.state, context.layout
        assert order is not None
        number = state.free[:, order].cumsum(1) - 1  # of each token among those that may change
        total = state.free.sum(1, keepdim=True).clamp_(min=1)
        place = (number - state.num_resampled[:, None]).remainder(total)
        return torch.empty_like(place).scatter_(1, order.expand_as(place), place)


class Argmax(Strategy):
    """Argmax-unrolled decoding (SUNDAE, arXiv 2112.06749): the sure tokens first, then the others.

    In even steps the proportion of tokens that the network is surest about take their most likely
    value. In odd steps the other tokens take theirs, predicted from what the sure ones have become.
    Nothing but the starting noise is random and the temperature has no effect: this finds modes and
    does not sample.
    """

    greedy = True

    def needs_logits(self, step: int) -> bool:
        return step % 2 == 0

    def count(self, schedule: SamplingConfig, step: int, free: Tensor) -> Tensor:
        sure = counted(free, schedule.proportion_at(step - step % 2))
        if step % 2 == 0:
            return sure
        return torch.where(sure < free, free - sure, free)

    def rank(self, context: StepContext, logits: Tensor | None) -> Tensor:
        if logits is None:
            return context.state.resampled.float()
        logits = logits.float()
        return logits.logsumexp(-1) - logits.amax(-1)


class Renoise(Strategy):
    """Everything anew, and a shrinking share set back to the sample's own first noise.

    After Paella (arXiv 2211.07292). In step n = 1 .. N a share (n/N)^((1-p)/p) of the tokens have a
    fresh draw, where p is the proportion: from 1/N to all of them, evenly at p = 1/2, sooner above
    it, all at once at 1. The others hold the value the sample started with.
    """

    def count(self, schedule: SamplingConfig, step: int, free: Tensor) -> Tensor:
        proportion = schedule.proportion_at(step)
        fresh = ((step + 1) / schedule.steps) ** ((1 - proportion) / proportion)
        return counted(free, fresh)

    def combine(self, context: StepContext, fresh: Tensor, chosen: Tensor, codes: int) -> Tensor:
        return torch.where(chosen, fresh, context.state.start)


class Posterior(Strategy):
    """Ancestral sampling: every token goes where the reverse of the corruption would take it.

    Tokens of which a share a is clean, and the others uniform, come from tokens of which a larger
    share b is. Given a draw of what a token was before all corruption, q(x_b | x_a, x_0) says in
    closed form how likely it is to be clean already, still what it is now, or other noise (D3PM,
    arXiv 2107.03006, equation 3, for uniform transitions). b is `clean_share` after the step. The
    draws of one step do not know of each other, so the more steps, the more exactly samples follow
    the network. A token may change until the end, so no sample is done before.

    Churn corrects what earlier steps got wrong: instead of following the posterior, some tokens
    take the draw and are corrupted again, to the share b (the Psi-sampler of Duo).
    """

    converges = False

    def count(self, schedule: SamplingConfig, step: int, free: Tensor) -> Tensor:
        return free

    def combine(self, context: StepContext, fresh: Tensor, chosen: Tensor, codes: int) -> Tensor:
        tokens, after = context.state.tokens, context.clean_after
        before = context.clean_before.minimum(after)
        ratio = _ratio(before, after)
        # How likely each is, times what they sum to.
        clean = after * (1 - ratio) + codes * before * (fresh == tokens)
        same, noise = ratio * (1 - after), (1 - ratio) * (1 - after)
        point = context.noise() * (clean + same + noise)
        # Within the part that stands for noise the point is uniform, and so tells which code.
        others = torch.where(
            point < clean + same, tokens, _code(_ratio(point - clean - same, noise), codes)
        )
        # Where no noise is left but the draw differs, all is 0, and the draw counts.
        moved = torch.where(point <= clean, fresh, others)
        point = context.churn_noise()
        churned = point < context.churn
        point = _ratio(point, context.churn)
        again = torch.where(point < after, fresh, _code(_ratio(point - after, 1 - after), codes))
        return torch.where(chosen, torch.where(churned, again, moved), tokens)


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole, and 0 for 0 / 0."""
    return part / whole.clamp(min=torch.finfo(whole.dtype).tiny)


def _code(uniform: Tensor, codes: int) -> Tensor:
    """A uniform token from a uniform number in [0, 1), and some token from any other number."""
    return (uniform.clamp(0, 1) * codes).long().clamp(max=codes - 1)


STRATEGIES: dict[StrategyName, Strategy] = {
    "random": Strategy(),
    "confidence": Confidence(),
    "halton": Halton(),
    "argmax": Argmax(),
    "renoise": Renoise(),
    "posterior": Posterior(),
}


def clean_share(schedule: SamplingConfig, done: int) -> float:
    """Share of tokens that are no noise after n of N steps: 1 - ((N-n)/N)^(p/(1-p)).

    p is the proportion in step n. The share grows evenly at p = 1/2; above it sooner, so that there
    are more steps for the last noise; at 1 all at once.
    """
    proportion = schedule.proportion_at(max(0, done - 1))
    power = proportion / (1 - proportion) if proportion < 1 else math.inf
    return 1 - (1 - done / schedule.steps) ** power


def churn_at(schedule: SamplingConfig, done: int) -> float:
    """Chance of churn after n steps; 0 but for shares of noise in which it helps."""
    low, high = _CHURNED
    return schedule.churn if low <= 1 - clean_share(schedule, done) <= high else 0.0


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


@functools.cache
def halton_order(height: int, width: int, device: torch.device) -> Tensor:
    """(height*width,) int64: the cells of a grid, by raster number, in the order in which the
    Halton sequence of bases 2 and 3 visits them. Cached, since it takes a while.
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
