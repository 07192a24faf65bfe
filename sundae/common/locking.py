"""Exclusive use of a folder while a program fills it, and folders named after the time."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import chain, count
from pathlib import Path
from typing import Self

from sundae.common.errors import UserError
from sundae.common.files import make_first_free, make_folder, named_path, writing_to
from sundae.common.naming import path_component, printable

try:
    import fcntl
except ImportError:  # Windows, where folders are not locked
    fcntl = None  # type: ignore[assignment]

LOCK_NAME = ".lock"

# What a system call fails with where another process holds the lock, and where there are no locks.
_TAKEN = {errno.EACCES, errno.EAGAIN}
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}

_SIGNATURE = "process "  # what the text of a lock file begins with
_TRIES = 100

# Lock files of this process. Closing one a second time would drop the first lock (POSIX).
_held: set[Path] = set()


class Lock:
    """A context manager: while it is entered, no other process enters one of the same file.

    The operating system drops the lock when its process ends, in whatever way. The file is deleted
    at the end; a killed process leaves it. (Not filelock: it has no locks of a range of numbers,
    does not say who holds a lock, and opens whatever lies in the place of its file.)
    """

    def __init__(self, path: Path, guarded: Path, numbers: range | None = None) -> None:
        """See `folder_lock` and `target_lock`.

        Args:
            path: the lock file, in a folder that exists.
            guarded: what is written, for the message.
            numbers: locks these numbers of what is written only; None locks all of it.
        """
        self.path, self.guarded, self.numbers = path, guarded, numbers
        self._file: int | None = None

    def __enter__(self) -> Self:
        """Takes the lock; UserError when another process has it or the file cannot be written."""
        self._key = self.path.resolve()
        if self._key in _held:
            raise self._refusal("this process")  # reading the file would drop the lock
        if fcntl is not None:
            with writing_to(self.path):
                self._file = self._opened()
            _held.add(self._key)
        return self

    def __exit__(self, *exception: object) -> None:
        """Drops the lock, and deletes its file unless others lock other numbers."""
        if self._file is None:
            return
        with suppress(OSError):
            if self._locked(self._file, everything=True):
                self.path.unlink()
        os.close(self._file)
        self._file = None
        _held.discard(self._key)

    def _opened(self) -> int:
        """The locked file."""
        for _ in range(_TRIES):
            file = self._created()
            try:
                if not self._locked(file):
                    raise self._refusal(_text_of(file) or "another process")
                if _is_at(file, self.path):  # not deleted meanwhile, so that it locks something
                    self._sign(file)
                    return file
            except BaseException:
                os.close(file)
                raise
            os.close(file)
        raise UserError(f"cannot lock {self.path}; delete it, or choose another place")

    def _created(self) -> int:
        try:  # what a link in somebody else's folder leads to is not ours to open
            return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise UserError(f"{self.path} is a link; delete it") from None
            raise

    def _locked(self, file: int, *, everything: bool = False) -> bool:
        """Whether it could be locked. Where a file system has no locks, it counts as locked."""
        numbers = range(0) if self.numbers is None or everything else self.numbers
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, len(numbers), numbers.start)
        except OSError as error:
            if error.errno in _TAKEN:
                return False
            if error.errno not in _NO_LOCKS:
                raise
            if not everything:
                line = f"warning: {self.guarded} is on a file system without locks; make sure that "
                print(printable(line + "nothing else writes to it"), file=sys.stderr)
        return True

    def _sign(self, file: int) -> None:
        """Says who it is, for the message of another process."""
        if _text_of(file)[: len(_SIGNATURE)] not in ("", _SIGNATURE):
            raise UserError(f"{self.path} is no lock file; move it away")
        os.ftruncate(file, 0)
        if self.numbers is None:
            os.pwrite(file, f"{_SIGNATURE}{os.getpid()} on {socket.gethostname()}".encode(), 0)

    def _refusal(self, holder: str) -> UserError:
        return UserError(
            f"{self.guarded} is being written by {holder}; wait until it ends, or choose another "
            "place"
        )


def folder_lock(folder: Path, numbers: range | None = None) -> Lock:
    """The lock of a folder, which is created, by a file in it; see `Lock` for `numbers`."""
    return Lock(make_folder(folder) / LOCK_NAME, folder, numbers)


def target_lock(target: Path) -> Lock:
    """The lock of a file or folder that is replaced as a whole, by a file beside it."""
    named = named_path(target)
    return Lock(make_folder(named.parent) / f".{named.name}{LOCK_NAME}", target)


def new_dated_folder(parent: Path, name: str) -> Path:
    """Creates PARENT/NAME_<date and time>, or with _2, _3 and so on where that exists.

    `path_component` makes a file name of any `name`.
    """
    dated = f"{path_component(name)}_{datetime.now():%Y-%m-%d_%H-%M-%S}"
    names = chain([dated], (f"{dated}_{number}" for number in count(2)))
    return make_first_free(make_folder(parent) / name for name in names)


@contextmanager
def output_folder(
    given: Path | None, parent: Path, name: str, numbers: range | None = None
) -> Iterator[Path]:
    """A folder to fill, which no other process fills meanwhile; removed if it is left empty.

    Args:
        given: the folder, if the user named one; otherwise see `new_dated_folder`.
        numbers: see `Lock`.

    Raises:
        UserError: another process fills it, or it cannot be written to.
    """
    with shared_folder(given, parent, name) as folder, folder_lock(folder, numbers):
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
        return os.path.samestat(os.fstat(file), os.lstat(path))
    except FileNotFoundError:
        return False


def _text_of(file: int) -> str:
    return os.pread(file, 100, 0).decode(errors="replace")
