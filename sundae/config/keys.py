"""What each key of a section accepts, for error messages, flags, controls and the docs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypedDict, Union, cast, get_args, get_origin

from pydantic.fields import FieldInfo

_LIMITS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
_ONE = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
    Path: "a path",
    dict: "a table",
}
_MANY = {int: "integers", float: "numbers", str: "strings"}


class Extra(TypedDict, total=False):
    """What a declaration adds to type, limits and description, as its `json_schema_extra`.

    Attributes:
        expected: words for what is accepted, in place of those made of the type and its limits.
        flag: help of the flag of a bool, which may set the opposite of what the description says.
        slider: [largest value, step] of the control on the page.
    """

    expected: str
    flag: str
    slider: list[float]


@dataclass(frozen=True)
class Key:
    """One key of a section.

    Attributes:
        section: name of the section.
        name: name of the key.
        annotation: the declared type.
        limits: of a number: 'ge', 'gt', 'le' and 'lt' -> the limit.
        default: value of an absent key; None where the key is required, where None is the default,
            and where the default is computed.
        required: whether the key has no default.
        description: a phrase for help texts and the docs.
        extra: what else the declaration says.
    """

    section: str
    name: str
    annotation: Any
    limits: dict[str, float]
    default: Any
    required: bool
    description: str
    extra: Extra

    @property
    def types(self) -> tuple[Any, ...]:
        """The accepted types, None not among them."""
        bare = _bare(self.annotation)
        members = get_args(bare) if get_origin(bare) in (UnionType, Union) else (bare,)
        return tuple(member for member in members if member is not NoneType)

    @property
    def kind(self) -> Any:
        """bool, int, float, str, Path, tuple or dict; the first where several are accepted."""
        first = _bare(self.types[0])
        return str if get_origin(first) is Literal else get_origin(first) or first

    @property
    def choices(self) -> tuple[str, ...]:
        """The names among which one is chosen; empty where any value goes."""
        first = _bare(self.types[0])
        return get_args(first) if get_origin(first) is Literal else ()

    @property
    def optional(self) -> bool:
        """Whether None is accepted."""
        return NoneType in get_args(_bare(self.annotation))

    @property
    def expected(self) -> str:
        """What is accepted, in words that fit after 'expected'."""
        return self.extra.get("expected") or describe(self.annotation, self.limits)

    @property
    def dotted(self) -> str:
        """'section.name'."""
        return f"{self.section}.{self.name}".lstrip(".")


def keys_of(cls: type) -> dict[str, Key]:
    """The keys of a section, a pydantic dataclass, in the order of their declaration."""
    fields: dict[str, FieldInfo] = cls.__pydantic_fields__  # type: ignore[attr-defined]
    return {
        name: Key(
            section=getattr(cls, "section", ""),
            name=name,
            annotation=field.annotation,
            limits=_limits(field.metadata),
            default=None if field.default_factory or field.is_required() else field.default,
            required=field.is_required(),
            description=field.description or "",
            extra=cast(Extra, field.json_schema_extra or {}),
        )
        for name, field in fields.items()
    }


def flag_of(dotted: str) -> str:
    """The command-line flag of a key.

    It leaves out the section: 'sampling.end_guidance' -> '--end-guidance'. Keys of [wandb] and of
    subsections would be unclear without: 'wandb.project' -> '--wandb-project',
    'mask.block.height' -> '--block-height'.
    """
    *sections, name = dotted.split(".")
    prefix = sections if sections == ["wandb"] else sections[1:]
    return "--" + "-".join([*prefix, name]).replace("_", "-")


def describe(annotation: Any, limits: Mapping[str, float] | None = None) -> str:
    """What a type with limits accepts, in words that fit after 'expected'."""
    bare, args = _bare(annotation), get_args(_bare(annotation))
    limits = {**(limits or {}), **_limits_within(annotation)}
    if get_origin(bare) in (UnionType, Union):
        return " or ".join(describe(arg, limits) for arg in args if arg is not NoneType)
    if get_origin(bare) is Literal:
        return "one of " + ", ".join(map(repr, args))
    if get_origin(bare) is tuple:
        count = "" if args[-1] is Ellipsis else f"{len(args)} "
        each = limit_words(_limits_within(args[0]))
        return f"a list of {count}{_MANY[_bare(args[0])]}" + (f", each {each}" if each else "")
    return f"{_ONE[get_origin(bare) or bare]} {limit_words(limits)}".strip()


def limit_words(limits: Mapping[str, float]) -> str:
    """'', 'at least 1', 'above 0 and at most 1'."""
    return " and ".join(f"{_LIMITS[name]} {limit:g}" for name, limit in limits.items())


def _bare(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _limits_within(annotation: Any) -> dict[str, float]:
    return _limits(get_args(annotation)[1:]) if get_origin(annotation) is Annotated else {}


def _limits(metadata: Iterable[Any]) -> dict[str, float]:
    return {
        word: getattr(limit, word) for word in _LIMITS for limit in metadata if hasattr(limit, word)
    }
