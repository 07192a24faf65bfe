"""Which rows go into which batch: a pure function of the seed, so that a run can be resumed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from typing import Protocol

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from sundae.common.errors import UserError
from sundae.config.sections import TrainerConfig
from sundae.data.dataset import Batch, collate_batched

# Mixed into the seed of everything in an evaluation: its rows and its noise are always the same,
# so that its curve shows the network alone.
EVAL_TAG = 2**40

_WORD = 2**64 - 1
# (shift, multiplier) of splitmix64's finaliser: every bit in flips half of the bits out.
_SPLITMIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


class BatchedData(Protocol):
    """A data set whose `__getitems__` returns a whole batch.

    Two attributes are optional. `max_batch_size` limits the rows of a batch in an evaluation.
    `counts_visits = True` means that what is drawn at random from a row depends on how often the
    row was visited: then the index of a row in training is row + epoch * len(data).
    """

    def __len__(self) -> int: ...

    def __getitems__(self, indices: Sequence[int]) -> Batch: ...


DataPair = tuple[BatchedData, BatchedData]


class Batches:
    """The batches of one process, on its device.

    Attributes:
        mini_batch_size: rows of one forward pass.
        accumulate: mini-batches of one optimiser step.
        per_evaluation: mini-batches between two evaluations.
    """

    def __init__(
        self, data: DataPair, cfg: TrainerConfig, accelerator: Accelerator, seed: int
    ) -> None:
        """UserError where batch size or held-out rows cannot be divided among the processes."""
        self.train_data, self.eval_data = data
        self.cfg, self.device, self.seed = cfg, accelerator.device, seed
        self._rank, self._world = accelerator.process_index, accelerator.num_processes
        self.mini_batch_size, self.accumulate = split_batch(cfg, self._world)
        if len(self.eval_data) < self._world:
            raise UserError(
                f"{len(self.eval_data)} held-out rows are too few for {self._world} "
                "processes; hold out more, or use fewer processes"
            )
        per_epoch = len(self.train_data) // (self.mini_batch_size * self._world)
        self.per_evaluation = cfg.nb_batches[0] or max(1, per_epoch)

    def training(self, step: int) -> Iterator[Batch]:
        """The endless mini-batches that follow after some optimiser steps."""
        indices = shuffled_batches(
            len(self.train_data),
            self.mini_batch_size,
            seed=self.seed,
            rank=self._rank,
            world=self._world,
            start=step * self.accumulate,
            count_visits=getattr(self.train_data, "counts_visits", False),
        )
        return self._load(self.train_data, indices)

    def evaluation(self) -> Iterator[Batch]:
        """A fixed, shuffled choice of held-out rows, dealt out to the processes."""
        limit = self.cfg.nb_batches[1] * self.mini_batch_size or None
        generator = torch.Generator().manual_seed(derive_seed(self.seed, EVAL_TAG))
        order = torch.randperm(len(self.eval_data), generator=generator)[:limit]
        rows = order[self._rank :: self._world]
        size = getattr(self.eval_data, "max_batch_size", self.mini_batch_size)
        return self._load(self.eval_data, [b.tolist() for b in rows.split(size)])

    def _load(self, data: BatchedData, batches: Iterable[list[int]]) -> Iterator[Batch]:
        loader: DataLoader[Batch] = DataLoader(
            data,  # type: ignore[arg-type]  # only __getitems__ is used
            batch_sampler=batches,
            num_workers=self.cfg.nb_workers,
            collate_fn=collate_batched,  # __getitems__ batches already
            pin_memory=self.device.type == "cuda",
        )
        for batch in loader:
            yield {name: rows.to(self.device, non_blocking=True) for name, rows in batch.items()}


def shuffled_batches(
    rows: int,
    batch_size: int,
    *,
    seed: int,
    rank: int = 0,
    world: int = 1,
    start: int = 0,
    count_visits: bool = False,
) -> Iterator[list[int]]:
    """Endless batches: every epoch a new permutation, continued without a gap.

    With several processes each takes its slice of every global batch. A batch may reach from one
    epoch into the next, so all batches are full.

    Args:
        start: number of batches (of one process) that an earlier part of the run has used.
        count_visits: add `rows` to an index for each epoch before, see `BatchedData`.
    """
    current, order = -1, torch.empty(0, dtype=torch.long)
    for batch in count(start):
        first, indices = (batch * world + rank) * batch_size, []
        for position in range(first, first + batch_size):
            epoch, offset = divmod(position, rows)
            if epoch != current:
                generator = torch.Generator().manual_seed(derive_seed(seed, epoch))
                current, order = epoch, torch.randperm(rows, generator=generator)
            indices.append(int(order[offset]) + epoch * rows * count_visits)
        yield indices


def split_batch(cfg: TrainerConfig, processes: int) -> tuple[int, int]:
    """Rows of a mini-batch, and mini-batches per process and optimiser step.

    Raises:
        UserError: the batch size is not a multiple.
    """
    mini = cfg.mini_batch_size or max(1, cfg.batch_size // processes)
    if cfg.batch_size % (mini * processes):
        raise UserError(
            f"trainer.batch_size ({cfg.batch_size}) is not a multiple of trainer.mini_batch_size "
            f"({mini}) times {processes} processes; change one of them"
        )
    return mini, cfg.batch_size // (mini * processes)


def derive_seed(*parts: int) -> int:
    """One 63-bit seed from several numbers; different numbers give unrelated seeds."""
    word = 0x9E3779B97F4A7C15
    for part in parts:
        word ^= part & _WORD
        for shift, multiplier in _SPLITMIX:
            word = ((word ^ (word >> shift)) * multiplier) & _WORD
        word ^= word >> 31
    return word >> 1
