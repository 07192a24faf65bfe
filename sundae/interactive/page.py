"""The page: controls at the left, a tab to sample and one to edit an image."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from sundae.common.errors import UserError
from sundae.common.images import enlarged, within
from sundae.editing.request import EditRequest, Fit, Margins
from sundae.interactive.controls import AT_ONCE, Controls
from sundae.interactive.painting import painted_mask, read_upload
from sundae.interactive.results import MAX_TABS, Given, Results, Storage, message, save_shown
from sundae.interactive.session_files import SessionFiles
from sundae.interactive.settings import Settings
from sundae.sampling.sampler import SampleBatch

# Fonts that every system has: the page requests nothing from another host.
THEME = gr.themes.Default(
    font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"], radius_size="sm"
)
CSS = """
footer { display: none !important; }
.images .grid-wrap { min-height: 200px; max-height: 70vh; }
.images .grid-container { grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); }
.film .grid-wrap { overflow-y: hidden; }
.film .grid-container { grid-template: 150px / none; grid-auto-flow: column;
    grid-auto-columns: 150px; overflow-x: auto; }
"""

_EDITOR_SIDE = 640  # pixels of an image that is painted on
_TASKS = ("Inpaint", "Outpaint", "Image to image")
_SIDES = ("left", "right", "top", "bottom")
_MAX_WAITING = 16  # samplings; further ones are told that the queue is full


def build_page(
    defaults: Settings, keep: Path | None, files: SessionFiles, cookie: str
) -> gr.Blocks:
    """Lays the page out.

    Args:
        defaults: the model, and what the controls show at first.
        keep: receives a numbered folder for each sampling; None stores them with `files` only.
        files: what browsers can fetch.
        cookie: name of the cookie that holds the session of a browser.
    """
    page = gr.Blocks(title="SUNDAE", analytics_enabled=False, fill_width=True)
    page.state_session_capacity = MAX_TABS
    storage = Storage(keep, files, cookie)
    with page, gr.Row():
        with gr.Column(scale=1, min_width=260):
            controls = Controls(defaults)
        with gr.Column(scale=4), gr.Tabs():
            with gr.Tab("Sample"):
                results = Results(controls, storage, "sample")
                results.connect(set(), lambda settings, given: settings.sample())
            with gr.Tab("Edit an image"):
                _EditTab(controls, storage)
    return page.queue(max_size=_MAX_WAITING, api_open=False)  # all that is long waits its turn


class _EditTab:
    def __init__(self, controls: Controls, storage: Storage) -> None:
        self.storage = storage
        self.image = gr.State(None)
        with gr.Row():
            with gr.Column(scale=3):
                upload = gr.UploadButton("Choose an image", file_types=["image"], elem_id="upload")
                self.editor = gr.ImageEditor(
                    label="paint over what is to be repainted",
                    type="numpy",
                    format="png",
                    sources=(),
                    transforms=(),
                    layers=False,
                    brush=gr.Brush(colors=["#ff2d55"], color_mode="fixed", default_size=40),
                    canvas_size=(_EDITOR_SIDE, _EDITOR_SIDE),
                    placeholder="First choose an image.",
                    buttons=[],
                    elem_id="editor",
                )
            with gr.Column(scale=2, min_width=240):
                sampler = controls.defaults.sampler
                self._draw_task(*(side * sampler.codec.factor for side in sampler.grid))
        upload.upload(
            self._open,
            upload,
            [self.image, self.editor],
            show_progress="hidden",
            api_visibility="private",
        )
        inputs = {self.image, self.editor, self.task, self.keep_size, self.composite}
        results = Results(controls, storage, "edit", edits=True)
        results.connect(inputs | {self.strength, *self.sides}, self._sampling)

    def _draw_task(self, height: int, width: int) -> None:
        """height, width: in pixels, of what the network was trained on."""
        self.task = gr.Radio(list(_TASKS), value=_TASKS[0], label="what to do", elem_id="task")
        with gr.Group() as inpainting:
            self.composite = gr.Checkbox(
                True, label="keep the known pixels", info="else all pixels are as decoded"
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
            label="keep the image's size",
            info=f"else its centre is brought to {width}x{height}; large ones take longer",
        )
        self.task.change(
            lambda task: [gr.update(visible=task == name) for name in _TASKS],
            self.task,
            [inpainting, outpainting, varying],
            **AT_ONCE,
        )

    def _open(self, path: str, request: gr.Request) -> tuple[str, dict[str, Any]]:
        """(file of the image that is edited, what the editor shows)."""
        try:
            image = read_upload(Path(path))
        except UserError as error:
            raise message(error) from None
        folder = self.storage.new_folder(request)
        # On disk, not in memory: anyone could fill that by opening image after image.
        opened = save_shown(image, folder, 0)
        shown = save_shown(within(enlarged(image, _EDITOR_SIDE), _EDITOR_SIDE), folder, 1)
        return str(opened), {"background": str(shown), "layers": [], "composite": None}

    def _sampling(self, settings: Settings, given: Given) -> Iterator[SampleBatch]:
        """The sampling of the chosen task."""
        if given[self.image] is None:
            raise UserError("choose an image first")
        path = Path(given[self.image])
        if not path.is_file():
            raise UserError("the image was deleted after a day; choose it again")
        image = read_upload(path)
        fit: Fit = "keep" if given[self.keep_size] else "crop"
        if given[self.task] == "Inpaint":
            layers = (given[self.editor] or {}).get("layers") or []
            mask = painted_mask(layers, (image.height, image.width))
            request = EditRequest(mask=mask, composite=given[self.composite], fit=fit)
        elif given[self.task] == "Outpaint":
            pixels = {side: int(given[slider]) for side, slider in zip(_SIDES, self.sides)}
            request = EditRequest(outpaint=Margins(**pixels), fit=fit)
        else:
            request = EditRequest(strength=given[self.strength], fit=fit)
        return settings.edit(image, request)
