"""A sampling followed to its end: what to show meanwhile, and everything on disk at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from sundae.common.errors import UserError
from sundae.common.files import atomic_path, make_first_free, make_folder
from sundae.common.folders import atomic_folder
from sundae.common.images import make_grid, save_grid, save_image, to_pil, within
from sundae.sampling.output import GRID_LIMIT, sample_path
from sundae.sampling.sampler import SampleBatch

_ANIMATION_SIDE = 768  # pixels of its longer side, at most
_FRAME_MS, _LAST_FRAME_MS = 100, 2000  # durations in milliseconds; the last frame is the result

# Previews take a third of the time at most, and nobody sees more than 12 of them a second.
_PREVIEW_REST = 2.0  # times the duration of the last preview
_SHORTEST_REST = 0.08  # seconds


@dataclass
class Recording:
    """A sampling on disk.

    Attributes:
        folder: folder of all its files.
        num_samples: number of samples.
        num_steps: the most steps that a sample took.
        seconds: duration of all of it.
        history: steps of the first batch that have a file; empty without history.
    """

    folder: Path
    num_samples: int = 0
    num_steps: int = 0
    seconds: float = 0.0
    history: list[int] = field(default_factory=list)
    _frames: list[Image.Image] = field(default_factory=list)
    _grid: list[Tensor] = field(default_factory=list)

    @property
    def samples(self) -> list[Path]:
        """One PNG a sample."""
        return [sample_path(self.folder, number) for number in range(self.num_samples)]

    @property
    def grid(self) -> Path:
        """The samples side by side, at most 100."""
        return self.folder / "grid.png"

    @property
    def animation(self) -> Path | None:
        """The steps one after the other; None without history."""
        return self.folder / "history.webp" if self.history else None

    def step_path(self, step: int) -> Path:
        """The samples of the first batch side by side after a step."""
        return self.folder / "history" / f"step-{step:04d}.png"

    def add_step(self, step: int, images: Tensor) -> None:
        """Writes the samples (batch, 3, H, W) of the first batch after a step."""
        grid = make_grid(images)
        self.step_path(step).parent.mkdir(exist_ok=True)
        save_image(grid, self.step_path(step))
        self.history.append(step)
        self._frames.append(within(to_pil(grid), _ANIMATION_SIDE))

    def add_samples(self, batch: SampleBatch, images: Tensor) -> None:
        """Writes the samples (batch, 3, H, W) of a batch after its last step."""
        for number, image in enumerate(images, batch.first):
            save_image(image, sample_path(self.folder, number))
        self.num_samples += len(images)
        self.num_steps = max(self.num_steps, batch.step)
        self._grid.append(images[: max(0, GRID_LIMIT - batch.first)])

    def finish(self) -> None:
        """Writes what shows everything at once."""
        save_grid(torch.cat(self._grid), self.grid)
        if self.animation is not None:
            first, *rest = self._frames
            durations = [_FRAME_MS] * len(rest) + [_LAST_FRAME_MS]
            with atomic_path(self.animation) as partial:
                first.save(partial, quality=90, method=2, save_all=True, append_images=rest,
                           duration=durations, loop=0)  # fmt: skip


@dataclass(frozen=True)
class View:
    """What there is to show after a step.

    Attributes:
        batch: the batch after the step.
        pixels: (batch, 3, H, W) float32 in [0, 1]; None where this step was not decoded.
        recording: the files, in the last view only.
    """

    batch: SampleBatch
    pixels: Tensor | None = None
    recording: Recording | None = None


def record(
    states: Iterable[SampleBatch],
    folder: Path,
    *,
    history: bool = False,
    live: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> Generator[View, None, None]:
    """Follows a sampling and writes it to a folder that appears when it is complete.

    A caller that stops half way leaves nothing behind.

    Args:
        states: a sampling.
        folder: does not exist yet, or is empty.
        history: write an image of each step of the first batch, and an animation of them.
        live: decode while refining, as often as it does not delay the sampling much.

    Yields:
        a view a step, and the last one again with the recording.

    Raises:
        UserError: the folder cannot be written to, or out of memory.
    """
    began = next_preview = clock()
    with _filled(folder) as partial:
        recording = Recording(partial)
        for batch in states:
            stored = history and batch.first == 0
            if not (batch.is_final or stored or (live and clock() >= next_preview)):
                yield View(batch)
                continue
            started, pixels = clock(), batch.pixels()
            if stored:
                recording.add_step(batch.step, pixels)
            if batch.is_final:
                recording.add_samples(batch, pixels)
            yield View(batch, pixels)
            took = clock() - started  # with what the caller took to show it
            next_preview = clock() + max(_PREVIEW_REST * took, _SHORTEST_REST)
        recording.finish()
    recording.folder, recording.seconds = folder, clock() - began
    yield View(batch, pixels, recording)


@contextmanager
def _filled(folder: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `folder` on success; otherwise both are deleted."""
    try:
        with atomic_folder(folder) as partial:
            yield partial
    except torch.OutOfMemoryError:
        raise UserError("out of memory; lower nb_samples") from None
    finally:
        with suppress(OSError):  # it is full
            folder.rmdir()


def new_folder(parent: Path) -> Path:
    """Makes the first of PARENT/0001, PARENT/0002 and so on that nobody has made.

    Raises:
        UserError: it cannot be written.
    """
    make_folder(parent)
    return make_first_free(parent / f"{number:04d}" for number in count(1))
