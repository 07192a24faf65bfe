"""Hooks into the training loop, under ptpt's names."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from typing import Any


class CallbackType(Enum):
    """The moments of a training run that a hook can wait for."""

    TrainStep = auto()  # after each mini-batch
    EvalStep = auto()  # after each evaluation batch
    TrainEpoch = auto()  # before each evaluation
    EvalEpoch = auto()  # after each evaluation
    TrainDataExhaust = auto()  # the training data starts over
    EvalDataExhaust = auto()  # the held-out data has been read to its end
    ParameterUpdate = auto()  # after each optimiser step
    SaveCheckpoint = auto()  # after each checkpoint
    Termination = auto()  # training is over
    Start = auto()  # before the first step


class Callbacks:
    """Functions to call at those moments, each at every n-th occurrence."""

    def __init__(self) -> None:
        self._hooks: dict[CallbackType, list[tuple[int, Callable[[Any], None]]]] = {}
        self._seen: dict[CallbackType, int] = {}

    def register(self, kind: CallbackType, hook: Callable[[Any], None], frequency: int = 1) -> None:
        """Call `hook(trainer)` at every `frequency`-th occurrence of `kind`."""
        self._hooks.setdefault(kind, []).append((frequency, hook))

    def fire(self, kind: CallbackType, trainer: object) -> None:
        """`kind` has just occurred."""
        self._seen[kind] = self._seen.get(kind, 0) + 1
        for frequency, hook in self._hooks.get(kind, ()):
            if self._seen[kind] % frequency == 0:
                hook(trainer)
