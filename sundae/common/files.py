"""Writing files: whole or not at all, and failing in one line."""

import errno
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sundae.common.errors import UserError


@contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """Turns the system's refusals (no permission, no space) into one line about `path`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"cannot write to {path}: {reason}; choose another place") from error


def make_folder(path: Path) -> Path:
    """Creates a folder and its parents and returns it; UserError when it cannot be written to."""
    with writing_to(path):
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return path


def make_first_free(folders: Iterable[Path]) -> Path:
    """Creates the first of some folders that does not exist yet, and returns it.

    No two callers get the same one. Raises UserError when it cannot be written.
    """
    for folder in folders:
        with writing_to(folder):
            try:
                folder.mkdir()
                return folder
            except FileExistsError:
                continue
    raise ValueError("none of the folders is free")


def named_path(path: Path) -> Path:
    """The same path, ending in a name also where it is "." or "..", to name something beside it."""
    return path if path.name.strip(".") else path.resolve()


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A path in the same folder to write to; it takes the name `path` when the block succeeds.

    The suffix stays, because some writers choose the format by it. When the block raises, `path` is
    as it was and the partial file is gone. An OSError in the block becomes a UserError.
    """
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    with writing_to(path):
        try:
            yield partial
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically; file names in it that are not UTF-8 keep their bytes."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="surrogateescape")


def write_json(path: Path, value: Any) -> None:
    """Writes mappings, sequences and plain values as JSON, atomically; NaN and infinities as null.

    Python would write the names of these, which JSON does not have.
    """
    write_text(path, json.dumps(_finite(value), indent=2, ensure_ascii=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
