"""Graceful shutdown: the current step is finished, and the caller informed."""

from __future__ import annotations

import signal
from types import FrameType


class Interruption:
    """While entered, notes Ctrl-C or SIGTERM instead of ending; a second one ends at once.

    Attributes:
        signal: the number of the signal that came, or None.
    """

    _KINDS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, *, enabled: bool = True) -> None:
        """enabled: False leaves signals alone."""
        self.enabled = enabled
        self.signal: int | None = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number

    def __enter__(self) -> Interruption:
        if self.enabled:
            self._before = [signal.signal(kind, self._note) for kind in self._KINDS]
        return self

    def __exit__(self, *exception: object) -> None:
        if self.enabled:
            for number, handler in zip(self._KINDS, self._before, strict=True):
                signal.signal(number, handler)
