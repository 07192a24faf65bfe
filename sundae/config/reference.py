"""The keys of a section as a table of the documentation."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from sundae.config.keys import Key, keys_of, plain, shown


def section_table(cls: type, names: Iterable[str] = ()) -> str:
    """A heading, the section's docstring and a Markdown table of its keys.

    Args:
        cls: the section.
        names: of its keys; all unless given.
    """
    keys = keys_of(cls)
    title, _, meaning = (cls.__doc__ or "").partition(": ")
    rows = [_row(keys[name]) for name in names or keys]
    table = "\n".join(["| key | value | default | meaning |", "|---|---|---|---|", *rows])
    meaning = inspect.cleandoc(meaning[:1].upper() + meaning[1:])
    return f"## {title}\n\n{meaning}\n\n{table}"


def _row(key: Key) -> str:
    default = "required" if key.required else _default(key.default)
    cells = [f"`{key.name}`", key.expected, default, key.description]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _default(value: Any) -> str:
    return "unset" if value is None else f"`{shown(plain(value))}`".replace("'", '"')
