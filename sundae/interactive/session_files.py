"""Files that the page serves: each belongs to one browser session and is deleted after a while."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sundae.common.files import make_folder
from sundae.common.folders import remove_tree

# The owner of what a client without a session cookie uploads or samples. Whoever knows the path of
# such a file may read it; the path holds a hash or a random number of at least 128 bits.
NOBODY = ""


@dataclass(frozen=True)
class Limits:
    """How much is kept, and for how long.

    Attributes:
        upload_age: seconds that an upload is kept.
        result_age: seconds that a result is kept.
        stray_age: seconds since its last change that a file is kept which is neither, such as the
            rest of an upload that broke off.
        uploads: number of uploads kept for a session.
        upload_size: bytes of all uploads together.
        size: bytes of all files together.
    """

    upload_age: float = 3600.0
    result_age: float = 86400.0
    stray_age: float = 30.0
    uploads: int = 200
    upload_size: int = 2**30
    size: int = 4 * 2**30


@dataclass
class _Entry:
    """A file or folder directly below the root."""

    path: Path
    owners: set[str]
    uploaded: bool
    created: float
    size: int


class SessionFiles:
    """A folder whose entries (uploads and folders of results) each belong to a browser session.

    Safe to use from several threads.
    """

    def __init__(
        self, root: Path, limits: Limits | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        """Creates the folder.

        Args:
            root: the folder. Whatever appears in it and is not registered here is never served.
            limits: how much is kept, and for how long.
            clock: seconds since the epoch.
        """
        self.root = make_folder(root).resolve()
        self.limits = limits or Limits()
        self._clock = clock
        self._entries: dict[str, _Entry] = {}  # by name, oldest first
        self._lock = threading.Lock()

    def new_folder(self, owner: str) -> Path:
        """Creates a folder for results of a session; its name cannot be guessed."""
        path = self.root / secrets.token_hex(16)
        path.mkdir()
        self._register(path, owner, uploaded=False)
        return path

    def add_upload(self, owner: str, path: str) -> None:
        """Notes that a file below the root was uploaded by a session."""
        name = self._entry_name(path)
        if name is not None:
            self._register(self.root / name, owner, uploaded=True)

    def may_read(self, owner: str, path: str) -> bool:
        """Whether a path is below an entry of this session or of nobody.

        It has to be spelt as it was handed out: without "..", links, and whatever else another
        reader of the same text could take for another place.
        """
        name = self._entry_name(path)
        with self._lock:
            entry = self._entries.get(name) if name is not None else None
            return entry is not None and not entry.owners.isdisjoint((owner, NOBODY))

    def sweep(self) -> None:
        """Deletes what is past its time and, the oldest first, what is beyond the limits."""
        now = self._clock()
        with self._lock:
            paths = {name: entry.path for name, entry in self._entries.items()}
        sizes = {name: _size(path) for name, path in paths.items()}  # slow: requests go on
        with self._lock:
            for name, entry in self._entries.items():
                entry.size = sizes.get(name, entry.size)
            self._delete([n for n, entry in self._entries.items() if self._is_old(entry, now)])
            self._delete(_oldest_beyond(self._entries, self.limits.size))
            self._delete_strays(now)

    def _register(self, path: Path, owner: str, *, uploaded: bool) -> None:
        with self._lock:
            known = self._entries.pop(path.name, None)
            owners = known.owners | {owner} if known else {owner}
            size = _size(path) if uploaded else 0  # a folder of results has yet to be filled
            self._entries[path.name] = _Entry(path, owners, uploaded, self._clock(), size)
            self._delete(self._surplus_uploads())
            uploads = {name: entry for name, entry in self._entries.items() if entry.uploaded}
            self._delete(_oldest_beyond(uploads, self.limits.upload_size))

    def _entry_name(self, path: str) -> str | None:
        """Name of the entry that a path lies in or is; None where it lies in none."""
        try:
            if os.path.realpath(path) != path:
                return None
            inside = Path(path).relative_to(self.root)
        except (OSError, ValueError):
            return None
        return inside.parts[0] if inside.parts else None

    def _is_old(self, entry: _Entry, now: float) -> bool:
        limit = self.limits.upload_age if entry.uploaded else self.limits.result_age
        return now - entry.created > limit

    def _surplus_uploads(self) -> list[str]:
        """Uploads of sessions that have more than they may, the newest of each left out."""
        counts: dict[str, int] = {}
        surplus = []
        for name, entry in reversed(self._entries.items()):
            if not entry.uploaded:
                continue
            for owner in entry.owners:
                counts[owner] = counts.get(owner, 0) + 1
            if all(counts[owner] > self.limits.uploads for owner in entry.owners):
                surplus.append(name)
        return surplus

    def _delete(self, names: list[str]) -> None:
        for name in names:
            remove_tree(self._entries.pop(name).path)

    def _delete_strays(self, now: float) -> None:
        """What Gradio or an upload that broke off has left beside the entries."""
        for path in self.root.iterdir():
            if path.name not in self._entries and now - _changed(path) > self.limits.stray_age:
                remove_tree(path)


def _oldest_beyond(entries: dict[str, _Entry], limit: int) -> list[str]:
    """The first of some entries, as many as they are too large by."""
    excess = sum(entry.size for entry in entries.values()) - limit
    names = []
    for name, entry in entries.items():
        if excess <= 0:
            break
        names.append(name)
        excess -= entry.size
    return names


def _size(path: Path) -> int:
    """Bytes of all files below a folder; files that are deleted meanwhile do not count."""
    total = 0
    for folder, _, files in os.walk(path):  # which passes by folders that are deleted meanwhile
        for file in files:
            with suppress(OSError):
                total += os.lstat(os.path.join(folder, file)).st_size
    return total


def _changed(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except OSError:
        return float("inf")
