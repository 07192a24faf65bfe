"""Follow a sampling to its end: what to show meanwhile, and everything on disk at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import chain, count, pairwise
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from sundae.common.animation import save_animation, within
from sundae.common.errors import UserError
from sundae.common.files import make_first_free, make_folder
from sundae.common.folders import atomic_folder
from sundae.common.images import make_grid, save_grid, save_image, to_pil
from sundae.interactive.session import Progress
from sundae.sampling.output import GRID_LIMIT, sample_path

ANIMATION = "history.webp"
_ANIMATION_SIDE = 768  # pixels of its longer side, at most


@dataclass(frozen=True)
class Outcome:
    """A finished sampling on disk.

    Attributes:
        folder: that holds all of it.
        samples: one PNG a sample.
        grid: the samples side by side, at most 100.
        steps: the most that a sample took.
        seconds: it all took.
        history: (step, PNG) of each step of the first batch; empty without history.
        animation: of these; None without history.
    """

    folder: Path
    samples: list[Path]
    grid: Path
    steps: int
    seconds: float
    history: list[tuple[int, Path]]
    animation: Path | None


@dataclass(frozen=True)
class View:
    """What there is to show after a step.

    Attributes:
        progress: the step.
        images: (batch, 3, H, W) float32 in [0, 1]; None where this step was not decoded.
        outcome: in the last view only.
    """

    progress: Progress
    images: Tensor | None
    outcome: Outcome | None = None


def record(
    states: Iterable[Progress],
    folder: Path,
    *,
    history: bool = False,
    live: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> Generator[View, None, None]:
    """Follow a sampling, and keep it in a folder that appears when it is complete.

    A caller that stops half way leaves nothing behind.

    Args:
        states: a sampling.
        folder: does not exist yet, or is empty.
        history: keep each step's picture of the first batch, and an animation of them.
        live: decode while refining, as often as it does not hold up the sampling much.

    Yields:
        a view a step, and the last one again with the outcome.

    Raises:
        UserError: the folder cannot be written to, or the memory does not suffice.
    """
    began, pace = clock(), PollPolicy(clock)
    with _released(folder), atomic_folder(folder) as partial:
        book = _Book(partial)
        for progress, ended in _with_ends(_enough_memory(states)):
            keep = history and progress.first == 0
            if not (ended or keep or (live and pace.due())):
                yield View(progress, None)
                continue
            started, images = clock(), progress.images()
            if keep:
                book.add_step(progress.step, images)
            if ended:
                book.add_samples(progress, images)
            view = View(progress, images)
            yield view
            pace.charge(clock() - started)  # with what the caller took to show it
        outcome = book.finish(folder, clock() - began)
    yield replace(view, outcome=outcome)


@contextmanager
def _released(folder: Path) -> Iterator[None]:
    """Take an empty folder away again when what should have filled it was given up."""
    try:
        yield
    except BaseException:
        with suppress(OSError):
            folder.rmdir()
        raise


def new_folder(parent: Path) -> Path:
    """Make the first of PARENT/0001, PARENT/0002 and so on that nobody has made.

    Raises:
        UserError: it cannot be written.
    """
    make_folder(parent)
    return make_first_free(parent / f"{number:04d}" for number in count(1))


class PollPolicy:
    """Says when to show a picture, so that at most a third of the time goes into showing."""

    _REST = 2.0  # times as long as the last one took
    _SHORTEST = 0.08  # seconds; more often than that nobody sees

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._next: float | None = None

    def due(self) -> bool:
        """Whether it is time for another one; the first one always is."""
        return self._next is None or self._clock() >= self._next

    def charge(self, seconds: float) -> None:
        """Rest for as long as a picture is worth that took so many seconds until now."""
        self._next = self._clock() + max(self._REST * seconds, self._SHORTEST)


@dataclass
class _Book:
    """What has been written of a sampling so far."""

    folder: Path
    samples: list[Path] = field(default_factory=list)
    history: list[tuple[int, Path]] = field(default_factory=list)
    frames: list[Image.Image] = field(default_factory=list)
    shown: list[Tensor] = field(default_factory=list)
    steps: int = 0

    def add_step(self, step: int, images: Tensor) -> None:
        path = self.folder / "history" / f"step-{step:04d}.png"
        path.parent.mkdir(exist_ok=True)
        grid = make_grid(images)
        save_image(grid, path)
        self.history.append((step, path))
        self.frames.append(within(to_pil(grid), _ANIMATION_SIDE))

    def add_samples(self, progress: Progress, images: Tensor) -> None:
        self.steps = max(self.steps, progress.step)
        for number, image in enumerate(images, progress.first):
            self.samples.append(sample_path(self.folder, number))
            save_image(image, self.samples[-1])
        self.shown.append(images[: max(0, GRID_LIMIT - progress.first)])

    def finish(self, folder: Path, seconds: float) -> Outcome:
        """Write what shows everything at once. The folder is the one that all will be in."""
        save_grid(torch.cat(self.shown), self.folder / "grid.png")
        if self.frames:
            save_animation(self.frames, self.folder / ANIMATION)
        return Outcome(
            folder=folder,
            samples=[folder / path.name for path in self.samples],
            grid=folder / "grid.png",
            steps=self.steps,
            seconds=seconds,
            history=[(step, folder / "history" / path.name) for step, path in self.history],
            animation=folder / ANIMATION if self.frames else None,
        )


def _with_ends(states: Iterable[Progress]) -> Iterator[tuple[Progress, bool]]:
    """Each state, and whether it is the last one of its batch."""
    for state, following in pairwise(chain(states, [None])):
        assert state is not None
        yield state, following is None or following.first != state.first


def _enough_memory(states: Iterable[Progress]) -> Iterator[Progress]:
    try:
        yield from states
    except torch.OutOfMemoryError:
        raise UserError("the device's memory does not suffice; lower nb_samples") from None
