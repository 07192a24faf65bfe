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
from sundae.prior.categorical import draw_tokens
from sundae.sampling.polling import DonePoller, PollPolicy, poll_policy
from sundae.sampling.schedule import Schedule
from sundae.sampling.strategies import STRATEGIES, Rows, Strategy, Turn, draw_noise, starting_tokens

__all__ = ["ClassDenoise", "DenoiseAt", "Refinement", "Schedule", "sample", "starting_tokens"]

# A compiled step handles one of this many numbers of tokens: to look at a few too many costs less
# than to compile for each number.
_SIZES = 4

# Of all steps; what fewer steps share is not worth compiling.
_SHARE_TO_COMPILE = 1 / 8

# (tokens (batch, length), classes (batch,) or None) -> logits (batch, length, vocab)
ClassDenoise = Callable[[Tensor, Tensor | None], Tensor]

# The same for some positions: (tokens, classes, positions (batch, count)) -> (batch, count, vocab)
DenoiseAt = Callable[[Tensor, Tensor | None, Tensor], Tensor]


@dataclass(frozen=True)
class Refinement:
    """The state after a step.

    Attributes:
        tokens: (batch, length) int64, all samples in the order they were asked for. A tensor of its
            own: later steps do not write to it.
        step: how many steps have been done; 0 is the starting noise.
        running: how many samples are not done yet, or were not when the device was last asked: a
            GPU is asked rarely.
    """

    tokens: Tensor
    step: int
    running: int


@dataclass(frozen=True)
class _Network:
    """A denoiser with guidance, for all positions or some."""

    denoise: ClassDenoise
    denoise_at: DenoiseAt | None
    null_class: int | None

    def logits(
        self, rows: Rows, guidance: Tensor | None, positions: Tensor | None = None
    ) -> Tensor:
        """(batch, length, vocab), or (batch, count, vocab) at positions (batch, count).

        With guidance g it is null + g * (conditional - null), both from one forward of twice the
        rows (classifier-free guidance, arXiv 2207.12598, with 1 + w for g).
        """
        if guidance is None:
            return self._predict(rows.tokens, rows.classes, positions)
        assert rows.classes is not None and self.null_class is not None
        classes = torch.cat((rows.classes, torch.full_like(rows.classes, self.null_class)))
        twice = None if positions is None else positions.repeat(2, 1)
        both = self._predict(rows.tokens.repeat(2, 1), classes, twice)
        conditional, null = both.float().chunk(2)
        return null + guidance * (conditional - null)

    def _predict(self, tokens: Tensor, classes: Tensor | None, positions: Tensor | None) -> Tensor:
        if positions is None:
            return self.denoise(tokens, classes)
        if self.denoise_at is None:
            return at_positions(self.denoise(tokens, classes), positions)
        return self.denoise_at(tokens, classes, positions)


def at_positions(values: Tensor, positions: Tensor) -> Tensor:
    """(batch, length, n), (batch, count) int64 -> (batch, count, n)"""
    return values.gather(1, positions[..., None].expand(-1, -1, values.shape[-1]))


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
    grid: tuple[int, int] | None = None,
    null_class: int | None = None,
    denoise_at: DenoiseAt | None = None,
    pace: PollPolicy | None = None,
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
        frozen: (batch, length) bool; these positions keep the value they start with.
        grid: (height, width) of the tokens in raster order, for strategies that look where they
            are; one row unless given.
        null_class: the class that means any, for guidance.
        denoise_at: as `denoise`, but takes positions (batch, count) as well and returns
            (batch, count, vocab) for them. A strategy that chooses its tokens before it sees logits
            uses it to compute no others; without it the others are computed and dropped.
        pace: when to ask the device which samples are done, and what batches they leave behind; as
            suits the device unless given.
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
        raise ValueError("frozen positions need tokens to keep")
    for name, value in (("classes", classes), ("tokens", tokens), ("frozen", frozen)):
        if value is not None and len(value) != len(seeds):
            raise ValueError(f"{name} has {len(value)} rows for {len(seeds)} seeds")
    grid = (1, length) if grid is None else grid
    if grid[0] * grid[1] != length:
        raise ValueError(f"a grid of {grid[0]}x{grid[1]} does not hold {length} tokens")
    guided = (schedule.guidance, schedule.end_guidance) != (1, 1)
    if guided and (classes is None or null_class is None):
        raise ValueError("guidance needs classes and the number of the class that means any")
    start = starting_tokens(seeds, length, vocab_size) if tokens is None else tokens.clone()
    rows = _first_rows(start, seeds, classes, frozen)
    # Asked once: how many tokens may change in each sample. No step has to ask for more.
    free = torch.full((len(seeds),), length) if frozen is None else rows.free.sum(1).cpu()
    plan = _Plan.of(schedule, grid, free, seeds.device, rounded=compiled is not None)
    network = _Network(denoise, denoise_at, null_class)
    pace = pace or poll_policy(seeds.device, compiled=compiled is not None)
    return _refine_all(network, rows, plan, pace, compiled)


def _first_rows(
    start: Tensor, seeds: Tensor, classes: Tensor | None, frozen: Tensor | None
) -> Rows:
    nothing = torch.zeros_like(start, dtype=torch.bool)
    return Rows(
        home=torch.arange(len(seeds), device=seeds.device),
        seeds=seeds,
        classes=classes,
        start=start,
        tokens=start,
        free=~nothing if frozen is None else ~frozen,
        offered=nothing,
        settled=nothing,
        served=torch.zeros_like(seeds),
        done=torch.zeros_like(seeds, dtype=torch.bool),
    )


class _Kind(NamedTuple):
    """What decides the shapes and operations of a step; steps of a kind are compiled once.

    Attributes:
        most: how many tokens are looked at in each sample, at least as many as take a draw.
        sees_logits: whether the strategy chooses by the logits.
        guided: whether the network is asked twice.
        greedy: whether draws are the most likely values.
        top_k, top_p: see `sundae.prior.categorical.keep_likely`.
    """

    most: int
    sees_logits: bool
    guided: bool
    greedy: bool
    top_k: int
    top_p: float


@dataclass(frozen=True)
class _Plan:
    """A schedule worked out before the first step, so that none waits for the device or for Python.

    Attributes:
        strategy: of the schedule.
        layout: what it knows of the grid.
        kinds: of each step; None where no token takes a draw.
        counts: (steps, batch) int64, on the device as all that follows: tokens that take a draw.
        steps: (steps,) int64, their numbers.
        values: (3, steps) float32: temperature, guidance and choice temperature.
        may_stop: (steps,) bool, whether a sample may be called done after the step.
        asks: the same for the host.
    """

    strategy: Strategy
    layout: Tensor | None
    kinds: list[_Kind | None]
    counts: Tensor
    steps: Tensor
    values: Tensor
    may_stop: Tensor
    asks: list[bool]

    @classmethod
    def of(
        cls,
        schedule: Schedule,
        grid: tuple[int, int],
        free: Tensor,
        device: torch.device,
        *,
        rounded: bool,
    ) -> _Plan:
        """Work a schedule out.

        Args:
            schedule: all its numbers.
            grid: (height, width) of the tokens in raster order.
            free: (batch,) int64, CPU: how many tokens may change in each sample.
            device: of the samples.
            rounded: look at a few more tokens than take a draw, so that kinds stay few.
        """
        strategy, steps = STRATEGIES[schedule.strategy], range(schedule.steps)
        counts = torch.stack([_counts(strategy, schedule, step, free) for step in steps])
        length = grid[0] * grid[1]
        unit = math.ceil(length / _SIZES) if rounded else 1
        most = [max(row, default=0) for row in counts.tolist()]
        curves = (schedule.temperature_at, schedule.guidance_at, schedule.choice_temperature_at)
        asks = [schedule.early_stop and step >= schedule.min_steps for step in steps]
        return cls(
            strategy,
            strategy.layout(grid, device),
            [
                _kind(strategy, schedule, step, min(length, math.ceil(most[step] / unit) * unit))
                for step in steps
            ],
            counts.to(device),
            torch.arange(schedule.steps, device=device),
            torch.tensor([[curve(step) for step in steps] for curve in curves], device=device),
            torch.tensor(asks, device=device),
            asks,
        )

    def turn(self, rows: Rows, step: int) -> Turn:
        """A step for what is left of the batch."""
        temperature, guidance, choice_temperature = self.values[:, step].unbind()
        return Turn(
            rows,
            self.counts[step].index_select(0, rows.home),
            self.steps[step],
            temperature,
            guidance,
            choice_temperature,
            self.may_stop[step],
            self.layout,
        )


def _counts(strategy: Strategy, schedule: Schedule, step: int, free: Tensor) -> Tensor:
    """free: (batch,) int64, tokens that may change -> (batch,) int64, those that take a draw."""
    if schedule.proportion_at(step) == 0:
        return torch.zeros_like(free)
    return strategy.count(schedule, step, free)


def _kind(strategy: Strategy, schedule: Schedule, step: int, most: int) -> _Kind | None:
    if most == 0:
        return None
    return _Kind(
        most,
        strategy.sees_logits(step),
        schedule.guidance_at(step) != 1,
        strategy.greedy or schedule.temperature_at(step) == 0,
        schedule.top_k,
        schedule.top_p,
    )


@torch.no_grad()
def _refine_all(
    network: _Network, rows: Rows, plan: _Plan, pace: PollPolicy, compiled: Compiled | None
) -> Iterator[Refinement]:
    """The loop of `sample`."""
    everything, size = rows.tokens, len(rows.home)
    sizes, watch = pace.sizes(size), DonePoller(pace, size)
    uses = Counter(plan.kinds)
    yield Refinement(everything, 0, size)
    for step, kind in enumerate(plan.kinds):
        turn = plan.turn(rows, step)
        if kind is None:
            moved = _settle(turn, rows.tokens, torch.zeros_like(rows.free))
        elif compiled is not None and uses[kind] >= _SHARE_TO_COMPILE * len(plan.kinds):
            moved = compiled(_advance, network, plan.strategy, kind, turn)
        else:
            moved = _advance(network, plan.strategy, kind, turn)
        rows = rows.moved(*moved)
        everything = everything.index_copy(0, rows.home, rows.tokens)
        if plan.asks[step]:
            running = watch.look(rows.done)
            left = min((n for n in sizes if n >= running), default=0)
            if left < len(rows.home):
                # Those that are done fill the batch up, and stay as they are.
                rows = rows.taken(rows.done.to(torch.uint8).argsort(stable=True)[:left])
        yield Refinement(everything, step + 1, watch.running)
        if watch.running == 0:
            return


def _advance(network: _Network, strategy: Strategy, kind: _Kind, turn: Turn) -> tuple[Tensor, ...]:
    """One step: what `Rows.moved` takes. A function of tensors, made to be compiled."""
    rows, length = turn.rows, turn.rows.tokens.shape[1]
    guidance = turn.guidance if kind.guided else None
    seen = network.logits(rows, guidance) if kind.sees_logits else None
    rank = strategy.rank(turn, seen).float().masked_fill(~rows.free, torch.inf)
    order = rank.argsort(dim=1, stable=True)  # equal ranks in raster order, on every device
    chosen = torch.arange(length, device=order.device) < turn.counts[:, None]
    # Ranks that are not numbers come last, even behind the tokens that may not change.
    offered = torch.zeros_like(rows.free).scatter_(1, order, chosen) & rows.free
    # All rows look at as many positions, the surplus of some is not offered.
    positions = order[:, : kind.most] if kind.most < length else None
    if seen is None:
        logits = network.logits(rows, guidance, positions)
    else:
        logits = seen if positions is None else at_positions(seen, positions)
    noise = draw_noise(rows.seeds, turn.step, length)
    drawn = draw_tokens(
        logits,
        noise if positions is None else noise.gather(1, positions),
        0.0 if kind.greedy else turn.temperature,
        top_k=kind.top_k,
        top_p=kind.top_p,
    )
    fresh = drawn if positions is None else rows.tokens.scatter(1, positions, drawn)
    return _settle(turn, torch.where(offered, fresh, strategy.others(rows)), offered)


def _settle(turn: Turn, updated: Tensor, offered: Tensor) -> tuple[Tensor, ...]:
    """What `Rows.moved` takes: samples that were done stay as they are, others may be done now.

    Args:
        updated: (batch, length) int64, the new tokens.
        offered: (batch, length) bool, which of them were offered a fresh value.
    """
    rows = turn.rows
    tokens = torch.where(rows.done[:, None], rows.tokens, updated)
    changed = (tokens != rows.tokens).any(dim=1, keepdim=True)
    settled = (rows.settled | offered) & ~changed
    done = rows.done | turn.may_stop & (settled | ~rows.free).all(dim=1)
    return tokens, offered, settled, rows.served + offered.sum(1), done
