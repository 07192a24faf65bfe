"""The results of a sampling on the page: a gallery, a film strip, and buttons to download them."""

from __future__ import annotations

import html
import shutil
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image
from torch import Tensor

from sundae.common.errors import UserError
from sundae.common.files import make_folder
from sundae.common.images import enlarged, to_pil, within
from sundae.common.naming import printable
from sundae.interactive.controls import AT_ONCE, Controls
from sundae.interactive.guard import session_of
from sundae.interactive.recording import Recording, new_folder, record
from sundae.interactive.session_files import SessionFiles
from sundae.interactive.settings import Settings
from sundae.sampling.sampler import SampleBatch

Given = dict[gr.components.Component, Any]
Updates = dict[gr.components.Component, Any]

MAX_TABS = 200  # open pages whose values Gradio remembers
_FILM_LENGTH = 24  # images of a film strip
_MIN_SIDE = 192  # pixels of an image on the page
_LIVE_SIDE = 384  # the same at most while it is refined, when it has to be sent quickly
_PREVIEW_AGE = 20.0  # lifetime of the images of a step in seconds


def _escaped(error: UserError) -> str:
    """An error for the page, which takes messages for HTML; names of files may be anything."""
    return html.escape(printable(str(error)))


def message(error: UserError) -> gr.Error:
    """A user's mistake as a message in the page, without a trace in the log."""
    return gr.Error(_escaped(error), print_exception=False)


@dataclass(frozen=True)
class Storage:
    """Where samplings are written, and how browsers fetch them; see `build_page`."""

    keep: Path | None
    files: SessionFiles
    cookie: str

    def new_folder(self, request: gr.Request) -> Path:
        """A folder whose files only the browser that sent a request can fetch."""
        return self.files.new_folder(session_of(request.cookies.get(self.cookie)))


def save_shown(image: Image.Image, folder: Path, number: int) -> Path:
    """Writes an image quickly, as FOLDER/00000.png for number 0."""
    path = folder / f"{number:05d}.png"
    image.save(path, compress_level=1)
    return path


class Results:
    """A gallery of samples with buttons to start, stop and download, and a film strip.

    Args:
        controls: settings of the samplings.
        storage: receives the samples.
        name: prefix of the elements' ids.
        edits: whether the samples are edits of an image, without a class unless one is chosen.
    """

    def __init__(
        self, controls: Controls, storage: Storage, name: str, *, edits: bool = False
    ) -> None:
        self.controls, self.storage, self.edits = controls, storage, edits
        with gr.Row():
            self.start = gr.Button("Start", variant="primary", scale=3, elem_id=f"{name}-start")
            self.stop = gr.Button("Stop", min_width=80, elem_id=f"{name}-stop")
        self.status = gr.Markdown("Nothing yet.", elem_id=f"{name}-status")
        self.images = gr.Gallery(
            label="images",
            show_label=False,  # it would lie over the first one
            columns=None,
            object_fit="contain",
            height="auto",
            buttons=["fullscreen"],
            elem_id=f"{name}-images",
            elem_classes="images",
        )
        with gr.Row():
            self.grid, self.all, self.animation = (
                gr.DownloadButton(
                    label, interactive=False, size="sm", elem_id=f"{name}-download-{what}"
                )
                for label, what in (
                    ("Side by side (PNG)", "grid"),
                    ("All of them (ZIP)", "all"),
                    ("Animation (WebP)", "animation"),
                )
            )
        self.film = gr.Gallery(
            label="history",
            show_label=False,
            visible=False,
            height=190,
            columns=_FILM_LENGTH,
            rows=1,
            object_fit="contain",
            buttons=["fullscreen"],
            elem_id=f"{name}-film",
            elem_classes="film",
        )
        self.played = gr.Image(
            label="played", visible=False, height=260, buttons=[], elem_id=f"{name}-played"
        )

    def connect(
        self,
        inputs: set[gr.components.Component],
        sampling: Callable[[Settings, Given], Iterator[SampleBatch]],
    ) -> None:
        """Lets the buttons start and stop a sampling.

        Args:
            inputs: components that `sampling` reads, beside the controls.
            sampling: (settings with a seed, values of the inputs) -> the states.
        """
        stopped: set[str | None] = set()  # sessions of browsers

        def follow(given: Given, request: gr.Request) -> Iterator[Updates]:
            try:
                settings = self.controls.settings(given).resolved()
                yield self._cleared(settings)
                folder = self.storage.new_folder(request)
                updates = self._updates(sampling(settings, given), settings, folder)
                with closing(updates):
                    for update in updates:
                        if request.session_hash in stopped:
                            break
                        if update:
                            yield update
                    else:
                        return
                yield {self.status: "Stopped."}
            except UserError as error:
                yield {self.status: f"That did not work: {_escaped(error)}."}
                raise message(error) from None

        # Gradio's own way to cancel lets a step appear after it, and an error for a moment.
        def stop(request: gr.Request) -> None:
            if len(stopped) >= MAX_TABS:  # nobody has as many pages open to stop
                stopped.clear()
            stopped.add(request.session_hash)

        def go(request: gr.Request) -> None:
            stopped.discard(request.session_hash)

        self.stop.click(stop, **AT_ONCE)
        self.start.click(go, **AT_ONCE).then(
            follow,
            self.controls.inputs | inputs,
            [
                *(self.status, self.images, self.grid, self.all, self.animation),
                *(self.film, self.played, self.controls.last_seed),
            ],
            concurrency_limit=1,
            concurrency_id="model",
            show_progress="hidden",
            api_visibility="private",
        )

    def _updates(
        self, states: Iterator[SampleBatch], settings: Settings, served: Path
    ) -> Generator[Updates, None, None]:
        """What to show after each step, which may be nothing.

        served: receives the files that the browser fetches.
        """
        folder = new_folder(self.storage.keep or served)
        views = record(states, folder, history=settings.extras.history, live=True)
        previews = _preview_folders(served)
        captions = settings.captions(edits=self.edits)
        with closing(views):
            for view in views:
                if view.recording is not None:
                    yield self._finished(view.recording, settings, captions, served)
                elif view.pixels is not None:
                    yield self._shown(view.batch, view.pixels, settings, captions, next(previews))
                else:
                    yield {}

    def _cleared(self, settings: Settings) -> Updates:
        buttons = self.grid, self.all, self.animation
        return {
            self.status: f"Starting, seed {settings.extras.seed}.",
            self.controls.last_seed: settings.extras.seed,
            self.film: gr.update(value=[], visible=False),
            self.played: gr.update(value=None, visible=False),
            **{button: gr.update(interactive=False) for button in buttons},
        }

    def _shown(
        self,
        batch: SampleBatch,
        pixels: Tensor,
        settings: Settings,
        captions: list[str | None],
        folder: Path,
    ) -> Updates:
        images = [
            save_shown(within(enlarged(to_pil(image), _MIN_SIDE), _LIVE_SIDE), folder, number)
            for number, image in enumerate(pixels)
        ]
        return {
            self.status: f"Step {batch.step} of {batch.num_steps}, "
            f"{batch.num_running} not done yet, seed {settings.extras.seed}.",
            self.images: list(zip(images, captions[batch.first :])),
        }

    def _finished(
        self, recording: Recording, settings: Settings, captions: list[str | None], served: Path
    ) -> Updates:
        archive = shutil.make_archive(str(served / recording.folder.name), "zip", recording.folder)
        images = [
            _shown_file(path, served, number) for number, path in enumerate(recording.samples)
        ]
        updates: Updates = {
            self.status: f"{len(images)} image{'s' * (len(images) != 1)} in "
            f"{recording.seconds:.2f} s, {recording.num_steps} of {settings.sampling.steps} steps "
            f"({settings.sampling.resolved_strategy}), seed {settings.extras.seed}.",
            self.images: list(zip(images, captions)),
            self.grid: gr.update(value=_fetchable(recording.grid, served), interactive=True),
            self.all: gr.update(value=archive, interactive=True),
        }
        if recording.animation is not None:
            film = [
                (_fetchable(recording.step_path(step), served), f"step {step}")
                for step in _film_steps(recording.history)
            ]
            animation = _fetchable(recording.animation, served)
            updates |= {
                self.film: gr.update(value=film, visible=True),
                self.played: gr.update(value=animation, visible=True),
                self.animation: gr.update(value=animation, interactive=True),
            }
        return updates


def _preview_folders(parent: Path) -> Iterator[Path]:
    """Creates a folder for the images of each step, since browsers fetch an address once.

    Old ones are deleted after a while, in which a slow browser has fetched them or has been given
    newer ones.
    """
    folders: deque[tuple[float, Path]] = deque()
    for number in count(1):
        now = time.monotonic()
        while folders and now - folders[0][0] > _PREVIEW_AGE:
            shutil.rmtree(folders.popleft()[1], ignore_errors=True)
        folders.append((now, make_folder(parent / f"step-{number}")))
        yield folders[-1][1]


def _shown_file(path: Path, served: Path, number: int) -> Path:
    """An image for the page: the file itself, unless it is too small to see."""
    with Image.open(path) as image:
        larger = enlarged(image, _MIN_SIDE)
        return _fetchable(path, served) if larger is image else save_shown(larger, served, number)


def _fetchable(path: Path, served: Path) -> Path:
    """A file where the browser can fetch it: itself, or a copy."""
    if path.is_relative_to(served):
        return path
    return Path(shutil.copy(path, served))


def _film_steps(steps: list[int]) -> list[int]:
    """_FILM_LENGTH of the steps at most, evenly spread, with the first and the last."""
    places = np.linspace(0, len(steps) - 1, min(len(steps), _FILM_LENGTH)).round()
    return [steps[int(place)] for place in places]
