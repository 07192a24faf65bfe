"""What can be set between two samplings: all of [sampling], checked as a run file is, and more.

A setting goes by its name: the keys of [sampling] by theirs, and 'class', 'seed' and 'history'.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pydantic import Field
from pydantic.dataclasses import dataclass as pydantic_dataclass

from sundae.common.errors import UserError
from sundae.config.keys import keys_of
from sundae.config.run_file import RunConfig, SamplingConfig, parse_config
from sundae.config.sections import STRICT, StrategyName
from sundae.config.values import Values
from sundae.sampling.opening import class_number

SEEDS = 2**32  # what --seed accepts, so that a seed found here can be given to every script

# How an error names the settings; cut off again, since whoever asked knows what it was about.
_SOURCE = "settings"

# Class names in a line that explains what may be typed.
_SOME = 20

# Words for what is not set: no value, a new seed, all classes.
_NOTHING = ("none", "new", "all")


@pydantic_dataclass(frozen=True, kw_only=True, config=STRICT)
class Extras:
    """Settings that no run file has."""

    seed: int | None = Field(
        default=None,
        ge=0,
        lt=SEEDS,
        json_schema_extra={
            "expected": f"an integer from 0 to {SEEDS - 1}, or 'new' for another one each time"
        },
    )
    history: bool = Field(default=False)


SAMPLING, EXTRAS = keys_of(SamplingConfig), keys_of(Extras)
del SAMPLING["compile"]  # the model is loaded by then


@dataclass(frozen=True)
class Settings:
    """How to sample next; a change makes new settings.

    Attributes:
        cfg: the run, whose [sampling] holds most settings.
        class_names: of a network that knows classes, else empty.
        classes: numbers of the classes to sample in turn; empty for all of them.
        extras: the others.
    """

    cfg: RunConfig
    class_names: tuple[str, ...] = ()
    classes: tuple[int, ...] = ()
    extras: Extras = field(default_factory=Extras)

    @property
    def names(self) -> list[str]:
        """Of all settings that this network has, the most wanted first."""
        return [*SAMPLING, *(["class"] if self.class_names else []), *EXTRAS]

    def value(self, name: str) -> Any:
        """The value of a setting; that of 'class' is a list of names, empty for all."""
        if name == "class":
            return [self.class_names[number] for number in self.classes]
        return getattr(self.cfg.sampling if name in SAMPLING else self.extras, name)

    def shown(self, name: str) -> str:
        """The value of a setting as a user would type it."""
        value = self.value(name)
        if name == "class":
            return ", ".join(value) or "all"
        if value is None:
            return "new" if name == "seed" else "none"
        return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)

    def explained(self, name: str) -> str:
        """The same, and what it comes to where the value leaves that open."""
        open_ended = self.value(name) == "auto"
        return self.shown(name) + f" ({self.strategy})" * open_ended

    @property
    def strategy(self) -> StrategyName:
        """The strategy that is used, also where it is 'auto'."""
        return self.cfg.sampling.resolved_strategy

    def expected(self, name: str) -> str:
        """What a setting accepts, in words that fit after 'expected'."""
        if name == "class":
            names = ", ".join(self.class_names[:_SOME])
            more = f" and {len(self.class_names) - _SOME} more" * (len(self.class_names) > _SOME)
            return f"'all', or some of {names}{more}, or their numbers from 0, with commas between"
        key = (SAMPLING | EXTRAS)[name]
        unset = ", or 'none'" if key.optional and "expected" not in key.extra else ""
        return key.expected.replace("true or false", "yes or no") + unset

    def changed(self, name: str, value: Any) -> Settings:
        """The settings with one new value.

        Args:
            name: one of `names`.
            value: as `value` gives it; None unsets what is optional.

        Raises:
            UserError: a value that is not accepted, or contradicts another setting; the message
                begins with the name.
        """
        if name == "class":
            return replace(self, classes=self._class_numbers(value))
        if name in EXTRAS:
            extras = Values({}, "", {name: name}).checked(
                Extras, asdict(self.extras) | {name: value}
            )
            return replace(self, extras=extras)
        values = self.cfg.to_dict()
        if value is None and SAMPLING[name].optional:
            values["sampling"].pop(name, None)
        else:
            values["sampling"][name] = value
        try:
            return replace(self, cfg=parse_config(values, _SOURCE))
        except UserError as error:  # what contradicts another setting
            raise UserError(str(error).removeprefix(f"{_SOURCE}: sampling.")) from None

    def changed_by_text(self, name: str, text: str) -> Settings:
        """The same with a value as a user types it; raises UserError as `changed`."""
        text = text.strip()
        if name == "class":
            if text in self.class_names:  # a name may have a comma in it
                return self.changed(name, [text])
            words = [] if text.lower() in _NOTHING else [word.strip() for word in text.split(",")]
            return self.changed(name, words)
        setting = (SAMPLING | EXTRAS)[name]
        if setting.optional and text.lower() in _NOTHING:
            return self.changed(name, None)
        return self.changed(name, _parse(text))

    def wanted(self, *, any_unless_chosen: bool = False) -> list[int]:
        """Numbers of the classes that samples take in turn; empty where there are no classes.

        Args:
            any_unless_chosen: where no class was chosen, take the one that means any, if the
                network has learned it, instead of all.
        """
        null = self.cfg.net.null_class
        if any_unless_chosen and not self.classes and null is not None:
            return [null]
        return list(self.classes or range(len(self.class_names)))

    def class_of(self, number: int, *, any_unless_chosen: bool = False) -> str | None:
        """Name of the class of a sample; None where it has none."""
        wanted = self.wanted(any_unless_chosen=any_unless_chosen)
        turn = wanted[number % len(wanted)] if wanted else len(self.class_names)
        return self.class_names[turn] if turn < len(self.class_names) else None

    def _class_numbers(self, names: Sequence[str]) -> tuple[int, ...]:
        known = list(self.class_names)
        return tuple(class_number(name, known, named="class") for name in names)

    def resolved(self) -> Settings:
        """The settings with a seed: its own, or a fresh one."""
        if self.extras.seed is not None:
            return self
        return self.changed("seed", secrets.randbelow(SEEDS))


def _parse(text: str) -> Any:
    """A number, yes or no, or else the text itself."""
    words = {"yes": True, "true": True, "on": True, "no": False, "false": False, "off": False}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
