"""Command-line flags made of the declarations of keys."""

from __future__ import annotations

import argparse
from typing import Any

from sundae.config.keys import Key, flag_of, keys_of, limit_words

_METAVARS = {int: "N", float: "X"}


def add_flags(parser: argparse._ActionsContainer, cls: type, *names: str) -> None:
    """Add a flag for each key of a section.

    None of them has a default: what is not given is left to the run file. A key that is true by
    default gets the flag that makes it false, such as --no-early-stop, one that is false the flag
    that makes it true; a key without a default gets both.

    Args:
        parser: or a group of one.
        cls: the section.
        names: of its keys; all unless given.
    """
    keys = keys_of(cls)
    for name in names or keys:
        flag, settings = _flag(keys[name])
        parser.add_argument(flag, dest=_dest(keys[name]), **settings)


def values_of(args: argparse.Namespace, cls: type, *names: str) -> dict[str, Any]:
    """Dotted key -> value of its flag; None for a flag that was not given or that there is not."""
    keys = keys_of(cls)
    return {keys[name].dotted: getattr(args, _dest(keys[name]), None) for name in names or keys}


def _dest(key: Key) -> str:
    return flag_of(key.dotted).removeprefix("--").replace("-", "_")


def _flag(key: Key) -> tuple[str, dict[str, Any]]:
    """The name of a key's flag, and its settings for argparse."""
    flag = flag_of(key.dotted)
    settings: dict[str, Any] = {"help": _help(key)}
    if key.kind is not bool:
        return flag, settings | {"type": key.kind, "metavar": _METAVARS.get(key.kind, "NAME")}
    if key.optional:
        return flag, settings | {"action": argparse.BooleanOptionalAction}
    settings |= {"action": "store_const", "const": not key.default}
    return flag.replace("--", "--no-") if key.default else flag, settings


def _help(key: Key) -> str:
    """The description, with the choices or limits and the default of a run file without the key."""
    if key.kind is bool:
        return key.extra.get("flag", key.description).replace("%", "%%")
    limits = ", ".join(key.choices) or limit_words(key.limits)
    default = "" if key.default is None else f" [{key.default}]"
    return f"{key.description}{limits and f' ({limits})'}{default}".replace("%", "%%")
