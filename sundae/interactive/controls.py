"""Settings as the sliders, boxes and menus of a page."""

from __future__ import annotations

from typing import Any

import gradio as gr

from sundae.config.keys import Key
from sundae.config.sections import FEW_STEPS
from sundae.interactive.settings import EXTRAS, SAMPLING, Settings

# How far a slider reaches, and its step. The lower end is the schema's; where a run file goes
# beyond the upper end, so does the slider.
_REACH: dict[str, tuple[float, float]] = {
    "steps": (200, 1),
    "nb_samples": (64, 1),
    "min_steps": (100, 1),
    "temperature": (2, 0.05),
    "choice_temperature": (20, 0.5),
    "guidance": (10, 0.1),
    "top_k": (256, 1),
}
_SHARE_STEP = 0.01  # of what lies between 0 and 1

# What most people change; the others are folded away.
_COMMON = ("nb_samples", "steps", "class", "strategy", "temperature", "end_temperature", "guidance",
           "history")  # fmt: skip

# Of events that need no model and hence no place in the queue.
AT_ONCE: dict[str, Any] = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}


class Controls:
    """One component for each setting."""

    def __init__(self, defaults: Settings) -> None:
        """Draw them where the page is being laid out."""
        self.defaults = defaults
        self.components: dict[str, gr.components.Component] = {}
        # Whether a setting that may be left open has a value.
        self._given: dict[str, gr.Checkbox] = {}
        names = [name for name in defaults.names if self._concerns(name)]
        for name in _COMMON:
            if name in names:
                self.components[name] = self._draw(name)
        self._draw_seed()
        with gr.Accordion("More", open=False):
            for name in names:
                if name not in self.components:
                    self.components[name] = self._draw(name)

    @property
    def inputs(self) -> set[gr.components.Component]:
        """What a handler has to ask for, so that `settings` can read it."""
        return {*self.components.values(), *self._given.values()}

    def settings(self, given: dict[gr.components.Component, Any]) -> Settings:
        """What the controls say; UserError for what is not accepted."""
        settings = self.defaults
        for name, component in self.components.items():
            value = given[component]
            if name == "seed":
                settings = settings.changed_by_text(name, value.strip() or "new")
            elif name in self._given and not given[self._given[name]]:
                settings = settings.changed(name, None)
            else:
                settings = settings.changed(name, self._plain(name, value))
        return settings

    def _concerns(self, name: str) -> bool:
        """Guidance needs a network that learned to do without the class."""
        return "guidance" not in name or bool(self.defaults.cfg.net.class_dropout)

    def _plain(self, name: str, value: Any) -> Any:
        """What a component gives as the schema takes it: browsers know but one kind of number."""
        if (
            isinstance(value, float)
            and value.is_integer()
            and name != "class"
            and _setting(name).kind is int
        ):
            return int(value)
        return value

    def _draw(self, name: str) -> gr.components.Component:
        label = name.replace("_", " ").removeprefix("nb ")
        if name == "class":
            names, chosen = list(self.defaults.class_names), self.defaults.value(name)
            return gr.Dropdown(
                names,
                value=chosen,
                multiselect=True,
                label=label,
                info="none: all in turn; in a picture, any",
            )
        key, value = _setting(name), self.defaults.value(name)
        if key.kind is bool:
            info = "keep every step" if name == "history" else None
            return gr.Checkbox(value, label=label, info=info)
        if key.choices:
            info = f"auto: renoise up to {FEW_STEPS} steps, else random"
            return gr.Dropdown(
                list(key.choices),
                value=value,
                label=label,
                info=info if name == "strategy" else None,
            )
        if key.optional:
            return self._draw_end(name, label, value)
        return _slider(name, label, value)

    def _draw_end(self, name: str, label: str, value: float | None) -> gr.Slider:
        """Where a value goes on its way, and whether it goes anywhere."""
        start = name.removeprefix("end_")
        moves = self._given[name] = gr.Checkbox(
            value is not None, label=f"{start.replace('_', ' ')} changes"
        )
        end = _slider(name, label, self.defaults.value(start) if value is None else value)
        end.visible = moves.value
        moves.change(lambda on: gr.update(visible=on), moves, end, **AT_ONCE)
        return end

    def _draw_seed(self) -> None:
        self.components["seed"] = self.seed = gr.Textbox(  # a number box shows 0 for nothing
            _seed_text(self.defaults.value("seed")),
            label="seed",
            placeholder="a new one each time",
            max_lines=1,
            elem_id="seed",
        )
        with gr.Row():
            self.reuse = gr.Button("Reuse last", size="sm", min_width=80, elem_id="reuse")
            self.renew = gr.Button("New each time", size="sm", min_width=80, elem_id="renew")
        self.last_seed = gr.State(None)
        self.reuse.click(_seed_text, self.last_seed, self.seed, **AT_ONCE)
        self.renew.click(lambda: "", None, self.seed, **AT_ONCE)


def _seed_text(seed: int | None) -> str:
    return "" if seed is None else str(seed)


def _setting(name: str) -> Key:
    return (SAMPLING | EXTRAS)[name]


def _slider(name: str, label: str, value: float) -> gr.Slider:
    lowest, highest, step = _range(_setting(name), _REACH.get(name.removeprefix("end_")), value)
    return gr.Slider(lowest, highest, value, step=step, label=label)


def _range(key: Key, reach: tuple[float, float] | None, value: float) -> tuple[float, float, float]:
    """(lowest, highest, step) of a slider."""
    highest, step = reach or (max(1, 2 * value), 1 if key.kind is int else _SHARE_STEP)
    if "le" in key.limits:
        highest, step = key.limits["le"], min(step, _SHARE_STEP)
    return key.limits.get("ge", step), max(highest, value), step
