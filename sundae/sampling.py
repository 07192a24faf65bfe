"""Sampling: the loop that yields tokens as they improve, whatever strategy chooses among them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sundae.categorical import draw_tokens
from sundae.curves import Schedule
from sundae.strategies import STRATEGIES, Rows, Strategy, Turn, draw_noise, starting_tokens

__all__ = ["ClassDenoise", "DenoiseAt", "Refinement", "Schedule", "sample", "starting_tokens"]

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
        running: how many samples are not done yet.
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

    def logits(self, rows: Rows, guidance: float, positions: Tensor | None = None) -> Tensor:
        """(batch, length, vocab), or (batch, count, vocab) at positions (batch, count).

        With guidance g other than 1 it is null + g * (conditional - null), both from one forward of
        twice the rows (classifier-free guidance, arXiv 2207.12598, with 1 + w for g).
        """
        if guidance == 1:
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
) -> Iterator[Refinement]:
    """Refine all tokens of a batch in parallel (arXiv 2206.12351), step by step.

    Sample i depends on seeds[i] and on row i of the other arguments alone: not on the batch it is
    computed in, nor on samples that are done and have left it.

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

    Returns:
        an iterator of the Refinement after 0, 1, 2 .. steps, until all steps are done or all
        samples are.

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
    network = _Network(denoise, denoise_at, null_class)
    return _refine_all(network, _first_rows(start, seeds, classes, frozen), schedule, grid)


def _first_rows(
    start: Tensor, seeds: Tensor, classes: Tensor | None, frozen: Tensor | None
) -> Rows:
    nothing = torch.zeros_like(start, dtype=torch.bool)
    return Rows(
        index=torch.arange(len(seeds), device=seeds.device),
        seeds=seeds,
        classes=classes,
        start=start,
        tokens=start,
        free=~nothing if frozen is None else ~frozen,
        offered=nothing,
        settled=nothing,
        served=torch.zeros_like(seeds),
    )


@torch.no_grad()
def _refine_all(
    network: _Network, rows: Rows, schedule: Schedule, grid: tuple[int, int]
) -> Iterator[Refinement]:
    """The loop of `sample`."""
    strategy = STRATEGIES[schedule.strategy]
    # Known here once, so that no step has to ask the device how many tokens it will choose.
    free_counts = rows.free.sum(1).unique().cpu()
    everything = rows.tokens
    yield Refinement(everything, 0, len(rows.index))
    for step in range(schedule.steps):
        turn = Turn(rows, schedule, step, grid)
        most = _most(strategy, schedule, step, free_counts)
        updated, offered = _advance(network, strategy, turn, most)
        changed = (updated != rows.tokens).any(dim=1, keepdim=True)
        rows.settled = (rows.settled | offered) & ~changed
        rows.served = rows.served + offered.sum(1)
        rows.tokens, rows.offered = updated, offered
        everything = everything.index_copy(0, rows.index, updated)
        if schedule.early_stop and step >= schedule.min_steps:
            going = ~(rows.settled | ~rows.free).all(dim=1)
            if not bool(going.all()):
                rows = rows.keep(going)
        yield Refinement(everything, step + 1, len(rows.index))
        if len(rows.index) == 0:
            return


def _most(strategy: Strategy, schedule: Schedule, step: int, free_counts: Tensor) -> int:
    """How many tokens a step chooses in the sample where it chooses most; all on the host.

    Args:
        free_counts: (n,) int64, CPU: all numbers of tokens that may change in a sample.
    """
    if schedule.proportion_at(step) == 0 or len(free_counts) == 0:
        return 0
    return int(strategy.count(schedule, step, free_counts).max())


def _advance(network: _Network, strategy: Strategy, turn: Turn, most: int) -> tuple[Tensor, Tensor]:
    """One step: (the new tokens, which of them were offered a fresh value), each (batch, length).

    Args:
        most: see `_most`.
    """
    rows, schedule, step = turn.rows, turn.schedule, turn.step
    tokens, length = rows.tokens, rows.tokens.shape[1]
    if most == 0:
        return tokens, torch.zeros_like(rows.free)
    guidance = schedule.guidance_at(step)
    seen = network.logits(rows, guidance) if strategy.sees_logits(step) else None
    rank = strategy.rank(turn, seen).float().masked_fill(~rows.free, torch.inf)
    order = rank.argsort(dim=1, stable=True)  # equal ranks in raster order, on every device
    count = strategy.count(schedule, step, rows.free.sum(1))
    chosen = torch.arange(length, device=tokens.device) < count[:, None]
    # Ranks that are not numbers come last, even behind the tokens that may not change.
    offered = torch.zeros_like(rows.free).scatter_(1, order, chosen) & rows.free
    # All rows look at as many positions, the surplus of some is not offered.
    positions = order[:, :most] if most < length else None
    if seen is None:
        logits = network.logits(rows, guidance, positions)
    else:
        logits = seen if positions is None else at_positions(seen, positions)
    noise = draw_noise(rows.seeds, step, length)
    drawn = draw_tokens(
        logits,
        noise if positions is None else noise.gather(1, positions),
        0.0 if strategy.greedy else schedule.temperature_at(step),
        top_k=schedule.top_k,
        top_p=schedule.top_p,
    )
    fresh = drawn if positions is None else tokens.scatter(1, positions, drawn)
    return torch.where(offered, fresh, strategy.others(rows)), offered
