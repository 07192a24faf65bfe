"""Settings as the sliders, boxes and menus of a page."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

import gradio as gr

from sundae.config.sections import FEW_STEPS
from sundae.interactive.settings import EXTRAS, SAMPLING, Setting, Settings

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
        """Components that `settings` reads."""
        return {*self.components.values(), *self._given.values()}

    def settings(self, given: dict[gr.components.Component, Any]) -> Settings:
        """What the controls show; UserError for what is not accepted."""
        values = {}
        for name, component in self.components.items():
            value = given[component]
            if name in self._given and not given[self._given[name]]:
                value = None
            elif isinstance(value, float) and value.is_integer() and int in _kinds(name):
                value = int(value)  # browsers know but one kind of number
            values[name] = value
        seed = values.pop("seed").strip() or "new"
        return self.defaults.changed(**values).changed_by_text("seed", seed)

    def _concerns(self, name: str) -> bool:
        """Guidance needs a network that learned to do without the class."""
        return "guidance" not in name or bool(self.defaults.sampler.cfg.net.class_dropout)

    def _draw(self, name: str) -> gr.components.Component:
        label = name.replace("_", " ").removeprefix("nb ")
        if name == "class":
            names, chosen = list(self.defaults.sampler.class_names), self.defaults.value(name)
            return gr.Dropdown(
                names,
                value=chosen,
                multiselect=True,
                label=label,
                info="none: all in turn; in an edit, any",
            )
        kinds, value = _kinds(name), self.defaults.value(name)
        if kinds == [bool]:
            info = "keep every step" if name == "history" else None
            return gr.Checkbox(value, label=label, info=info)
        if get_origin(kinds[0]) is Literal:
            info = f"auto: renoise up to {FEW_STEPS} steps, else random"
            return gr.Dropdown(
                list(get_args(kinds[0])),
                value=value,
                label=label,
                info=info if name == "strategy" else None,
            )
        if _setting(name).optional:
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


def _setting(name: str) -> Setting:
    return (SAMPLING | EXTRAS)[name]


def _kinds(name: str) -> list[Any]:
    """The types that a setting may have, but for None."""
    if name == "class":
        return [list]
    hint = _setting(name).hint
    args = [hint] if get_origin(hint) is Literal else get_args(hint) or [hint]
    return [kind for kind in args if kind is not type(None)]


def _slider(name: str, label: str, value: float) -> gr.Slider:
    lowest, highest, step = _range(_setting(name), _REACH.get(name.removeprefix("end_")), value)
    return gr.Slider(lowest, highest, value, step=step, label=label)


def _range(
    setting: Setting, reach: tuple[float, float] | None, value: float
) -> tuple[float, float, float]:
    """(lowest, highest, step) of a slider."""
    rule = setting.rule
    whole = int in _kinds(setting.name)
    highest, step = reach or (max(1, 2 * value), 1 if whole else _SHARE_STEP)
    if rule.at_most is not None:
        highest, step = rule.at_most, min(step, _SHARE_STEP)
    lowest = rule.at_least if rule.at_least is not None else step
    return lowest, max(highest, value), step
