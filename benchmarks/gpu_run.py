"""Runs the parts of `gpu.py`, each in a process of its own with a time limit.

A part that fails, hangs or is killed costs its own limit only: its output, its exit code and
whatever it had already written to its result file are kept, and the next part starts.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parents[1]

State = Literal["passed", "failed", "timed out", "killed", "interrupted", "not reached"]

# Seconds a part has to print where it hangs before it is killed.
_GRACE = 3.0

# Seconds after its limit in which a killed part has to be gone. One that waits within the GPU's
# driver may never go; it is given up then.
_PATIENCE = 10.0

# Of Linux' prctl.h.
_PR_SET_PDEATHSIG = 1

# Seconds between two looks at the running parts.
_TICK = 0.05

# Bytes of a log that are kept; the file has all of them.
_LOG = 200_000

# A part that would have fewer seconds is not started: a process takes that long to import torch.
_SHORTEST = 5.0


@dataclass(frozen=True)
class Part:
    """One process.

    Attributes:
        stage, name: together the key, such as "smoke/train".
        shows: what its result shows, in a line.
        command: words of the command line. "{result}" in a word stands for the path of the JSON
            file that the part may write, "{folder}" for a folder of its own, which holds what an
            earlier call left, and "{seconds}" for the seconds it has.
        limit: seconds at most.
        optional: whether nothing is wrong if it does not pass.
    """

    stage: str
    name: str
    shows: str
    command: tuple[str, ...]
    limit: float
    optional: bool = False

    @property
    def key(self) -> str:
        """Unique name."""
        return f"{self.stage}/{self.name}"


@dataclass(frozen=True)
class Stage:
    """Parts in order of worth.

    Attributes:
        limit: seconds for all parts together; None for all the time that is left.
        at_once: number of parts that run concurrently.
    """

    name: str
    limit: float | None
    parts: tuple[Part, ...]
    at_once: int = 1


@dataclass
class Outcome:
    """How a part ended.

    Attributes:
        state: "passed" is exit code 0; "killed" is a signal that the runner did not send.
        code: exit code, negative for a signal, None where there was no process or it never ended.
        result: content of the part's result file, as far as it was written.
        log: its standard output and error, in order.
    """

    key: str
    shows: str
    state: State
    code: int | None = None
    seconds: float = 0.0
    result: dict[str, Any] = field(default_factory=dict)
    log: str = ""
    optional: bool = False

    @property
    def good(self) -> bool:
        """Whether it passed, or did not have to."""
        return self.state == "passed" or self.optional


def run_stage(
    stage: Stage,
    work: Path,
    until: float,
    ended: Callable[[Outcome], None],
    *,
    interrupted: Callable[[], bool] = lambda: False,
) -> None:
    """Run the parts of a stage in order, `stage.at_once` at a time.

    Args:
        work: folder for the logs and results of the parts; exists.
        until: `time.monotonic()` at which everything must have ended.
        ended: receives the outcome of each part as soon as it ends, or is given up.
        interrupted: whether to stop now; running parts are killed.
    """
    if stage.limit is not None:
        until = min(until, time.monotonic() + stage.limit)
    waiting, running = list(stage.parts), list[_Process]()
    try:
        while waiting or running:
            for process in list(running):
                outcome = process.outcome(stop=interrupted())
                if outcome is not None:
                    running.remove(process)
                    ended(outcome)
            if interrupted() or until - time.monotonic() < _SHORTEST:
                for part in waiting:
                    ended(Outcome(part.key, part.shows, "not reached", optional=part.optional))
                waiting.clear()
            while waiting and len(running) < stage.at_once:
                running.append(_Process(waiting.pop(0), work, until, stage.at_once))
            time.sleep(_TICK)
    finally:  # an error here must not leave processes that hold the GPU
        for process in running:
            process.kill()
            with suppress(subprocess.TimeoutExpired):
                process.process.wait(_PATIENCE)


def end_with_parent() -> None:
    """Have the system end this process when its parent is killed, where it can (Linux)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class _Process:
    """A part that runs."""

    def __init__(self, part: Part, work: Path, until: float, beside: int) -> None:
        """beside: number of parts that share the processors."""
        self.part, self.began = part, time.monotonic()
        self.deadline = min(until, self.began + part.limit)
        self.folder = work / part.stage / part.name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.result = self.folder / "result.json"
        self.result.unlink(missing_ok=True)
        self.log = self.folder / "log.txt"
        self.stopped: State | None = None
        environment = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
        if beside > 1:
            cores = os.cpu_count() or 1
            environment["OMP_NUM_THREADS"] = str(max(1, cores // beside))
            environment["TORCHINDUCTOR_COMPILE_THREADS"] = str(max(1, 2 * cores // beside))
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self._words(),
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that its own children can be killed with it
                preexec_fn=end_with_parent,
            )

    def _words(self) -> list[str]:
        seconds = max(1, round(self.deadline - self.began - _GRACE))
        values = {"{result}": str(self.result), "{folder}": str(self.folder / "files"),
                  "{seconds}": str(seconds)}  # fmt: skip
        words = list(self.part.command)
        for mark, value in values.items():
            words = [word.replace(mark, value) for word in words]
        return words

    def outcome(self, *, stop: bool) -> Outcome | None:
        """None while it runs; kills it where its time is up, or `stop`.

        One that does not end although it was killed is given up, without an exit code.
        """
        code, now = self.process.poll(), time.monotonic()
        if code is None:
            if self.stopped is None and stop:
                self.stopped = "interrupted"
                self.kill()
            elif self.stopped is None and now > self.deadline - _GRACE:
                self.stopped = "timed out"
                self._signal(signal.SIGABRT)  # faulthandler prints where every thread is
            elif now > self.deadline:
                self.kill()
            if now <= self.deadline + _PATIENCE:
                return None
        self.kill()  # what it may have left behind
        state: State = "passed" if code == 0 else "killed" if (code or 0) < 0 else "failed"
        return Outcome(
            self.part.key,
            self.part.shows,
            self.stopped or state,
            code,
            now - self.began,
            _read_result(self.result),
            _read_end(self.log),
            self.part.optional,
        )

    def kill(self) -> None:
        """End it and its children."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)


def _read_end(path: Path) -> str:
    """The last characters of a log."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _LOG))
        return file.read().decode(errors="replace")


def _read_result(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # never written, or the process died at a bad moment
        return {}
    return content if isinstance(content, dict) else {}
