"""What can be set between two samplings: all of [sampling], checked as a run file is, and more.

A setting goes by its name: the keys of [sampling] by theirs, and 'class', 'seed' and 'history'.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

from PIL import Image
from pydantic import Field
from pydantic.dataclasses import dataclass as checked_dataclass

from sundae.common.errors import UserError
from sundae.config.keys import keys_of
from sundae.config.sections import SamplingConfig
from sundae.config.values import Values
from sundae.editing.request import EditRequest
from sundae.editing.sampler import Sampler
from sundae.sampling.sampler import SEEDS, SampleBatch, class_number

# Class names in a line that explains what may be typed.
_SOME = 20

# Words for what is not set: no value, a new seed, all classes.
_NOTHING = ("none", "new", "all")


@checked_dataclass(frozen=True, kw_only=True, config={"strict": True})
class Extras:
    """Settings that no run file has."""

    section: ClassVar[str] = ""

    seed: int | None = Field(
        default=None,
        ge=0,
        lt=SEEDS,
        json_schema_extra={
            "expected": f"an integer from 0 to {SEEDS - 1}, or 'new' for another one each time"
        },
    )
    history: bool = Field(default=False, description="store every step")


SAMPLING, EXTRAS = keys_of(SamplingConfig), keys_of(Extras)
del SAMPLING["compile"]  # the model is loaded by then
KEYS = SAMPLING | EXTRAS


@dataclass(frozen=True)
class Settings:
    """A model and how to sample from it next; a change makes new settings.

    Attributes:
        sampler: the model.
        sampling: most settings.
        classes: names of the classes that samples take in turn; empty for all of them.
        extras: the others.
    """

    sampler: Sampler
    sampling: SamplingConfig
    classes: tuple[str, ...] = ()
    extras: Extras = field(default_factory=Extras)

    @property
    def names(self) -> list[str]:
        """Names of all settings that this network has."""
        return [*SAMPLING, *(["class"] if self.sampler.class_names else []), *EXTRAS]

    def value(self, name: str) -> Any:
        """The value of a setting; that of 'class' is a list of names, empty for all."""
        if name == "class":
            return list(self.classes)
        return getattr(self.sampling if name in SAMPLING else self.extras, name)

    def shown(self, name: str) -> str:
        """The value of a setting as a user would type it."""
        value = self.value(name)
        if name == "class":
            return ", ".join(value) or "all"
        if value is None:
            return "new" if name == "seed" else "none"
        return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)

    def explained(self, name: str) -> str:
        """The same, and what it amounts to where the value leaves that open."""
        is_open = self.value(name) == "auto"
        return self.shown(name) + f" ({self.sampling.resolved_strategy})" * is_open

    def expected(self, name: str) -> str:
        """What may be typed as the value of a setting."""
        if name == "class":
            names = self.sampler.class_names
            some = ", ".join(names[:_SOME]) + f" and {len(names) - _SOME} more" * (
                len(names) > _SOME
            )
            return f"'all', or some of {some}, or their numbers from 0, with commas between"
        key = KEYS[name]
        words = key.expected.replace("true or false", "yes or no")
        return f"{words}, or 'none'" if key.optional and "expected" not in key.extra else words

    def changed(self, **values: Any) -> Settings:
        """The settings with new values.

        Args:
            values: name -> value as `value` returns it; None unsets what is optional.

        Raises:
            UserError: a value that is not accepted, or contradicts another setting; the message
                begins with the name.
        """
        known = self.sampler.class_names
        for name, value in values.items():
            if value is None and not KEYS[name].optional:
                raise UserError(f"{name}: expected {KEYS[name].expected}, got nothing")
        chosen = values.pop("class", self.classes)
        classes = tuple(known[class_number(name, known)] for name in chosen)
        extras = asdict(self.extras) | {n: v for n, v in values.items() if n in EXTRAS}
        changes = {name: value for name, value in values.items() if name not in EXTRAS}
        try:
            return replace(
                self,
                sampling=self.sampler.settings(**(asdict(self.sampling) | changes)),
                classes=classes,
                extras=Values({}, "settings", {}).checked(Extras, extras),
            )
        except UserError as error:
            message = str(error).removeprefix("settings: ").removeprefix("sampling.")
            raise UserError(message) from None

    def changed_by_text(self, name: str, text: str) -> Settings:
        """The same with a value as a user types it; raises UserError as `changed`."""
        text = text.strip()
        if name == "class":
            if text in self.sampler.class_names:  # a name may have a comma in it
                return self.changed(**{name: [text]})
            words = [] if text.lower() in _NOTHING else [word.strip() for word in text.split(",")]
            return self.changed(**{name: words})
        unset = KEYS[name].optional and text.lower() in _NOTHING
        return self.changed(**{name: None if unset else _parse(text)})

    def resolved(self) -> Settings:
        """The settings with a seed: their own, or a new one."""
        if self.extras.seed is not None:
            return self
        return self.changed(seed=secrets.randbelow(SEEDS))

    def sample(self) -> Iterator[SampleBatch]:
        """Samples; see `BaseSampler.refine`."""
        return self.sampler.refine(**self._options())

    def edit(self, image: Image.Image, request: EditRequest) -> Iterator[SampleBatch]:
        """Edits of an image, without a class unless one is chosen; see `Sampler.refine_edit`."""
        options = self._options()
        if not self.classes:  # guidance leads towards a class
            options |= {"guidance": 1.0, "end_guidance": None}
        edit = self.sampler.prepare_edit(image, request, options["seed"])
        return self.sampler.refine_edit(edit, **options)

    def _options(self) -> dict[str, Any]:
        assert self.extras.seed is not None, "resolve the settings first"
        return asdict(self.sampling) | {
            "num_samples": self.sampling.nb_samples,
            "classes": self.classes,
            "seed": self.extras.seed,
        }

    def captions(self, *, edits: bool = False) -> list[str | None]:
        """Names of the classes of all samples, or of all edits of an image; None without class."""
        names = self.sampler.class_names
        count = self.sampling.nb_samples
        rows = self.sampler.class_rows(self.classes, count, null_default=edits)
        if rows is None:
            return [None] * count
        return [names[row] if row < len(names) else None for row in rows.tolist()]


def _parse(text: str) -> Any:
    """A number, yes or no, or else the text itself."""
    words = {"yes": True, "true": True, "on": True, "no": False, "false": False, "off": False}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text
