"""Writing folders: whole or not at all, also by a process that is killed half way."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sundae.common.files import named_path, writing_to

# What writers call their folders beside NAME: .NAME.PID-RANDOM.partial while they fill it, and
# .NAME.PID-RANDOM.replaced for the old one where it has to be moved aside.
_OF_A_WRITER = re.compile(r"\.(?P<name>.+)\.\d+-[0-9a-f]{8}\.(partial|replaced)", re.DOTALL)

# Seconds after which a partial folder counts as abandoned. Whether a process number is alive
# says nothing where several machines or containers share a disk.
_ABANDONED = 24 * 60 * 60

# Of renameat2 in Linux' fs.h and fcntl.h, and of renamex_np in macOS' stdio.h.
_AT_FDCWD, _RENAME_EXCHANGE, _RENAME_SWAP = -100, 2, 2


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A folder to fill; it takes the name `target`, replacing what was there, on success.

    A whole folder of that name, the old or the new one, is there at every moment, where the system
    can exchange two folders in one step. Where it cannot, a process killed between two renames
    leaves none, and `restore_folder`, which the next writer calls, puts the old one back. A link of
    that name is replaced, not followed.

    When the block raises, `target` is as it was and the partial folder is gone. Folders that killed
    writers of the same target left are removed after a day. An OSError becomes a UserError.
    """
    target = named_path(target)
    # A name of its own, so that two writers of one target do not delete each other's files.
    partial = target.with_name(f".{target.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.partial")
    with writing_to(target):
        restore_folder(target)
        partial.mkdir(parents=True)
        try:
            yield partial
            _put_in_place(partial, target)
        finally:
            remove_tree(partial)
    _remove_abandoned(target)


@contextmanager
def resumable_folder(target: Path, origin: str) -> Iterator[Path]:
    """As `atomic_folder`, but what the block leaves when it raises or is killed is filled further.

    The next call with the same target and `origin`, which says what is written, yields the folder
    as it was left, without hidden files; a call with another origin begins with an empty one. Lock
    `target` meanwhile (`sundae.common.locking.target_lock`).
    """
    target = named_path(target)
    unfinished = target.with_name(f".{target.name}.unfinished")
    said = unfinished / ".origin"
    with writing_to(target):
        restore_folder(target)
        if not said.is_file() or said.read_text(encoding="utf-8") != origin:
            remove_tree(unfinished)
            unfinished.mkdir(parents=True)
            said.write_text(origin, encoding="utf-8")
        for leftover in unfinished.rglob(".*"):
            if leftover != said:
                leftover.unlink()
        yield unfinished
        with atomic_folder(target) as partial:
            partial.rmdir()
            os.replace(unfinished, partial)
            (partial / said.name).unlink()


def restore_folder(target: Path) -> None:
    """Puts the old folder back where a writer was killed after moving it aside; else does nothing.

    Call it before a look at whether `target` exists.
    """
    if os.path.lexists(target):
        return
    aside = [path for name, path in _of_writers(target.parent) if name == target.name]
    aside = [path for path in aside if path.suffix == ".replaced"]
    if aside:
        with suppress(OSError):  # another process was first, or the disk cannot be written to
            os.replace(max(aside, key=lambda path: path.lstat().st_mtime), target)


def restore_folders(parent: Path) -> None:
    """As `restore_folder`, for everything in a folder."""
    for name in {name for name, _ in _of_writers(parent)}:
        restore_folder(parent / name)


def _put_in_place(folder: Path, target: Path) -> None:
    """What was at `target` is at `folder` afterwards, or gone."""
    if not os.path.lexists(target):
        os.replace(folder, target)
    elif not _exchange(folder, target):
        aside = folder.with_suffix(".replaced")
        try:
            os.replace(target, aside)
            os.replace(folder, target)
        finally:
            restore_folder(target)
        remove_tree(aside)


def _exchange(first: Path, second: Path) -> bool:
    """Swaps what two paths name in one step; False, with nothing done, where that fails.

    Some systems and file systems cannot do it, and say so in many ways (ENOSYS, EINVAL, ENOTSUP,
    EPERM, EXDEV). Whatever else is wrong, the renames that are done instead will say.
    """
    names = os.fsencode(first), os.fsencode(second)
    try:
        libc = ctypes.CDLL(None)
        if sys.platform == "darwin":
            return bool(libc.renamex_np(*names, _RENAME_SWAP) == 0)
        return bool(libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0)
    except (AttributeError, OSError, TypeError):  # an old C library; a system without one
        return False


def _of_writers(parent: Path) -> list[tuple[str, Path]]:
    """(name of the target, path) of all that writers have beside their targets."""
    try:
        matches = [(_OF_A_WRITER.fullmatch(path.name), path) for path in parent.iterdir()]
    except OSError:  # no such folder
        return []
    return [(match["name"], path) for match, path in matches if match]


def _remove_abandoned(target: Path) -> None:
    for name, path in _of_writers(target.parent):
        with suppress(OSError):
            if name == target.name and time.time() - path.lstat().st_mtime > _ABANDONED:
                remove_tree(path)


def remove_tree(path: Path) -> None:
    """Deletes a folder, or a link or file that was in the place of one, as far as that goes."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
