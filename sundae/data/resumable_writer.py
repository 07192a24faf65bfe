"""Packed latents written batch by batch, by a job that may be killed and started again."""

import json
import os
import shutil
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np

from sundae.common.errors import UserError
from sundae.common.files import atomic_path, write_text, writing_to
from sundae.common.locking import folder_lock
from sundae.data.format import (
    MANIFEST_NAME,
    PARTIAL_NAME,
    TOKENS_NAME,
    Manifest,
    token_dtype,
    write_manifest,
)
from sundae.data.writer import refuse_finished

JOURNAL_NAME = "progress.jsonl"
SKIPPED_NAME = "skipped.txt"

_NAMES = (MANIFEST_NAME, JOURNAL_NAME, PARTIAL_NAME, TOKENS_NAME, SKIPPED_NAME)

Settings = dict[str, Any]


class ResumableWriter:
    """Appends token grids and remembers, picture by picture, how far it came.

    Rows go to tokens.partial, then a line to progress.jsonl says that they did. A job that was
    killed in between writes those rows again, so the result is the same as without the kill.

    Attributes:
        pictures_done: pictures that need no more work, written or skipped.
        rows: token grids written.
        skipped: reason by picture index, of the pictures that gave no rows.
    """

    def __init__(self, root: Path, settings: Settings, *, overwrite: bool = False) -> None:
        """Starts, or goes on where an earlier writer with the same settings stopped.

        Args:
            root: folder to create.
            settings: JSON values that decide the result; needs codebook_size and latent_shape.
            overwrite: drop what the folder holds, finished or not.

        Raises:
            UserError: root holds finished latents, was begun with other settings, is damaged, is
                being written by another process, or cannot be written to.
        """
        self.root = root
        self.pictures_done = 0
        self.rows = 0
        self.skipped: dict[int, str] = {}
        self._dtype = token_dtype(settings["codebook_size"])
        self._grid = tuple(settings["latent_shape"])
        with ExitStack() as stack:
            stack.enter_context(folder_lock(root))
            with writing_to(root):
                if overwrite:
                    for name in _NAMES:
                        (root / name).unlink(missing_ok=True)
                self._open(settings)
            self._lock = stack.pop_all()

    def _open(self, settings: Settings) -> None:
        journal = self.root / JOURNAL_NAME
        entries, length = _read_journal(journal)
        if entries:
            _require_same(self.root, entries[0], settings)
            self._restore(entries[1:])
        else:
            refuse_finished(self.root)
        self._tokens: IO[bytes] = (self.root / PARTIAL_NAME).open("ab")
        self._journal: IO[bytes] = journal.open("ab")
        self._tokens.truncate(self.rows * self._row_bytes)
        self._journal.truncate(length)
        if not entries:
            self._note(settings)

    @property
    def _row_bytes(self) -> int:
        return self._dtype.itemsize * int(np.prod(self._grid))

    def _restore(self, entries: list[dict[str, Any]]) -> None:
        for entry in entries:
            self.pictures_done, self.rows = entry["pictures"], entry["rows"]
            self.skipped |= {int(index): reason for index, reason in entry["skipped"].items()}
        partial = self.root / PARTIAL_NAME
        if not partial.exists() or partial.stat().st_size < self.rows * self._row_bytes:
            raise _damaged(self.root)

    def _note(self, entry: dict[str, Any]) -> None:
        self._journal.write(json.dumps(entry).encode() + b"\n")
        self._journal.flush()

    def append(self, tokens: np.ndarray, pictures: int, skipped: dict[int, str]) -> None:
        """Adds the rows of the next pictures.

        Args:
            tokens: (rows, h, w) integer in [0, codebook_size).
            pictures: how many pictures they come from, skipped ones included.
            skipped: reason by picture index, of those without rows.
        """
        if len(tokens) and tokens.shape[1:] != self._grid:
            raise ValueError(f"tokens are {tokens.shape[1:]} a picture, expected {self._grid}")
        with writing_to(self.root):
            self._tokens.write(tokens.astype(self._dtype).tobytes())
            self._tokens.flush()
            os.fsync(self._tokens.fileno())  # the journal must never be ahead of the rows
            self.pictures_done += pictures
            self.rows += len(tokens)
            self.skipped |= skipped
            self._note({"pictures": self.pictures_done, "rows": self.rows, "skipped": skipped})

    def finish(self, manifest: Manifest, report: str) -> None:
        """Turns the rows into finished latents; can be killed and repeated at any point.

        Args:
            manifest: what the rows are.
            report: text of skipped.txt; "" when nothing was skipped.
        """
        with writing_to(self.root):
            self._write_tokens()
            _write_or_remove(self.root / SKIPPED_NAME, report)
            write_manifest(self.root, manifest)
            self._remove_traces()

    def give_up(self, report: str) -> None:
        """Leaves nothing but the report, for when no picture gave rows."""
        with writing_to(self.root):
            _write_or_remove(self.root / SKIPPED_NAME, report)
            self._remove_traces()

    def _write_tokens(self) -> None:
        header = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self.rows, *self._grid),
        }
        with (
            atomic_path(self.root / TOKENS_NAME) as path,
            path.open("wb") as whole,
            (self.root / PARTIAL_NAME).open("rb") as rows,
        ):
            np.lib.format.write_array_header_1_0(whole, header)
            shutil.copyfileobj(rows, whole, 1 << 22)

    def _remove_traces(self) -> None:
        self._close_files()
        (self.root / JOURNAL_NAME).unlink()
        (self.root / PARTIAL_NAME).unlink()
        self.close()

    def close(self) -> None:
        """Closes the files; the work can be continued later, by another process, too."""
        self._close_files()
        self._lock.close()

    def _close_files(self) -> None:
        self._tokens.close()
        self._journal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _read_journal(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Entries of the journal and their bytes, without the last line when a kill tore it."""
    if not path.exists():
        return [], 0
    lines = [line for line in path.read_bytes().splitlines(True) if line.endswith(b"\n")]
    try:
        return [json.loads(line) for line in lines], sum(map(len, lines))
    except ValueError as error:
        raise _damaged(path.parent) from error


def _damaged(root: Path) -> UserError:
    return UserError(f"{root} is damaged and cannot be continued; pass --overwrite")


def _require_same(root: Path, begun: Settings, settings: Settings) -> None:
    for key, value in json.loads(json.dumps(settings)).items():
        if begun.get(key) != value:
            name, old = key.replace("_", " "), begun.get(key)
            raise UserError(
                f"{root} was begun with another {name} ({old}, now {value}); "
                "go on with the old one or pass --overwrite"
            )


def _write_or_remove(path: Path, text: str) -> None:
    if text:
        write_text(path, text)
    else:
        path.unlink(missing_ok=True)
