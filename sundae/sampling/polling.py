"""When a loop on a device learns which samples are done, and what batches they leave behind."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_HALVES = tuple(2.0**-n for n in range(12))
_QUARTERS = _HALVES[::2]
_EIGHTHS = tuple(n / 8 for n in range(8, 1, -1))


@dataclass(frozen=True)
class PollPolicy:
    """How often the device is polled, and which sizes a batch may shrink to.

    Attributes:
        interval: steps from one poll to the next, at least 1. With 1 the host waits for the result;
            otherwise it reads the result at the next poll, and never waits.
        shares: sizes of later batches as shares of the first one, 1 among them.
    """

    interval: int
    shares: tuple[float, ...]

    @classmethod
    def for_device(cls, device: torch.device, *, compiled: bool) -> PollPolicy:
        """What suits a device.

        On the CPU every row less saves time and a poll is free: samples leave by the eighth of the
        batch, the last eighth by halves. A GPU is slowed down by a host that waits for it and is no
        faster with a few rows less: they leave by halves; compiled, where a shape costs a minute,
        three quarters together.
        """
        if device.type == "cpu":
            return cls(1, _QUARTERS if compiled else (*_EIGHTHS, *_HALVES[3:]))
        return cls(4, _QUARTERS if compiled else _HALVES)

    def sizes(self, batch: int) -> list[int]:
        """Sizes of a batch, in ascending order; 0 for none left."""
        return [0, *sorted({math.ceil(batch * share) for share in self.shares})]


class DonePoller:
    """How many samples are not done, as far as the host knows.

    Attributes:
        num_running: samples that were not done at the last poll that has arrived.
    """

    def __init__(self, policy: PollPolicy, num_running: int) -> None:
        self.policy, self.num_running, self._steps = policy, num_running, 0
        self._pending: Callable[[], int] | None = None

    def poll(self, done: Tensor) -> int:
        """After a step: `num_running`, brought up to date where a poll is due.

        Args:
            done: (batch,) bool. A sample that is done must stay so.
        """
        self._steps += 1
        if self._steps % self.policy.interval:
            return self.num_running
        arrived, self._pending = self._pending, copy_async((~done).sum())
        if self.policy.interval == 1:
            arrived = self._pending
        if arrived is not None:
            self.num_running = arrived()
        return self.num_running


def copy_async(count: Tensor) -> Callable[[], int]:
    """Begin to copy a () int64 tensor to the host; the function returned waits for it."""
    if count.device.type != "cuda":
        return lambda: int(count)
    copy = torch.empty((), dtype=torch.int64, pin_memory=True)
    copy.copy_(count, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()

    def wait() -> int:
        arrived.synchronize()
        return int(copy)

    return wait
