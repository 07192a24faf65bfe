"""Plain values of a run file with overrides and flags in them, which know where each came from."""

from __future__ import annotations

import copy
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from pydantic import ValidationError

from hourglass_transformer.config import ConfigError
from sundae.common.errors import UserError, shown, suggestion
from sundae.config.keys import flag_of, keys_of

Section = TypeVar("Section")


@dataclass(frozen=True)
class Values:
    """Values from TOML, YAML or a checkpoint, merged with what the command line says.

    Attributes:
        tables: section -> key -> value.
        source: the file, or what else held the values, as errors name it.
        flags: dotted key -> the command-line flag that set it, for keys not set by the source.
    """

    tables: dict[str, Any]
    source: str
    flags: Mapping[str, str]

    @classmethod
    def merged(
        cls,
        values: Mapping[str, Any],
        source: str,
        overrides: Sequence[str] = (),
        flags: Mapping[str, Any] | None = None,
    ) -> Values:
        """Values in which overrides win, and flags over these.

        Args:
            overrides: 'section.key=value' each, the value as TOML or a bare word.
            flags: dotted key -> value of the flag named after it, None where it was not given; 0
                and False are values.

        Raises:
            UserError: an override without '=', or of a key below one that is no section.
        """
        changes = dict(parse_override(text) for text in overrides)
        names = {dotted: f"--set {dotted}" for dotted in changes}
        # A section that only an override mentions is the override's mistake, not the file's.
        sections = {dotted.split(".")[0]: flag for dotted, flag in names.items()}
        names |= {name: flag for name, flag in sections.items() if name not in values}
        for dotted, value in (flags or {}).items():
            if value is not None:
                changes[dotted] = value
                names[dotted] = flag_of(dotted)
        merged = cls(copy.deepcopy(dict(values)), source, names)
        for dotted, value in changes.items():
            merged._set(dotted, value)
        return merged

    def _set(self, dotted: str, value: Any) -> None:
        *sections, last = dotted.split(".")
        table = self.tables
        for depth, section in enumerate(sections):
            table = table.setdefault(section, {})
            if not isinstance(table, dict):
                inner = ".".join(sections[: depth + 1])
                raise UserError(f"{self.at(dotted)}: {inner} is no section")
        table[last] = value

    def at(self, dotted: str) -> str:
        """How to name a key to the user: 'config/x.toml: net.dim' or '--set net.dim'."""
        return self.flags.get(dotted) or f"{self.source}: {dotted}"

    def require(self, required: Mapping[str, str], known: Iterable[str]) -> None:
        """Check which sections and keys there are outside of sections.

        Args:
            required: name -> what is expected.
            known: names that may be there.

        Raises:
            UserError: an unknown or a missing one.
        """
        known = list(known)
        for name in sorted(self.tables.keys() - set(known)):
            advice = suggestion(name, known)
            raise UserError(f"{self.at(name)}: no such section or key{advice}")
        for name, expected in required.items():
            if name not in self.tables:
                raise UserError(f"{self.source}: {name} is missing; expected {expected}")

    def section(self, cls: type[Section], sections: Iterable[type] = ()) -> Section:
        """Make the section that `cls` declares of its table, which may be absent.

        Args:
            sections: all there are, to say where a misplaced key belongs.

        Raises:
            UserError: no table, or a key that is unknown, missing, mistyped, out of range or
                contradicts another.
        """
        name: str = cls.section  # type: ignore[attr-defined]
        table = self.tables.get(name, {})
        if not isinstance(table, dict):
            raise UserError(f"{self.at(name)}: expected a section [{name}], got {shown(table)}")
        keys = keys_of(cls)
        for key in sorted(table.keys() - keys.keys()):
            homes = [other.section for other in sections if key in keys_of(other)]  # type: ignore[attr-defined]
            advice = f"; it belongs to [{homes[0]}]" if homes else suggestion(key, keys)
            raise UserError(f"{self.at(f'{name}.{key}')}: not a key of [{name}]{advice}")
        for key in sorted(keys.keys() - table.keys()):
            if keys[key].required:
                expected = keys[key].expected
                raise UserError(f"{self.source}: {name}.{key} is missing; expected {expected}")
        return self.checked(cls, table)

    def checked(self, cls: type[Section], table: Mapping[str, Any]) -> Section:
        """`cls(**table)`; a value that it refuses is a UserError that names the key."""
        try:
            return cls(**table)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
        problem = first.get("ctx", {}).get("error")
        if isinstance(problem, ConfigError):
            if problem.reason.startswith("is missing"):
                raise UserError(f"{self.source}: {problem.key} {problem.reason}")
            raise UserError(f"{self.at(problem.key)}: {problem.reason}")
        key = keys_of(cls)[str(first["loc"][0])]
        where, value = self.at(key.dotted), table[key.name]
        hint = suggestion(value, key.choices) if key.choices and isinstance(value, str) else ""
        raise UserError(f"{where}: expected {key.expected}, got {shown(value)}{hint}")


def parse_override(text: str) -> tuple[str, Any]:
    """'net.dim=512', as --set takes it -> ('net.dim', 512); UserError for anything else."""
    dotted, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not dotted:
        raise UserError(f"--set {text}: expected key=value, for example --set net.dim=512")
    try:
        parsed = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        return dotted, value
    return dotted, parsed["value"] if len(parsed) == 1 else value


def plain(section: Any) -> dict[str, Any]:
    """A section, or several in one, as what TOML, YAML and JSON can hold, without what is None."""
    text = json.dumps(asdict(section), default=str)  # of paths
    plain: dict[str, Any] = json.loads(
        text, object_hook=lambda table: {k: v for k, v in table.items() if v is not None}
    )
    return plain
