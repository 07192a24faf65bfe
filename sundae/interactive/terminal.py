"""The menu in a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from sundae.common.errors import UserError, suggestion
from sundae.common.naming import printable
from sundae.interactive.recording import Recording, new_folder, record
from sundae.interactive.settings import Settings

with contextlib.suppress(ImportError):  # arrow keys and earlier lines, where the system has it
    import readline  # noqa: F401

_MENU = {
    "sample": "sample",
    "repeat": "repeat the last: same settings, same seed",
    "change": "change a setting",
    "show": "show all settings",
    "exit": "exit",
}


class _Leave(Exception):  # noqa: N818 - no error
    """The user leaves."""


@dataclass
class Terminal:
    """Offers the menu until the user leaves or the input ends.

    Ctrl-C at a question leaves (KeyboardInterrupt); while sampling it drops that sampling and
    returns to the menu, unless the input is a pipe, which nobody could answer then. Ctrl-D leaves
    at any question.

    Attributes:
        settings: the model, and settings of the next sampling.
        out_dir: receives a numbered folder for each sampling.
        bar: whether progress is shown, if this is a terminal.
        last: settings of the last sampling, with its seed.
    """

    settings: Settings
    out_dir: Path
    bar: bool = True
    last: Settings | None = None

    def run(self) -> None:
        """The loop."""
        actions: dict[str, Callable[[], None]] = {
            "sample": self.sample,
            "repeat": self.repeat,
            "change": self.change,
            "show": self.show,
        }
        for number, line in enumerate(_MENU.values(), 1):
            print(f"  {number}  {line}")
        with contextlib.suppress(_Leave):
            while (choice := self._choose("> ", list(_MENU))) != "exit":
                try:
                    if choice:
                        actions[choice]()
                except UserError as error:
                    _say(error)

    def sample(self) -> None:
        """Samples with the current settings."""
        self._sample(self.settings.resolved())

    def repeat(self) -> None:
        """Samples as the last time, with or without a history as it is set now."""
        if self.last is None:
            raise UserError("there is nothing to repeat yet; sample first")
        self._sample(self.last.changed(history=self.settings.value("history")))

    def change(self) -> None:
        """Changes a setting of the user's choice; a value that is not accepted is read again."""
        self.show()
        name = self._choose("which one? (Enter for none) ", self.settings.names)
        if not name:
            return
        _say(f"{name}: {self.settings.expected(name)}; Enter keeps {self.settings.shown(name)}")
        while text := self._read(f"{name} = "):
            try:
                self.settings = self.settings.changed_by_text(name, text)
                break
            except UserError as error:
                _say(error)
        _say(f"{name} is {self.settings.explained(name)}")

    def show(self) -> None:
        """Prints all settings."""
        for number, name in enumerate(self.settings.names, 1):
            _say(f"  {number:2}  {name:<22} {self.settings.explained(name)}")

    def _sample(self, settings: Settings) -> None:
        try:
            recording = self._record(settings)
        except KeyboardInterrupt:
            if not sys.stdin.isatty():
                raise
            print("stopped; nothing of it was kept")
            return
        self.last = settings
        for line in report(recording, settings):
            _say(line)

    def _record(self, settings: Settings) -> Recording:
        folder = new_folder(self.out_dir)
        views = record(settings.sample(), folder, history=settings.extras.history)
        steps = settings.sampling.steps
        with tqdm(total=steps, unit="step", disable=None if self.bar else True) as bar:
            for view in views:
                bar.n = view.batch.step
                bar.set_postfix(samples=view.batch.first, running=view.batch.num_running)
        assert view.recording is not None
        return view.recording

    def _choose(self, prompt: str, names: list[str]) -> str:
        """One of some names, by number or by its first letters; "" when nothing was typed."""
        while text := self._read(prompt).lower():
            if text.isdecimal() and 1 <= int(text) <= len(names):
                return names[int(text) - 1]
            near = [text] if text in names else [name for name in names if name.startswith(text)]
            if len(near) == 1:
                return near[0]
            hint = suggestion(text, near or names)
            _say(f"expected a number from 1 to {len(names)} or a name, got '{text}'{hint}")
        return ""

    def _read(self, prompt: str) -> str:
        try:
            text = input(prompt)
        except EOFError:
            print()
            raise _Leave from None
        if not sys.stdin.isatty():  # so that what was piped in can be read like a conversation
            _say(text)
        return text.strip()


def _say(line: object) -> None:
    """Prints a line that may hold names of classes and folders."""
    print(printable(str(line)))


def report(recording: Recording, settings: Settings) -> list[str]:
    """What a sampling took and where its files are, in lines."""
    lines = [
        f"{recording.num_samples} samples in {recording.seconds:.2f} s, {recording.num_steps} of "
        f"{settings.sampling.steps} steps ({settings.sampling.resolved_strategy}), "
        f"seed {settings.extras.seed}: {recording.folder}, side by side in {recording.grid.name}"
    ]
    if recording.animation is not None:
        lines.append(f"each step in history/, played by {recording.animation.name}")
    return lines
