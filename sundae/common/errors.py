"""The exception for mistakes that the user can correct, and words of its messages."""

import difflib
from collections.abc import Iterable
from typing import Any


class UserError(Exception):
    """Bad input, in one line: the fault, the expectation and the remedy.

    Scripts print it without a traceback and exit with status 2. Every other exception is a bug, and
    its traceback is shown.
    """


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
