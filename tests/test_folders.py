"""Folders are whole whenever a process is killed: the old one or the new one, never a mixture."""

import os
import signal
import subprocess
import sys
import time
from itertools import count
from pathlib import Path

import pytest
from conftest import contents

from sundae.common import folders
from sundae.common.errors import UserError
from sundae.common.folders import atomic_folder, restore_folder, restore_folders

ROOT = Path(__file__).parents[1]
OLD, NEW = {"a": b"old", "sub/b": b"old"}, {"a": b"new", "sub/c": b"new"}
ABANDONED = 25 * 60 * 60  # seconds

# Replaces the folder argv[1] and dies before or after the argv[2]-th of all changes to the disk.
DYING = """
import os, shutil, signal, sys
from pathlib import Path
from sundae.common import folders

def dying(function):
    def call(*args, **kwargs):
        survive()
        result = function(*args, **kwargs)
        survive()
        return result
    return call

def survive():
    global steps
    steps -= 1
    if steps < 0:
        os.kill(os.getpid(), signal.SIGKILL)

target, steps = Path(sys.argv[1]), int(sys.argv[2])
if sys.argv[3] == "renames":
    folders._exchange = lambda first, second: False
with folders.atomic_folder(target) as folder:
    (folder / "sub").mkdir()
    (folder / "a").write_text("new")
    (folder / "sub" / "c").write_text("new")
    folders._exchange, os.replace = dying(folders._exchange), dying(os.replace)
    shutil.rmtree, os.unlink = dying(shutil.rmtree), dying(os.unlink)
"""


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def write(target: Path, files: dict[str, bytes]) -> None:
    with atomic_folder(target) as folder:
        fill(folder, files)


def can_exchange(parent: Path) -> bool:
    pair = [fill(parent / name, {"x": name.encode()}) for name in ("one", "other")]
    done = folders._exchange(*pair)
    assert contents(pair[0]) == {"x": b"other" if done else b"one"}
    return done


@pytest.mark.parametrize("way", ["exchange", "renames"])
def test_a_killed_writer_leaves_the_old_folder_or_the_new_one(tmp_path: Path, way: str) -> None:
    if way == "exchange" and not can_exchange(tmp_path):
        pytest.skip("this file system cannot exchange folders")
    missing, left = 0, []
    for step in count():
        target = fill(tmp_path / str(step) / "x", OLD)
        command = [sys.executable, "-c", DYING, target, str(step), way]
        done = subprocess.run([*map(str, command)], cwd=ROOT, timeout=60)
        missing += not target.exists()
        restore_folder(target)
        left.append(contents(target))
        if done.returncode != -signal.SIGKILL:
            break
        write(target, {"d": b"next"})
        assert contents(target) == {"d": b"next"}
    assert done.returncode == 0 and step >= 6
    assert os.listdir(target.parent) == ["x"]
    places = [left.index(NEW), len(left)]
    assert left == [OLD] * places[0] + [NEW] * (places[1] - places[0])
    assert missing == (2 if way == "renames" else 0)  # after one rename, before the other


def test_an_old_folder_comes_back_before_the_next_is_written(tmp_path: Path) -> None:
    moved = fill(tmp_path / ".x.7-0123abcd.replaced", OLD)
    other = fill(tmp_path / ".x.y.7-0123abcd.replaced", NEW)
    with pytest.raises(KeyError), atomic_folder(tmp_path / "x"):
        raise KeyError
    assert contents(tmp_path / "x") == OLD and not moved.exists() and other.exists()
    restore_folders(tmp_path)
    assert contents(tmp_path / "x.y") == NEW
    fill(moved, NEW)
    restore_folders(tmp_path)
    restore_folder(tmp_path / "nowhere" / "x")
    assert contents(tmp_path / "x") == OLD


def test_a_failed_rename_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = fill(tmp_path / "x", OLD)
    rename = os.replace

    def refuse(source: Path, destination: Path) -> None:
        if source.suffix == ".partial":
            raise OSError(28, "No space left on device")
        rename(source, destination)

    monkeypatch.setattr(folders, "_exchange", lambda first, second: False)
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UserError, match="cannot write to .*x: No space left on device"):
        write(target, NEW)
    assert contents(tmp_path) == {f"x/{name}": content for name, content in OLD.items()}


def test_what_killed_writers_left_goes_after_a_day_and_nothing_else(tmp_path: Path) -> None:
    names = [".x.1-00000000.partial", ".x.2-00000000.replaced", ".y.1-00000000.partial", ".x.1"]
    abandoned = [fill(tmp_path / name, OLD) for name in names]
    at_work = fill(tmp_path / ".x.3-00000000.partial", OLD)
    long_ago = time.time() - ABANDONED
    for path in abandoned:
        os.utime(path, (long_ago, long_ago))
    fill(tmp_path / "x", OLD)
    write(tmp_path / "x", NEW)
    assert {path.name for path in tmp_path.iterdir()} == {"x", *names[2:], at_work.name}
    assert contents(tmp_path / "x") == NEW


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    fill(tmp_path / "elsewhere", OLD)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x").symlink_to(tmp_path / "elsewhere")
    write(tmp_path / "in" / "x", NEW)
    assert contents(tmp_path / "elsewhere") == OLD
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["x"]
    assert contents(tmp_path / "in" / "x") == NEW


def test_the_folder_one_is_in_can_be_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(fill(tmp_path / "x", OLD))
    write(Path("."), NEW)
    assert contents(tmp_path) == {f"x/{name}": content for name, content in NEW.items()}


def test_a_link_that_leads_nowhere_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.symlink_to(tmp_path / "gone")
    with atomic_folder(target) as folder:
        (folder / "x").touch()
    assert not target.is_symlink() and [path.name for path in target.iterdir()] == ["x"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
