"""Sampling: the loop that yields tokens as they improve, whatever strategy chooses among them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sundae.common.compiling import Compiled
from sundae.config.sections import SamplingConfig
from sundae.prior.categorical import draw_tokens
from sundae.sampling.polling import DonePoller, PollPolicy
from sundae.sampling.state import SampleState, StepContext, draw_noise, starting_tokens
from sundae.sampling.strategies import STRATEGIES, Strategy, churn_at, clean_share

# A compiled step handles one of this many numbers of tokens: computing logits of a few too many
# costs less than compiling for each number.
_SIZES = 4

# Of all steps; what fewer steps share is not worth compiling.
_SHARE_TO_COMPILE = 1 / 8

# (tokens (batch, length), classes (batch,) or None) -> logits (batch, length, vocab)
ClassDenoise = Callable[[Tensor, Tensor | None], Tensor]

# The same for some positions: (tokens, classes, positions (batch, count)) -> (batch, count, vocab)
DenoiseAt = Callable[[Tensor, Tensor | None, Tensor], Tensor]


@dataclass(frozen=True)
class Refinement:
    """All samples after a step.

    Attributes:
        tokens: (batch, length) int64, in the order of the seeds. Later steps do not write to it.
        step: steps done; 0 is the starting noise.
        num_running: samples that are not done, or were not when the device was last polled.
        is_final: whether this is the last step.
    """

    tokens: Tensor
    step: int
    num_running: int
    is_final: bool


def sample(
    denoise: ClassDenoise,
    *,
    seeds: Tensor,
    length: int,
    vocab_size: int,
    schedule: SamplingConfig,
    classes: Tensor | None = None,
    tokens: Tensor | None = None,
    frozen: Tensor | None = None,
    grid: tuple[int, int] | None = None,
    null_class: int | None = None,
    denoise_at: DenoiseAt | None = None,
    policy: PollPolicy | None = None,
    compiled: Compiled | None = None,
) -> Iterator[Refinement]:
    """Refine all tokens of a batch in parallel (arXiv 2206.12351), step by step.

    Sample i depends on seeds[i] and on row i of the other arguments alone: not on the batch it is
    computed in, nor on samples that are done and have left it, nor on when that was noticed.

    In each step the schedule's strategy offers some of the tokens that may change a value drawn
    from the network's logits. A proportion p of n such tokens are the round(p * n) that come first
    in the strategy's order, at least one unless p is 0.

    Args:
        denoise: tokens (batch, length), classes (batch,) or None -> logits (batch, length, vocab).
        seeds: (batch,) int64; its device is where everything happens.
        length: tokens a sample.
        vocab_size: number of distinct tokens.
        schedule: steps, strategy, temperatures, proportions, guidance, stopping.
        classes: (batch,) int64 for a conditional network.
        tokens: (batch, length) int64 to start from; uniform noise unless given.
        frozen: (batch, length) bool; these positions have the value they start with.
        grid: (height, width) of the tokens in raster order, for strategies that depend on it; one
            row unless given.
        null_class: number of the null class, for guidance.
        denoise_at: as `denoise`, but takes positions (batch, count) as well and returns
            (batch, count, vocab) for them. A strategy that chooses its tokens without logits uses
            it to compute no others; without it the others are computed and dropped.
        policy: when to poll the device for samples that are done, and what batches they leave
            behind; as suits the device unless given.
        compiled: runs the steps, compiled, network and all; the denoisers must be functions of
            tensors then. Few shapes occur: the numbers of tokens are rounded up to quarters.

    Returns:
        an iterator of the Refinement after 0, 1, 2 .. steps, until all steps are done or all
        samples are known to be.

    Raises:
        ValueError: frozen without tokens (frozen noise), rows that do not match the seeds, a grid
            of another length, or guidance without classes or without a null class.
    """
    if frozen is not None and tokens is None:
        raise ValueError("frozen positions need tokens")
    for name, value in (("classes", classes), ("tokens", tokens), ("frozen", frozen)):
        if value is not None and len(value) != len(seeds):
            raise ValueError(f"{name} has {len(value)} rows for {len(seeds)} seeds")
    grid = (1, length) if grid is None else grid
    if grid[0] * grid[1] != length:
        raise ValueError(f"a grid of {grid[0]}x{grid[1]} does not hold {length} tokens")
    if schedule.is_guided and (classes is None or null_class is None):
        raise ValueError("guidance needs classes and the number of the null class")
    start = starting_tokens(seeds, length, vocab_size) if tokens is None else tokens.clone()
    state = SampleState.initial(start, seeds, classes, frozen)
    # Copied to the host once: how many tokens may change in each sample.
    free = torch.full((len(seeds),), length) if frozen is None else state.free.sum(1).cpu()
    table = _StepTable.of(schedule, grid, free, seeds.device, rounded=compiled is not None)
    network = _Network(denoise, denoise_at, null_class)
    policy = policy or PollPolicy.for_device(seeds.device, compiled=compiled is not None)
    return _refine_all(network, state, table, policy, compiled)


@torch.no_grad()
def _refine_all(
    network: _Network,
    state: SampleState,
    table: _StepTable,
    policy: PollPolicy,
    compiled: Compiled | None,
) -> Iterator[Refinement]:
    """The loop of `sample`."""
    tokens, batch = state.tokens, len(state.seeds)
    sizes, poller, last = policy.sizes(batch), DonePoller(policy, batch), len(table.signatures)
    uses = Counter(table.signatures)
    yield Refinement(tokens, 0, batch, is_final=False)
    for step, signature in enumerate(table.signatures):
        context = table.context(state, step)
        if signature is None:
            changes = _settle(context, state.tokens, torch.zeros_like(state.free))
        elif compiled is not None and uses[signature] >= _SHARE_TO_COMPILE * last:
            changes = compiled(_advance, network, table.strategy, signature, context)
        else:
            changes = _advance(network, table.strategy, signature, context)
        state = state.updated(changes)
        tokens = tokens.index_copy(0, state.batch_index, state.tokens)
        if table.check_done[step]:
            num_running = poller.poll(state.done)
            size = min((n for n in sizes if n >= num_running), default=0)
            if size < len(state.seeds):
                # Those that are done fill the batch up, and stay as they are.
                state = state.select(state.done.to(torch.uint8).argsort(stable=True)[:size])
        running = poller.num_running
        yield Refinement(tokens, step + 1, running, is_final=step + 1 == last or running == 0)
        if running == 0:
            return


def _advance(
    network: _Network, strategy: Strategy, signature: _StepSignature, context: StepContext
) -> tuple[Tensor, ...]:
    """One step: what `SampleState.updated` takes. A function of tensors, made to be compiled."""
    state, length = context.state, context.state.tokens.shape[1]
    guidance = context.guidance if signature.guided else None
    all_logits = network.logits(state, guidance) if signature.needs_logits else None
    rank = strategy.rank(context, all_logits).float().masked_fill(~state.free, torch.inf)
    order = rank.argsort(dim=1, stable=True)  # equal ranks in raster order, on every device
    chosen = torch.arange(length, device=order.device) < context.counts[:, None]
    # Ranks that are not numbers come last, even behind the tokens that may not change.
    resampled = torch.zeros_like(state.free).scatter_(1, order, chosen) & state.free
    # All rows have logits at as many positions; the surplus of some is not resampled.
    positions = order[:, : signature.num_positions] if signature.num_positions < length else None
    if all_logits is None:
        logits = network.logits(state, guidance, positions)
    else:
        logits = all_logits if positions is None else _at(all_logits, positions)
    noise = draw_noise(state.seeds, context.step, length)
    drawn = draw_tokens(
        logits,
        noise if positions is None else noise.gather(1, positions),
        0.0 if signature.greedy else context.temperature,
        top_k=signature.top_k,
        top_p=signature.top_p,
    )
    fresh = drawn if positions is None else state.tokens.scatter(1, positions, drawn)
    codes = logits.shape[-1]
    return _settle(context, strategy.combine(context, fresh, resampled, codes), resampled)


def _settle(context: StepContext, updated: Tensor, resampled: Tensor) -> tuple[Tensor, ...]:
    """What `SampleState.updated` takes: done samples stay as they are, others may be done now.

    Args:
        updated: (batch, length) int64, the new tokens.
        resampled: (batch, length) bool, which of them were offered a fresh value.
    """
    state = context.state
    tokens = torch.where(state.done[:, None], state.tokens, updated)
    changed = (tokens != state.tokens).any(dim=1, keepdim=True)
    converged = (state.converged | resampled) & ~changed
    done = state.done | context.may_stop & (converged | ~state.free).all(dim=1)
    return tokens, resampled, converged, state.num_resampled + resampled.sum(1), done


@dataclass(frozen=True)
class _Network:
    """A denoiser with guidance, for all positions or some."""

    denoise: ClassDenoise
    denoise_at: DenoiseAt | None
    null_class: int | None

    def logits(
        self, state: SampleState, guidance: Tensor | None, positions: Tensor | None = None
    ) -> Tensor:
        """(batch, length, vocab), or (batch, count, vocab) at positions (batch, count).

        With guidance g it is null + g * (conditional - null), both from one forward pass of twice
        the rows (classifier-free guidance, arXiv 2207.12598, with 1 + w for g).
        """
        if guidance is None:
            return self._predict(state.tokens, state.classes, positions)
        assert state.classes is not None and self.null_class is not None
        classes = torch.cat((state.classes, torch.full_like(state.classes, self.null_class)))
        twice = None if positions is None else positions.repeat(2, 1)
        both = self._predict(state.tokens.repeat(2, 1), classes, twice)
        conditional, null = both.float().chunk(2)
        return null + guidance * (conditional - null)

    def _predict(self, tokens: Tensor, classes: Tensor | None, positions: Tensor | None) -> Tensor:
        if positions is None:
            return self.denoise(tokens, classes)
        if self.denoise_at is None:
            return _at(self.denoise(tokens, classes), positions)
        return self.denoise_at(tokens, classes, positions)


def _at(logits: Tensor, positions: Tensor) -> Tensor:
    """(batch, length, vocab), (batch, count) int64 -> (batch, count, vocab)"""
    return logits.take_along_dim(positions[..., None], dim=1)


class _StepSignature(NamedTuple):
    """The shapes and operations of a step; steps of one signature are compiled once.

    Attributes:
        num_positions: tokens of each sample that logits are drawn from, at least as many as are
            resampled.
        needs_logits: whether the strategy chooses by the logits.
        guided: whether there are two forward passes.
        greedy: whether draws are the most likely values.
        top_k, top_p: see `sundae.prior.categorical.keep_likely`.
    """

    num_positions: int
    needs_logits: bool
    guided: bool
    greedy: bool
    top_k: int
    top_p: float


@dataclass(frozen=True)
class _StepTable:
    """A schedule computed before the first step, so that no step waits for the device or Python.

    Attributes:
        strategy: of the schedule.
        layout: what it knows of the grid.
        signatures: of each step; None where no token is resampled.
        counts: (steps, batch) int64, on the device as all that follows: tokens to resample.
        steps: (steps,) int64, their numbers.
        values: (6, steps) float32: temperature, guidance, choice temperature, shares of tokens
            that are no noise before and after the step, churn.
        may_stop: (steps,) bool, whether a sample may be called done after the step.
        check_done: the same for the host.
    """

    strategy: Strategy
    layout: Tensor | None
    signatures: list[_StepSignature | None]
    counts: Tensor
    steps: Tensor
    values: Tensor
    may_stop: Tensor
    check_done: list[bool]

    @classmethod
    def of(
        cls,
        schedule: SamplingConfig,
        grid: tuple[int, int],
        free: Tensor,
        device: torch.device,
        *,
        rounded: bool,
    ) -> _StepTable:
        """The table of samples with `free` (batch,) int64, CPU, tokens that may change each.

        With `rounded`, numbers of positions are rounded up, so that signatures are few.
        """
        strategy, steps = STRATEGIES[schedule.resolved_strategy], range(schedule.steps)
        counts = torch.stack(
            [
                torch.zeros_like(free)
                if schedule.proportion_at(step) == 0
                else strategy.count(schedule, step, free)
                for step in steps
            ]
        )
        length = grid[0] * grid[1]
        unit = math.ceil(length / _SIZES) if rounded else 1
        signatures: list[_StepSignature | None] = []
        for step, row in enumerate(counts.tolist()):
            signature = _StepSignature(
                num_positions=min(length, math.ceil(max(row, default=0) / unit) * unit),
                needs_logits=strategy.needs_logits(step),
                guided=schedule.guidance_at(step) != 1,
                greedy=strategy.greedy or schedule.temperature_at(step) == 0,
                top_k=schedule.top_k,
                top_p=schedule.top_p,
            )
            signatures.append(signature if signature.num_positions else None)
        ramps = (schedule.temperature_at, schedule.guidance_at, schedule.choice_temperature_at)
        values = [[ramp(step) for step in steps] for ramp in ramps]
        clean = [clean_share(schedule, done) for done in range(schedule.steps + 1)]
        values += [clean[:-1], clean[1:], [churn_at(schedule, step) for step in steps]]
        early = schedule.early_stop and strategy.converges
        check_done = [early and step >= schedule.min_steps for step in steps]
        return cls(
            strategy,
            strategy.layout(grid, device),
            signatures,
            counts.to(device),
            torch.arange(schedule.steps, device=device),
            torch.tensor(values, device=device),
            torch.tensor(check_done, device=device),
            check_done,
        )

    def context(self, state: SampleState, step: int) -> StepContext:
        """A step of the samples that are left of the batch."""
        temperature, guidance, choice_temperature, before, after, churn = self.values[:, step]
        return StepContext(
            state,
            self.counts[step].index_select(0, state.batch_index),
            self.steps[step],
            temperature,
            guidance,
            choice_temperature,
            before,
            after,
            churn,
            self.may_stop[step],
            self.layout,
        )
