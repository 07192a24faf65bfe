"""Files that the page serves: each belongs to one browser session and is deleted after a while."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections import Counter
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
    """How much is stored, and for how long: lifetimes in seconds, sizes in bytes."""

    upload_age: float = 3600.0
    result_age: float = 86400.0
    stray_age: float = 30.0  # of any other file since its last change: an upload that broke off
    uploads: int = 200  # of a session
    upload_size: int = 2**30  # of all uploads together
    size: int = 4 * 2**30  # of all files together


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

    Args:
        root: the folder, created if necessary. Whatever appears in it and is not registered here is
            never served.
        limits: how much is stored, and for how long.
        clock: seconds since the epoch.
    """

    def __init__(
        self, root: Path, limits: Limits | None = None, clock: Callable[[], float] = time.time
    ) -> None:
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
        """Registers a file below the root as an upload of a session."""
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
        with self._lock:
            paths = {name: entry.path for name, entry in self._entries.items()}
        sizes = {name: _size(path) for name, path in paths.items()}  # slow: requests go on
        with self._lock:
            for name, entry in self._entries.items():
                entry.size = sizes.get(name, entry.size)
            self._evict()
            for path in self.root.iterdir():  # what Gradio or an upload that broke off has left
                stray = path.name not in self._entries
                if stray and self._clock() - _changed(path) > self.limits.stray_age:
                    remove_tree(path)

    def _register(self, path: Path, owner: str, *, uploaded: bool) -> None:
        with self._lock:
            known = self._entries.pop(path.name, None)
            owners = known.owners | {owner} if known else {owner}
            size = _size(path) if uploaded else 0  # a folder of results has yet to be filled
            self._entries[path.name] = _Entry(path, owners, uploaded, self._clock(), size)
            self._evict()

    def _evict(self) -> None:
        """Deletes entries that are too old, and those that exceed a limit beside newer ones."""
        limits, now = self.limits, self._clock()
        uploads: Counter[str] = Counter()  # of each session
        upload_size = size = 0
        for name, entry in reversed(list(self._entries.items())):
            size += entry.size
            exceeds = size > limits.size
            if entry.uploaded:
                uploads.update(entry.owners)
                upload_size += entry.size
                exceeds |= upload_size > limits.upload_size
                exceeds |= all(uploads[owner] > limits.uploads for owner in entry.owners)
            age = limits.upload_age if entry.uploaded else limits.result_age
            if exceeds or now - entry.created > age:
                remove_tree(self._entries.pop(name).path)

    def _entry_name(self, path: str) -> str | None:
        """Name of the entry that a path lies in or is; None where it lies in none."""
        try:
            if os.path.realpath(path) != path:
                return None
            inside = Path(path).relative_to(self.root)
        except (OSError, ValueError):
            return None
        return inside.parts[0] if inside.parts else None


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
