"""The page: controls at the left, a tab to sample and one to work on a picture."""

from __future__ import annotations

import html
import shutil
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from sundae.common.animation import enlarged, within
from sundae.common.errors import UserError
from sundae.common.files import make_folder
from sundae.common.images import to_pil
from sundae.common.naming import printable
from sundae.editing.inpaint import outpaint_canvas
from sundae.interactive.controls import AT_ONCE, Controls
from sundae.interactive.guard import session_of
from sundae.interactive.painting import fitted, painted_mask, read_picture
from sundae.interactive.recording import Outcome, View, new_folder, record
from sundae.interactive.session import Progress, Session
from sundae.interactive.session_files import SessionFiles
from sundae.interactive.settings import Settings

Given = dict[gr.components.Component, Any]
Updates = dict[gr.components.Component, Any]

# Fonts that every system has: the page asks no other host for anything.
THEME = gr.themes.Default(
    font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"], radius_size="sm"
)
CSS = """
footer { display: none !important; }
.pictures .grid-wrap { min-height: 200px; max-height: 70vh; }
.pictures .grid-container { grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); }
.film .grid-wrap { overflow-y: hidden; }
.film .grid-container { grid-template: 150px / none; grid-auto-flow: column;
    grid-auto-columns: 150px; overflow-x: auto; }
"""

_FILM = 24  # pictures of a film strip
_SMALLEST_SIDE = 192  # pixels of a picture on the page
_LIVE_SIDE = 384  # the same while it is refined, when it has to be sent quickly
_EDITOR_SIDE = 640  # pixels of a picture that is painted on
_TASKS = ("Inpaint", "Outpaint", "Image to image")
_SIDES = ("left", "right", "top", "bottom")
_PREVIEW_AGE = 20.0  # seconds that the images of a step are kept
_MOST_WAITING = 16  # samplings; further ones are told that the queue is full
_MOST_TABS = 200  # open pages whose values Gradio remembers


def build_page(
    session: Session, defaults: Settings, keep: Path | None, files: SessionFiles, cookie: str
) -> gr.Blocks:
    """Lay the page out.

    Args:
        session: the model.
        defaults: what the controls show at first.
        keep: gets a numbered folder for each sampling; None keeps them with `files` only.
        files: what browsers can fetch.
        cookie: name of the cookie that holds the session of a browser.
    """
    page = gr.Blocks(title="SUNDAE", analytics_enabled=False, fill_width=True)
    page.state_session_capacity = _MOST_TABS
    shelf = _Shelf(keep, files, cookie)
    with page, gr.Row():
        with gr.Column(scale=1, min_width=260):
            controls = Controls(defaults)
        with gr.Column(scale=4), gr.Tabs():
            with gr.Tab("Sample"):
                _SampleTab(session, controls, shelf)
            with gr.Tab("Work on a picture"):
                _PictureTab(session, controls, shelf)
    return page.queue(max_size=_MOST_WAITING, api_open=False)  # all that is long waits its turn


def _told(error: UserError) -> str:
    """An error for the page, which takes messages for HTML; names of files may be anything."""
    return html.escape(printable(str(error)))


def _message(error: UserError) -> gr.Error:
    """A user's mistake as a message in the page, without a trace in the log."""
    return gr.Error(_told(error), print_exception=False)


class _Shelf:
    """Where samplings are written, and how browsers get at them.

    Attributes:
        keep: gets a numbered folder for each sampling, if it is not None.
    """

    def __init__(self, keep: Path | None, files: SessionFiles, cookie: str) -> None:
        self.keep, self._files, self._cookie = keep, files, cookie

    def new_folder(self, request: gr.Request) -> Path:
        """A folder whose files only the browser that sent a request can fetch."""
        return self._files.new_folder(session_of(request.cookies.get(self._cookie)))


class _Results:
    """Where pictures appear, with a film strip, and buttons to take them home."""

    def __init__(
        self, controls: Controls, shelf: _Shelf, name: str, *, any_class: bool = False
    ) -> None:
        """any_class: what is made here has no class unless one was chosen, if that can be."""
        self.controls, self.shelf = controls, shelf
        self.any_class = any_class
        with gr.Row():
            self.start = gr.Button("Start", variant="primary", scale=3, elem_id=f"{name}-start")
            self.stop = gr.Button("Stop", min_width=80, elem_id=f"{name}-stop")
        self.status = gr.Markdown("Nothing yet.", elem_id=f"{name}-status")
        self.pictures = gr.Gallery(
            label="pictures",
            show_label=False,  # it would lie over the first one
            columns=None,
            object_fit="contain",
            height="auto",
            buttons=["fullscreen"],
            elem_id=f"{name}-pictures",
            elem_classes="pictures",
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
            columns=_FILM,
            rows=1,
            object_fit="contain",
            buttons=["fullscreen"],
            elem_id=f"{name}-film",
            elem_classes="film",
        )
        self.played = gr.Image(
            label="played", visible=False, height=260, buttons=[], elem_id=f"{name}-played"
        )

    @property
    def outputs(self) -> list[gr.components.Component]:
        return [
            self.status,
            self.pictures,
            self.grid,
            self.all,
            self.animation,
            self.film,
            self.played,
            self.controls.last_seed,
        ]

    def connect(
        self,
        inputs: set[gr.components.Component],
        states_of: Callable[[Settings, Given], Iterator[Progress]],
    ) -> None:
        """Let the buttons start and stop a sampling.

        Args:
            inputs: components that `states_of` reads, beside the controls.
            states_of: (resolved settings, values of the inputs) -> the sampling.
        """

        stopped: set[str | None] = set()  # sessions of browsers

        def follow(given: Given, request: gr.Request) -> Iterator[Updates]:
            try:
                settings = self.controls.settings(given).resolved()
                yield self._cleared(settings)
                served = self.shelf.new_folder(request)
                updates = self._followed(states_of(settings, given), settings, served)
                with closing(updates):
                    for update in updates:
                        if request.session_hash in stopped:
                            break
                        if update:
                            yield update
                if request.session_hash in stopped:
                    yield {self.status: "Stopped."}
            except UserError as error:
                yield {self.status: f"That did not work: {_told(error)}."}
                raise _message(error) from None

        # Gradio's own way to cancel lets a step appear after it, and an error for a moment.
        def stop(request: gr.Request) -> None:
            if len(stopped) >= _MOST_TABS:  # nobody has as many pages open, or wants to stop one
                stopped.clear()
            stopped.add(request.session_hash)

        def go(request: gr.Request) -> None:
            stopped.discard(request.session_hash)

        self.stop.click(stop, **AT_ONCE)
        self.start.click(go, **AT_ONCE).then(
            follow,
            self.controls.inputs | inputs,
            self.outputs,
            concurrency_limit=1,
            concurrency_id="model",
            show_progress="hidden",
            api_visibility="private",
        )

    def _followed(
        self, states: Iterator[Progress], settings: Settings, served: Path
    ) -> Generator[Updates, None, None]:
        """What to show after each step, which may be nothing.

        served: gets the files that the browser fetches.
        """
        folder = new_folder(self.shelf.keep or served)
        views = record(states, folder, history=settings.extras.history, live=True)
        previews = _Previews(served)
        with closing(views):
            for view in views:
                if view.outcome is not None:
                    yield self._finished(view.outcome, settings, served)
                else:
                    shown = view.images is not None
                    yield self._shown(view, settings, previews.next()) if shown else {}

    def _caption(self, settings: Settings, number: int) -> str | None:
        return settings.class_of(number, any_unless_chosen=self.any_class)

    def _cleared(self, settings: Settings) -> Updates:
        return {
            self.status: f"Starting, seed {settings.extras.seed}.",
            self.controls.last_seed: settings.extras.seed,
            self.film: gr.update(value=[], visible=False),
            self.played: gr.update(value=None, visible=False),
            **{
                button: gr.update(interactive=False)
                for button in (self.grid, self.all, self.animation)
            },
        }

    def _shown(self, view: View, settings: Settings, preview: Path) -> Updates:
        assert view.images is not None
        progress = view.progress
        return {
            self.status: f"Step {progress.step} of {settings.cfg.sampling.steps}, "
            f"{progress.running} not done yet, seed {settings.extras.seed}.",
            self.pictures: [
                (
                    _saved(within(_visible(to_pil(image)), _LIVE_SIDE), preview, number),
                    self._caption(settings, number),
                )
                for number, image in enumerate(view.images, progress.first)
            ],
        }

    def _finished(self, outcome: Outcome, settings: Settings, served: Path) -> Updates:
        archive = shutil.make_archive(str(served / outcome.folder.name), "zip", outcome.folder)
        steps = settings.cfg.sampling.steps
        count = len(outcome.samples)
        updates: Updates = {
            self.status: f"{count} picture{'s' * (count != 1)} in {outcome.seconds:.2f} s, "
            f"{outcome.steps} of {steps} steps ({settings.strategy}), seed {settings.extras.seed}.",
            self.pictures: [
                (_shown_file(path, served, number), self._caption(settings, number))
                for number, path in enumerate(outcome.samples)
            ],
            self.grid: gr.update(value=_fetchable(outcome.grid, served), interactive=True),
            self.all: gr.update(value=archive, interactive=True),
        }
        if outcome.animation is not None:
            film = [
                (_fetchable(path, served), f"step {step}")
                for step, path in _picked(outcome.history, _FILM)
            ]
            animation = _fetchable(outcome.animation, served)
            updates |= {
                self.film: gr.update(value=film, visible=True),
                self.played: gr.update(value=animation, visible=True),
                self.animation: gr.update(value=animation, interactive=True),
            }
        return updates


class _SampleTab:
    def __init__(self, session: Session, controls: Controls, shelf: _Shelf) -> None:
        results = _Results(controls, shelf, "sample")
        results.connect(set(), lambda settings, given: session.sample(settings))


class _PictureTab:
    def __init__(self, session: Session, controls: Controls, shelf: _Shelf) -> None:
        self.session, self.shelf = session, shelf
        factor = session.codec.factor
        rows, columns = session.prior.trained_grid
        self.trained = rows * factor, columns * factor
        self.picture = gr.State(None)
        with gr.Row():
            with gr.Column(scale=3):
                self.upload = gr.UploadButton(
                    "Choose a picture", file_types=["image"], elem_id="upload"
                )
                self.editor = gr.ImageEditor(
                    label="paint over what is to be repainted",
                    type="numpy",
                    format="png",
                    sources=(),
                    transforms=(),
                    layers=False,
                    brush=gr.Brush(colors=["#ff2d55"], color_mode="fixed", default_size=40),
                    canvas_size=(_EDITOR_SIDE, _EDITOR_SIDE),
                    placeholder="First choose a picture.",
                    buttons=[],
                    elem_id="editor",
                )
            with gr.Column(scale=2, min_width=240):
                self._draw_task()
        self.upload.upload(
            self._open,
            self.upload,
            [self.picture, self.editor],
            show_progress="hidden",
            api_visibility="private",
        )
        results = _Results(controls, shelf, "picture", any_class=True)
        inputs = {self.picture, self.editor, self.task, self.keep_size, self.composite}
        results.connect(inputs | {self.strength, *self.sides}, self._states)

    def _draw_task(self) -> None:
        height, width = self.trained
        self.task = gr.Radio(list(_TASKS), value=_TASKS[0], label="what to do", elem_id="task")
        with gr.Group() as inpainting:
            self.composite = gr.Checkbox(
                True, label="keep the known pixels", info="else everything is as the codec draws it"
            )
        with gr.Group(visible=False) as outpainting:
            self.sides = [
                gr.Slider(
                    0,
                    (width if side in ("left", "right") else height) * 2,
                    width // 2 if side == "right" else 0,
                    step=1,
                    precision=0,
                    label=f"pixels to add, {side}",
                    elem_id=f"add-{side}",
                )
                for side in _SIDES
            ]
        with gr.Group(visible=False) as varying:
            self.strength = gr.Slider(
                0, 1, 0.5, step=0.01, label="strength", info="share of tokens drawn anew"
            )
        self.keep_size = gr.Checkbox(
            False,
            label="keep the picture's size",
            info=f"else its centre is brought to {width}x{height}; large ones take longer",
        )
        groups = [inpainting, outpainting, varying]
        self.task.change(
            lambda task: [gr.update(visible=task == name) for name in _TASKS],
            self.task,
            groups,
            **AT_ONCE,
        )

    def _open(self, path: str, request: gr.Request) -> tuple[str, dict[str, Any]]:
        """(file of the picture as it will be worked on, what the editor shows)."""
        try:
            picture = read_picture(Path(path))
        except UserError as error:
            raise _message(error) from None
        folder = self.shelf.new_folder(request)
        # On disk, not in memory: anyone could fill that by opening picture after picture.
        opened = _saved(picture, folder, 0)
        shown = _saved(within(enlarged(picture, _EDITOR_SIDE), _EDITOR_SIDE), folder, 1)
        return str(opened), {"background": str(shown), "layers": [], "composite": None}

    def _states(self, settings: Settings, given: Given) -> Iterator[Progress]:
        """The sampling that the chosen task asks for."""
        task = given[self.task]
        picture = _reopened(given[self.picture])
        size = picture.height, picture.width
        layers = (given[self.editor] or {}).get("layers") if task == "Inpaint" else []
        image, hidden = fitted(
            picture,
            painted_mask(layers or [], size),
            self.trained,
            keep_size=given[self.keep_size],
        )
        if task == "Inpaint":
            return self.session.inpaint(settings, image, hidden, composite=given[self.composite])
        if task == "Outpaint":
            pixels = {side: int(given[slider]) for side, slider in zip(_SIDES, self.sides)}
            return self.session.inpaint(settings, *outpaint_canvas(image, **pixels))
        return self.session.vary(settings, image, given[self.strength])


class _Previews:
    """Folders for the images of one step after the other.

    Each step has names of its own, since browsers fetch an address once. Old ones are deleted after
    a while, in which a slow browser has fetched them or has been given newer ones.
    """

    def __init__(self, parent: Path) -> None:
        self._parent, self._count = parent, 0
        self._kept: deque[tuple[float, Path]] = deque()

    def next(self) -> Path:
        """Creates a folder, and deletes the old ones."""
        now = time.monotonic()
        while self._kept and now - self._kept[0][0] > _PREVIEW_AGE:
            shutil.rmtree(self._kept.popleft()[1], ignore_errors=True)
        self._count += 1
        folder = make_folder(self._parent / f"step-{self._count}")
        self._kept.append((now, folder))
        return folder


def _reopened(path: str | None) -> Image.Image:
    if path is None:
        raise UserError("choose a picture first")
    if not Path(path).is_file():
        raise UserError("the picture was deleted after a day; choose it again")
    return read_picture(Path(path))


def _visible(image: Image.Image) -> Image.Image:
    return enlarged(image, _SMALLEST_SIDE)


def _saved(image: Image.Image, folder: Path, number: int) -> Path:
    path = folder / f"{number:05d}.png"
    image.save(path, compress_level=1)
    return path


def _shown_file(path: Path, served: Path, number: int) -> Path:
    """A picture for the page: the file itself, unless it is too small to see."""
    with Image.open(path) as image:
        larger = _visible(image)
        return _fetchable(path, served) if larger is image else _saved(larger, served, number)


def _fetchable(path: Path, served: Path) -> Path:
    """A file where the browser can fetch it: itself, or a copy."""
    if path.is_relative_to(served):
        return path
    return Path(shutil.copy(path, served))


def _picked(history: list[tuple[int, Path]], count: int) -> list[tuple[int, Path]]:
    """Evenly spread ones, with the first and the last."""
    last = len(history) - 1
    places = {round(last * place / (count - 1)) for place in range(count)}
    return [history[place] for place in sorted(places)]
