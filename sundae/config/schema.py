"""Turn a table of plain values into a frozen dataclass, or say in one line why it cannot be."""

import dataclasses
import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin

from sundae.common.errors import UserError

Section = TypeVar("Section")


@dataclass(frozen=True)
class Origin:
    """Where values came from, so that an error can point at the place to change.

    Attributes:
        file: the run file, or whatever else held the values.
        flags: dotted key -> the command-line flag that set it, for keys not set by the file.
    """

    file: str
    flags: Mapping[str, str] = field(default_factory=dict)

    def at(self, key: str) -> str:
        """How to name `key` to the user: 'config/x.toml: net.dim' or '--set net.dim'."""
        return self.flags.get(key) or f"{self.file}: {key}"


@dataclass(frozen=True)
class Rule:
    """What a key's value must satisfy beyond its type. Limits hold for each number of a list.

    Attributes:
        at_least, above, at_most, below: limits of a number.
        aliases: other spellings of a choice -> the one that is stored.
        parse: replaces the conversion by type; raises ValueError for what it does not accept.
        expected: replaces the description of what is accepted.
    """

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)
    parse: Callable[[Any], Any] | None = None
    expected: str | None = None

    def allows(self, number: float) -> bool:
        """Whether a number is finite and within the limits."""
        return (
            math.isfinite(number)
            and (self.at_least is None or number >= self.at_least)
            and (self.above is None or number > self.above)
            and (self.at_most is None or number <= self.at_most)
            and (self.below is None or number < self.below)
        )

    def limits(self) -> str:
        """The limits in words: '', ' at least 1', ' above 0 and at most 1'."""
        words = {
            "at least": self.at_least,
            "above": self.above,
            "at most": self.at_most,
            "below": self.below,
        }
        given = [f"{word} {limit:g}" for word, limit in words.items() if limit is not None]
        return f" {' and '.join(given)}" if given else ""


def key(default: Any = MISSING, **rule: Any) -> Any:
    """A dataclass field that carries a Rule; required when it has no default."""
    metadata = {"rule": Rule(**rule)}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def build(
    cls: type[Section], values: Any, name: str, origin: Origin, sections: Mapping[str, type]
) -> Section:
    """Make the dataclass `cls` from the table [name] of a run file.

    Args:
        values: the table.
        sections: all there are, name -> dataclass, to say where a misplaced key belongs.

    Raises:
        UserError: `values` is no table, or a key is unknown, missing, mistyped or out of range.
    """
    if not isinstance(values, dict):
        raise UserError(f"{origin.at(name)}: expected a section [{name}], got {shown(values)}")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for unknown in sorted(values.keys() - fields.keys()):
        homes = [f"[{home}]" for home, other in sections.items() if unknown in _names(other)]
        advice = f"; it belongs to {homes[0]}" if homes else suggestion(unknown, fields)
        raise UserError(f"{origin.at(f'{name}.{unknown}')}: not a key of [{name}]{advice}")
    for missing in sorted(required_keys(cls) - values.keys()):
        expected = describe(fields[missing].type, fields[missing].metadata["rule"])
        raise UserError(f"{origin.file}: {name}.{missing} is missing; expected {expected}")
    converted = {
        k: check(v, fields[k].type, fields[k].metadata["rule"], origin.at(f"{name}.{k}"))
        for k, v in values.items()
    }
    return cls(**converted)


def _names(cls: type) -> set[str]:
    return {f.name for f in dataclasses.fields(cls)}


def required_keys(cls: type) -> set[str]:
    """Names of a dataclass's fields that have no default."""
    return {
        f.name
        for f in dataclasses.fields(cls)
        if f.default is MISSING and f.default_factory is MISSING
    }


def check(value: Any, hint: Any, rule: Rule, where: str) -> Any:
    """Convert `value` to the type `hint`, lists to tuples; UserError naming `where` otherwise."""
    try:
        return rule.parse(value) if rule.parse else _convert(value, hint, rule)
    except (ValueError, OverflowError):
        choices = [*get_args(hint), *rule.aliases] if get_origin(hint) is Literal else []
        hinted = suggestion(value, choices) if isinstance(value, str) else ""
        expected = describe(hint, rule)
        raise UserError(f"{where}: expected {expected}, got {shown(value)}{hinted}") from None


def _convert(value: Any, hint: Any, rule: Rule) -> Any:
    args = get_args(hint)
    if isinstance(hint, UnionType):
        return _first_match(value, [a for a in args if a is not NoneType], rule)
    if get_origin(hint) is Literal:
        return _choice(value, args, rule)
    if get_origin(hint) is tuple:
        return _convert_list(value, args, rule)
    return _convert_scalar(value, get_origin(hint) or hint, rule)


def _first_match(value: Any, hints: Iterable[Any], rule: Rule) -> Any:
    for hint in hints:
        try:
            return _convert(value, hint, rule)
        except ValueError:
            continue
    raise ValueError(value)


def _choice(value: Any, choices: tuple[str, ...], rule: Rule) -> str:
    if not isinstance(value, str):
        raise ValueError(value)
    name = rule.aliases.get(value, value)
    if name not in choices:
        raise ValueError(value)
    return name


def _convert_list(value: Any, hints: tuple[Any, ...], rule: Rule) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ValueError(value)
    if hints[-1] is Ellipsis:
        hints = hints[:1] * len(value)
    return tuple(_convert(v, hint, rule) for v, hint in zip(value, hints, strict=True))


def _convert_scalar(value: Any, hint: Any, rule: Rule) -> Any:
    accepted: Any = {float: (int, float), Path: (str, Path)}.get(hint, (hint,))
    # To Python a bool is an int; to someone writing a run file it is not.
    if not isinstance(value, accepted) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(value)
    if hint in (int, float) and not rule.allows(value):
        raise ValueError(value)
    if hint in (str, Path) and not str(value).strip():
        raise ValueError(value)
    return hint(value)


def describe(hint: Any, rule: Rule) -> str:
    """What a key accepts, in words that fit after 'expected'."""
    if rule.expected:
        return rule.expected
    args = get_args(hint)
    if isinstance(hint, UnionType):
        return " or ".join(describe(a, rule) for a in args if a is not NoneType)
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(repr(name) for name in (*args, *rule.aliases))
    if get_origin(hint) is tuple:
        return _describe_list(args, rule)
    words = {
        bool: "true or false",
        int: "an integer",
        float: "a number",
        str: "a string",
        Path: "a path",
        dict: "a table",
    }
    limits = rule.limits() if hint in (int, float) else ""
    return words[get_origin(hint) or hint] + limits


def _describe_list(hints: tuple[Any, ...], rule: Rule) -> str:
    words = {int: "integers", float: "numbers", str: "strings"}
    count = "" if hints[-1] is Ellipsis else f"{len(hints)} "
    limits = rule.limits()
    return f"a list of {count}{words[hints[0]]}{', each' if limits else ''}{limits}"


def suggestion(word: str, names: Iterable[str]) -> str:
    """'; did you mean ...?' for the nearest name, else all of them, or '' where there are none."""
    names = list(names)
    if near := difflib.get_close_matches(word, names, n=1, cutoff=0.6):
        return f"; did you mean '{near[0]}'?"
    return f"; valid names: {', '.join(sorted(names))}" if names else ""


def shown(value: Any) -> str:
    """A value as one short line of an error message."""
    text = {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def plain(value: Any) -> Any:
    """Dataclasses, tuples and paths as what JSON and TOML can hold; None is left out."""
    if dataclasses.is_dataclass(value):
        pairs = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return {k: plain(v) for k, v in pairs.items() if v is not None}
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, tuple):
        return [plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value
