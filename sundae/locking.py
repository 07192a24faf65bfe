"""Exclusive use of a folder while a program fills it, and folders named after the time."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Self

from sundae.errors import UserError
from sundae.files import make_folder, writing_to
from sundae.naming import path_component

try:
    import fcntl
except ImportError:  # Windows, where folders are not locked
    fcntl = None  # type: ignore[assignment]

LOCK_NAME = ".lock"

# What a system call fails with where another process holds the lock, and where there are no locks.
_TAKEN = {errno.EACCES, errno.EAGAIN}
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}

# Lock files of this process. Closing one a second time would drop the first lock (POSIX).
_held: set[Path] = set()


class Lock:
    """A context manager: while it is entered, no other process enters one of the same file.

    The operating system drops the lock when its process ends, in whatever way, so that the lock of
    a killed process is free. The file is deleted at the end.
    """

    def __init__(self, path: Path, guarded: Path, *, first: int = 0, count: int = 0) -> None:
        """Names what is locked; see `folder_lock` and `target_lock`.

        Args:
            path: the lock file, in a folder that exists.
            guarded: what is written, for the message.
            first, count: locks these numbers of what is written only; all with a count of 0.
        """
        self.path, self.guarded = path, guarded
        self._first, self._count = first, count
        self._file: int | None = None

    def __enter__(self) -> Self:
        """Takes the lock.

        Raises:
            UserError: another process has it, or the folder cannot be written to.
        """
        self._key = self.path.resolve()
        if self._key in _held:
            raise self._taken("this process")  # reading the file would drop the lock
        with writing_to(self.guarded):
            while self._file is None:
                self._file = self._opened()
        _held.add(self._key)
        return self

    def __exit__(self, *exception: object) -> None:
        """Drops the lock, and deletes its file unless others lock other numbers."""
        assert self._file is not None
        if fcntl is not None:
            with suppress(OSError):
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self.path.unlink()
        os.close(self._file)
        self._file = None
        _held.discard(self._key)

    def _opened(self) -> int | None:
        """The locked file; None where it was deleted meanwhile, so that it locks nothing."""
        file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            self._lock(file)
            if not _is_at(file, self.path):
                os.close(file)
                return None
            self._sign(file)
        except BaseException:
            os.close(file)
            raise
        return file

    def _lock(self, file: int) -> None:
        if fcntl is None:
            return
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, self._count, self._first)
        except OSError as error:
            if error.errno in _TAKEN:
                raise self._taken(self._holder()) from None
            if error.errno not in _NO_LOCKS:
                raise
            print(
                f"warning: {self.guarded} is on a file system without locks; make sure that "
                "nothing else writes to it meanwhile",
                file=sys.stderr,
            )

    def _sign(self, file: int) -> None:
        """Says who it is, for the message of another process."""
        os.ftruncate(file, 0)
        if not self._count:
            os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())

    def _holder(self) -> str:
        with suppress(OSError, ValueError):
            return self.path.read_text(encoding="utf-8")[:100] or "another process"
        return "another process"

    def _taken(self, holder: str) -> UserError:
        return UserError(
            f"{self.guarded} is being written by {holder}; wait until it ends, or choose another "
            "place"
        )


def folder_lock(folder: Path, *, first: int = 0, count: int = 0) -> Lock:
    """The lock of a folder, which is created, by a file in it.

    Args:
        first, count: locks these numbers of the files in it only; all with a count of 0.

    Raises:
        UserError: the folder cannot be written to.
    """
    return Lock(make_folder(folder) / LOCK_NAME, folder, first=first, count=count)


def target_lock(target: Path) -> Lock:
    """The lock of a file or folder that is replaced as a whole, by a file beside it.

    Raises:
        UserError: its folder cannot be written to.
    """
    name = target.name or target.resolve().name
    return Lock(make_folder(target.parent) / f".{name}{LOCK_NAME}", target)


def new_dated_folder(parent: Path, name: str) -> Path:
    """Creates PARENT/NAME_<date and time>, or with _2, _3 and so on where that exists.

    Args:
        name: any text, of which `path_component` makes one.

    Raises:
        UserError: it cannot be written.
    """
    dated = f"{path_component(name)}_{datetime.now():%Y-%m-%d_%H-%M-%S}"
    make_folder(parent)
    number = 1
    while True:
        folder = parent / (dated if number == 1 else f"{dated}_{number}")
        with writing_to(folder):
            try:
                folder.mkdir()
                return folder
            except FileExistsError:
                number += 1


@contextmanager
def output_folder(
    given: Path | None, parent: Path, name: str, *, first: int = 0, count: int = 0
) -> Iterator[Path]:
    """A folder to fill, which no other process fills meanwhile; it goes if it is left empty.

    Args:
        given: the folder, if the user named one; otherwise see `new_dated_folder`.
        first, count: see `folder_lock`.

    Raises:
        UserError: another process fills it, or it cannot be written to.
    """
    with (
        shared_folder(given, parent, name) as folder,
        folder_lock(folder, first=first, count=count),
    ):
        yield folder


@contextmanager
def shared_folder(given: Path | None, parent: Path, name: str) -> Iterator[Path]:
    """As `output_folder`, for programs that create each of their files or folders exclusively."""
    existed = given is not None and given.exists()
    folder = given or new_dated_folder(parent, name)
    try:
        yield folder
    finally:
        if not existed:
            with suppress(OSError):
                folder.rmdir()


def _is_at(file: int, path: Path) -> bool:
    """Whether an open file is the one that a path names."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False
