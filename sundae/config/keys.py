"""What each key of a section accepts, for error messages, flags, controls and the docs."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

_LIMITS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
_WORDS = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
    Path: "a path",
    dict: "a table",
}


@dataclass(frozen=True)
class Key:
    """One key of a section.

    Attributes:
        section: the name of the section.
        name: of the key.
        hint: the declared type.
        limits: of a number: 'ge', 'gt', 'le' and 'lt' -> the limit.
        default: what an absent key means; None where that depends on other keys.
        required: whether it has no default.
        description: a phrase for help texts and the docs.
        extra: what else the declaration says (`json_schema_extra`); 'expected' replaces the words
            that describe the type.
    """

    section: str
    name: str
    hint: Any
    limits: dict[str, float]
    default: Any
    required: bool
    description: str
    extra: dict[str, Any]

    @property
    def options(self) -> tuple[Any, ...]:
        """The types that it accepts, None not among them."""
        bare = _bare(self.hint)
        options = get_args(bare) if get_origin(bare) in (UnionType, Union) else (bare,)
        return tuple(option for option in options if option is not NoneType)

    @property
    def kind(self) -> Any:
        """bool, int, float, str, Path, tuple or dict; the first where several are accepted."""
        first = _bare(self.options[0])
        return str if get_origin(first) is Literal else get_origin(first) or first

    @property
    def choices(self) -> tuple[str, ...]:
        """The names among which one is chosen; empty where any value goes."""
        first = _bare(self.options[0])
        return get_args(first) if get_origin(first) is Literal else ()

    @property
    def optional(self) -> bool:
        """Whether None is accepted."""
        return NoneType in get_args(_bare(self.hint))

    @property
    def expected(self) -> str:
        """What it accepts, in words that fit after 'expected'."""
        words: str = self.extra.get("expected") or describe(self.hint, self.limits)
        return words

    @property
    def flag(self) -> str:
        """Its name on a command line."""
        return flag_of(self.section, self.name)


def flag_of(section: str, name: str) -> str:
    """The command-line flag of a key: '--end-temperature', '--wandb-project'.

    Flags of [wandb], and of a section 'mask.block', begin with its name, its last one.
    """
    prefix = section if section == "wandb" else section.partition(".")[2]
    return "--" + (f"{prefix}-{name}" if prefix else name).replace("_", "-")


def keys_of(cls: type) -> dict[str, Key]:
    """The keys of a section, a pydantic dataclass, in the order of their declaration."""
    fields: dict[str, FieldInfo] = cls.__pydantic_fields__  # type: ignore[attr-defined]
    section = getattr(cls, "section", "")
    return {name: _key(section, name, field) for name, field in fields.items()}


def _key(section: str, name: str, field: FieldInfo) -> Key:
    extra = field.json_schema_extra
    return Key(
        section=section,
        name=name,
        hint=field.annotation,
        limits=_limits(field.metadata),
        default=None if field.default_factory or field.is_required() else field.default,
        required=field.is_required(),
        description=field.description or "",
        extra=dict(extra) if isinstance(extra, dict) else {},
    )


def _limits(metadata: Iterable[Any]) -> dict[str, float]:
    return {
        word: getattr(limit, word) for word in _LIMITS for limit in metadata if hasattr(limit, word)
    }


def _bare(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def describe(hint: Any, limits: dict[str, float] | None = None) -> str:
    """What a type with limits accepts, in words that fit after 'expected'."""
    limits = limits or {}
    if get_origin(hint) is Annotated:
        hint, *metadata = get_args(hint)
        limits = limits | _limits(metadata)
    args = [arg for arg in get_args(hint) if arg is not NoneType]
    if get_origin(hint) in (UnionType, Union):
        return " or ".join(describe(arg, limits) for arg in args)
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(repr, args))
    if get_origin(hint) is tuple:
        count = "" if args[-1] is Ellipsis else f"{len(args)} "
        article, item, *rest = describe(args[0]).split(" ", 2)
        del article
        return f"a list of {count}{item}s" + "".join(f", each {words}" for words in rest)
    return f"{_WORDS[get_origin(hint) or hint]} {limit_words(limits)}".strip()


def limit_words(limits: Mapping[str, float]) -> str:
    """'', 'at least 1', 'above 0 and at most 1'."""
    return " and ".join(f"{_LIMITS[name]} {limit:g}" for name, limit in limits.items())


def suggestion(word: str, names: Iterable[str]) -> str:
    """'; did you mean ...?' for the nearest name, else all of them, or '' where there are none."""
    names = list(names)
    if near := difflib.get_close_matches(word, names, n=1, cutoff=0.6):
        return f"; did you mean '{near[0]}'?"
    return f"; valid names: {', '.join(sorted(names))}" if names else ""


def shown(value: Any) -> str:
    """A value as one short line of an error message."""
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def plain(value: Any) -> Any:
    """Dataclasses, tuples and paths as what JSON and TOML can hold; None is left out."""
    if dataclasses.is_dataclass(value):
        pairs = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {name: plain(item) for name, item in pairs.items() if item is not None}
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
