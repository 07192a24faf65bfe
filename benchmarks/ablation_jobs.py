"""The runs of an ablation: what is done, what comes next, and the processes that do it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ablation_plan import Plan, Variant, difference, length_overrides, settings_of, steps_for
from ablation_train import measure_rate, train_in_process
from gpu_run import ROOT, end_with_parent

from sundae.common.errors import UserError
from sundae.common.files import make_folder, write_json
from sundae.config.run_file import RunConfig, load_config
from sundae.evaluation.cost import Cost
from sundae.evaluation.report import JSON_NAME
from sundae.prior.run import checkpoint_path, list_checkpoints

_TICK = 0.05  # seconds between two looks at the running processes
_PATIENCE = 60.0  # seconds that an interrupted training has to write its checkpoint


@dataclass(frozen=True)
class Command:
    """A process: the words after `python`, and the file that its output goes to."""

    words: tuple[str, ...]
    log: Path


# Yields what is to run, receives the exit code.
Work = Generator[Command, int, None]


@dataclass(frozen=True)
class Run:
    """A variant with a seed.

    Files: RUNS/NAME-SEED/ is the run folder, RUNS/NAME-SEED.json what `state` returns,
    RUNS/NAME-SEED.log the output of train.py, FIGURES/NAME-SEED[-N]/ an evaluation.
    """

    plan: Plan
    variant: Variant
    seed: int
    out: Path

    @property
    def name(self) -> str:
        """Unique within a plan."""
        return f"{self.variant.name}-{self.seed}"

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.out / "runs" / self.name

    def figures(self, number: int) -> Path:
        """The folder of an evaluation, by the number of its sampler."""
        return self.out / "figures" / (self.name + (f"-{number}" if number else ""))

    @property
    def state(self) -> dict[str, Any]:
        """{"settings", "steps", "parameters", "error"} of what was trained; empty before."""
        return _read(self.folder.with_name(f"{self.name}.json"))

    def write_state(self, **changes: Any) -> None:
        """Change some of the state on disk."""
        make_folder(self.folder.parent)
        write_json(self.folder.with_name(f"{self.name}.json"), self.state | changes)

    @property
    def rate_file(self) -> Path:
        """Holds the speed of the variant, whatever the seed."""
        return self.out / "rates" / f"{self.variant.name}.json"

    @property
    def rate(self) -> float:
        """Measured optimiser steps a second of training alone."""
        return float(_read(self.rate_file)["steps_per_second"])

    @property
    def checkpoint(self) -> Path | None:
        """The last checkpoint, once the training is complete."""
        steps = self.state.get("steps")
        found = steps and checkpoint_path(self.folder, steps)
        return found if found and found in list_checkpoints(self.folder) else None

    def check(self, *, overwrite: bool) -> None:
        """Compare what was trained with the plan; what differs is deleted where `overwrite`.

        Raises:
            UserError: the settings of a run that has checkpoints have changed.
        """
        state = self.state
        if "settings" not in state:  # never begun, or refused at once
            return
        try:
            now = settings_of(self.plan, self.plan.config(self.variant), self.seed)
        except UserError as error:
            change = str(error)
        else:
            change = difference(state["settings"], now)
        if not change:
            return
        if list_checkpoints(self.folder) and not overwrite:
            raise UserError(
                f"variant {self.variant.name} has changed since it was trained ({change}): pass "
                "--overwrite to train it anew, or choose another --out"
            )
        self.delete()

    def delete(self) -> None:
        """Remove everything that is known of this run."""
        folders = [self.folder, *(self.figures(n) for n in range(len(self.variant.samplers)))]
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        for path in (self.folder.with_name(f"{self.name}.json"), self.rate_file):
            path.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); delete it to go on") from None
    return dict(content)


# -- the work on a run ----------------------------------------------------------------------------


def training(run: Run, device: torch.device, *, in_process: bool) -> Work:
    """Train a run as far as it is not; a failure is written into its state."""
    if run.checkpoint is not None:
        return
    try:
        cfg = run.plan.config(run.variant)
        settings = settings_of(run.plan, cfg, run.seed)
        rate = yield from _measured_rate(run, cfg, device, in_process)
        steps = run.plan.steps or steps_for(run.plan.seconds or 0, rate)
        overrides = [*run.variant.overrides, *length_overrides(cfg, steps)]
        cfg = load_config(run.plan.base, overrides)
        run.write_state(settings=settings, steps=steps, parameters=Cost(cfg).parameters, error="")
        if in_process:
            train_in_process(cfg, run.seed, run.folder, device)
        else:
            begun = bool(list_checkpoints(run.folder))
            fresh = ["--cfg-path", str(run.plan.base), *_sets(overrides), "--seed", str(run.seed),
                     "--run-dir", str(run.folder)]  # fmt: skip
            words = ["--resume", str(run.folder)] if begun else fresh
            log = run.folder.with_name(f"{run.name}.log")
            yield from _run("train.py", words, device, log)
    except UserError as error:
        run.write_state(error=str(error).replace("\n", " "))
    except torch.OutOfMemoryError as error:
        run.write_state(error=f"out of memory: {str(error).splitlines()[0]}")


def _measured_rate(
    run: Run, cfg: RunConfig, device: torch.device, in_process: bool
) -> Generator[Command, int, float]:
    """Steps a second, measured once for all seeds of a variant."""
    path = run.rate_file
    if not path.exists():
        make_folder(path.parent)
        if in_process:
            write_json(path, {"steps_per_second": measure_rate(cfg, device)})
        else:
            words = [str(path), "--cfg-path", str(run.plan.base), *_sets(run.variant.overrides)]
            yield from _run("benchmarks/ablation_train.py", words, device, path.with_suffix(".log"))
    return run.rate


def evaluations(run: Run, device: torch.device) -> Work:
    """Evaluate a trained run with each of its samplers, as far as that is not done."""
    checkpoint, flags = run.checkpoint, run.plan.evaluate
    if checkpoint is None or flags is None:
        return
    for number, sampler in enumerate(run.variant.samplers):
        folder = run.figures(number)
        words = evaluation_words(flags, checkpoint, sampler, run.seed)
        known = folder.with_name(f"{folder.name}.json")
        if (folder / JSON_NAME).exists() and _read(known).get("words") == words:
            continue
        make_folder(folder.parent)
        known.unlink(missing_ok=True)
        log = folder.with_name(f"{folder.name}.log")
        try:
            yield from _run(
                "evaluate.py", [*words, "--out-dir", str(folder), "--overwrite"], device, log
            )
        except UserError as error:
            write_json(known, {"error": str(error)})
        else:
            write_json(known, {"words": words, "error": ""})


def evaluation_words(
    flags: dict[str, Any], checkpoint: Path, sampler: Sequence[str], seed: int
) -> list[str]:
    """Arguments of evaluate.py: "reference" is positional, true a flag without a value."""
    words = [str(checkpoint)]
    if "reference" in flags:
        words.append(str(flags["reference"]))
    for name, value in flags.items():
        if name == "reference" or value is False:
            continue
        words.append(f"--{name}")
        if value is not True:
            words += map(str, value if isinstance(value, list) else [value])
    return [*words, *_sets(sampler), "--seed", str(seed)]


def _sets(overrides: Sequence[str]) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]


def _run(script: str, words: Sequence[str], device: torch.device, log: Path) -> Work:
    """A script of this project; UserError with the last line of its output where it fails."""
    where = ["--no-cuda"] if device.type == "cpu" else []
    code = yield Command((str(ROOT / script), *words, *where, "--quiet"), log)
    if code:
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), f"exit code {code}")
        raise UserError(last.removeprefix("error: ") if code > 0 else f"killed by signal {-code}")


# -- processes ------------------------------------------------------------------------------------


class Runner:
    """Works on several runs at once."""

    def __init__(self, jobs: int, until: float, interrupted: Callable[[], bool]) -> None:
        """until: `time.monotonic()` after which no process is started."""
        self.jobs, self.until, self.interrupted = jobs, until, interrupted
        self._running: list[tuple[Work, subprocess.Popen[bytes]]] = []

    def __call__(self, works: Sequence[Work], ended: Callable[[], None]) -> None:
        """Do all works in order, `jobs` at once; `ended` is called as each of them ends.

        Raises:
            KeyboardInterrupt: after the processes have ended, so that their runs can go on.
        """
        waiting = list(works)
        try:
            while waiting or self._running:
                if self.interrupted():
                    raise KeyboardInterrupt
                for work, process in [e for e in self._running if e[1].poll() is not None]:
                    self._running.remove((work, process))
                    self._go_on(work, process.returncode, ended)
                if waiting and len(self._running) < self.jobs:
                    self._go_on(waiting.pop(0), None, ended)
                elif self._running:
                    time.sleep(_TICK)
        finally:
            self._stop()

    def _go_on(self, work: Work, code: int | None, ended: Callable[[], None]) -> None:
        """Start the next process of a work, unless the time is up."""
        if code is None and time.monotonic() > self.until:
            return ended()
        try:
            command = next(work) if code is None else work.send(code)
        except StopIteration:
            return ended()
        if time.monotonic() > self.until:
            return ended()
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        if self.jobs > 1:
            threads = max(1, (os.cpu_count() or 1) // self.jobs)
            environment["OMP_NUM_THREADS"] = str(threads)
        with make_folder(command.log.parent).joinpath(command.log.name).open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, *command.words],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches it through `_stop` only
                preexec_fn=end_with_parent,
            )
        self._running.append((work, process))

    def _stop(self) -> None:
        """End what runs: politely, then not."""
        for _, process in self._running:
            process.terminate()
        until = time.monotonic() + _PATIENCE
        for _, process in self._running:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, until - time.monotonic()))
            if process.poll() is None:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self._running.clear()
