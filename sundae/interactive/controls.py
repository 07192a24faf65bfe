"""Settings as the sliders, boxes and menus of a page."""

from __future__ import annotations

from typing import Any

import gradio as gr

from sundae.interactive.settings import KEYS, Settings

# What most people change; the others are folded away.
_COMMON = ("nb_samples", "steps", "class", "strategy", "temperature", "end_temperature", "guidance",
           "history")  # fmt: skip

# Of events that need no model and hence no place in the queue.
AT_ONCE: dict[str, Any] = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}


class Controls:
    """One component for each setting, drawn where the page is being laid out.

    Args:
        defaults: what they show at first.
    """

    def __init__(self, defaults: Settings) -> None:
        self.defaults = defaults
        self.components: dict[str, gr.components.Component] = {}
        # Whether a setting that may be left open has a value.
        self._given: dict[str, gr.Checkbox] = {}
        # Guidance needs a network that has learned the null class.
        guided = bool(defaults.sampler.cfg.net.class_dropout)
        names = [name for name in defaults.names if guided or "guidance" not in name]
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
        """What the components show; UserError for what is not accepted."""
        values = {name: given[component] for name, component in self.components.items()}
        seed = values.pop("seed").strip() or "new"
        for name, value in values.items():
            if name in self._given and not given[self._given[name]]:
                values[name] = None
            elif isinstance(value, float) and value.is_integer() and int in KEYS[name].types:
                values[name] = int(value)  # browsers know but one kind of number
        return self.defaults.changed(**values).changed_by_text("seed", seed)

    def _draw(self, name: str) -> gr.components.Component:
        label, value = _label(name), self.defaults.value(name)
        if name == "class":
            return gr.Dropdown(
                list(self.defaults.sampler.class_names),
                value=value,
                multiselect=True,
                label=label,
                info="none: all in turn; in an edit, any",
            )
        key = KEYS[name]
        if key.choices:
            return gr.Dropdown(list(key.choices), value=value, label=label, info=key.description)
        if key.kind is bool:
            return gr.Checkbox(value, label=label, info=key.description)
        if key.optional:
            return self._draw_end(name, value)
        return _slider(name, value)

    def _draw_end(self, name: str, value: float | None) -> gr.Slider:
        """The slider of a key that may be unset, such as an `end_`, and a box that unsets it."""
        start = name.removeprefix("end_")
        verb = "is set" if start == name else "changes"
        moves = gr.Checkbox(value is not None, label=f"{_label(start)} {verb}")
        first = self.defaults.value(start) if value is None else value
        end = _slider(name, KEYS[name].limits.get("ge", 0) if first is None else first)
        end.visible = moves.value
        moves.change(lambda on: gr.update(visible=on), moves, end, **AT_ONCE)
        self._given[name] = moves
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
            reuse = gr.Button("Reuse last", size="sm", min_width=80, elem_id="reuse")
            renew = gr.Button("New each time", size="sm", min_width=80, elem_id="renew")
        self.last_seed = gr.State(None)
        reuse.click(_seed_text, self.last_seed, self.seed, **AT_ONCE)
        renew.click(lambda: "", None, self.seed, **AT_ONCE)


def _label(name: str) -> str:
    return name.replace("_", " ").removeprefix("nb ")


def _seed_text(seed: int | None) -> str:
    return "" if seed is None else str(seed)


def _slider(name: str, value: float) -> gr.Slider:
    """A slider over what the key accepts, or as far as its declaration says."""
    key, start = KEYS[name], KEYS[name.removeprefix("end_")]
    default = max(1, 2 * value), 1 if key.kind is int else 0.01
    highest, step = start.extra.get("slider", default)
    lowest, highest = key.limits.get("ge", step), key.limits.get("le", highest)
    return gr.Slider(
        lowest, max(highest, value), value, step=step, label=_label(name), info=key.description
    )
