"""Which rows go into which batch: a pure function of the seed, so that a run can be resumed."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

_WORD = 2**64 - 1
# (shift, multiplier) of splitmix64's finaliser: every bit in flips half of the bits out.
_SPLITMIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


class ShuffledBatches(Sampler[list[int]]):
    """Batches without end: every epoch a new permutation, carried on without a gap.

    With several processes each takes its slice of every global batch. A batch may reach from one
    epoch into the next, so all batches are full.
    """

    def __init__(
        self,
        rows: int,
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world: int = 1,
        start: int = 0,
    ) -> None:
        """start: how many batches (of one process) an earlier part of the run has used."""
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self.rank, self.world, self.start = rank, world, start
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def _row(self, position: int) -> int:
        epoch, offset = divmod(position, self.rows)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, epoch))
            self._epoch, self._order = epoch, torch.randperm(self.rows, generator=generator)
        return int(self._order[offset])

    def __iter__(self) -> Iterator[list[int]]:
        batch = self.start
        while True:
            first = (batch * self.world + self.rank) * self.batch_size
            yield [self._row(first + i) for i in range(self.batch_size)]
            batch += 1


def held_out_batches(
    rows: int, count: int, batch_size: int, *, seed: int, rank: int = 0, world: int = 1
) -> list[list[int]]:
    """A fixed, shuffled choice of `count` rows, dealt out to the processes and cut into batches."""
    generator = torch.Generator().manual_seed(seed)
    mine = torch.randperm(rows, generator=generator)[:count][rank::world].tolist()
    return [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]


def derive_seed(*parts: int) -> int:
    """One 63-bit seed from several numbers; different numbers give unrelated seeds."""
    word = 0x9E3779B97F4A7C15
    for part in parts:
        word ^= part & _WORD
        for shift, multiplier in _SPLITMIX:
            word = ((word ^ (word >> shift)) * multiplier) & _WORD
        word ^= word >> 31
    return word >> 1
