"""When a loop on a device asks which samples are done, and what batches they leave behind."""

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
    """How often the device is asked, and which sizes a batch may shrink to.

    Attributes:
        interval: steps from one question to the next, at least 1. With 1 the answer is waited for;
            otherwise it is looked at when the next question is asked, and nobody waits.
        shares: of the first batch's size, those that a batch may have later, 1 among them.
    """

    interval: int
    shares: tuple[float, ...]

    def sizes(self, batch: int) -> list[int]:
        """The sizes that a batch may have, 0 where nobody is left."""
        return [0, *sorted({math.ceil(batch * share) for share in self.shares})]


def poll_policy(device: torch.device, *, compiled: bool) -> PollPolicy:
    """What suits a device.

    On the CPU a row less is time saved and a question costs nothing: samples leave by the eighth of
    the batch, the last eighth by halves. A GPU must not be waited for, and is no faster with a few
    rows less: they leave by halves; compiled, where a shape costs a minute, three quarters at once.
    """
    interval = 1 if device.type == "cpu" else 4
    if compiled:
        return PollPolicy(interval, _QUARTERS)
    return PollPolicy(interval, (*_EIGHTHS, *_HALVES[3:]) if device.type == "cpu" else _HALVES)


class DonePoller:
    """How many samples are not done, as far as the host knows."""

    def __init__(self, pace: PollPolicy, running: int) -> None:
        self.pace, self.running, self._turns = pace, running, 0
        self._answer: Callable[[], int] | None = None

    def look(self, done: Tensor) -> int:
        """After a step: how many samples are not done, or were not when the device was last asked.

        Args:
            done: (batch,) bool. A sample that is done must stay so.
        """
        self._turns += 1
        if self._turns % self.pace.interval:
            return self.running
        answer, self._answer = self._answer, _ask((~done).sum())
        if self.pace.interval == 1:
            answer = self._answer
        if answer is not None:
            self.running = answer()
        return self.running


def _ask(count: Tensor) -> Callable[[], int]:
    """Begin to copy a () int64 tensor to the host; the function returned waits for it."""
    if count.device.type != "cuda":
        return lambda: int(count)
    copy = torch.empty((), dtype=torch.int64, pin_memory=True)
    copy.copy_(count, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()

    def answer() -> int:
        arrived.synchronize()
        return int(copy)

    return answer
