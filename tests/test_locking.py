"""A folder is filled by one process at a time, whatever happens to the others."""

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from conftest import Ended, contents
from PIL import Image

from sundae.codec.vqgan import load_vqgan
from sundae.codec.vqgan.convert import save_codec
from sundae.common import locking
from sundae.common.errors import UserError
from sundae.common.locking import (
    LOCK_NAME,
    Lock,
    folder_lock,
    new_dated_folder,
    output_folder,
    shared_folder,
    target_lock,
)
from sundae.datasets.digits import write_pixel_dataset
from sundae.datasets.emoji import write_emoji
from sundae.prior.pretrained import BUNDLED
from sundae.prior.release import release

ROOT = Path(__file__).parents[1]
CODEC_FILE = BUNDLED / "vqgan.safetensors"
HOLD = """
import sys
from pathlib import Path
from sundae.common.locking import folder_lock
first, count = map(int, sys.argv[2:])
with folder_lock(Path(sys.argv[1]), range(first, first + count) if count else None):
    print("held", flush=True)
    sys.stdin.readline()
"""


class Holder:
    """Another process that locks a folder."""

    def __init__(self, folder: Path, first: int = 0, count: int = 0) -> None:
        words = [sys.executable, "-c", HOLD, str(folder), str(first), str(count)]
        self.process = subprocess.Popen(
            words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "held\n"

    def end(self) -> None:
        self.process.communicate("\n", timeout=60)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate(timeout=60)


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Holder]:
    """Holds all of FOLDER/out."""
    holder = Holder(tmp_path / "out")
    yield holder
    holder.kill()


def test_a_folder_that_another_process_fills_is_refused_by_its_name(
    other: Holder, tmp_path: Path
) -> None:
    message = f"out is being written by process {other.process.pid} on .*; wait until it ends"
    with pytest.raises(UserError, match=message), folder_lock(tmp_path / "out"):
        pass
    other.end()
    with folder_lock(tmp_path / "out"):
        assert [path.name for path in (tmp_path / "out").iterdir()] == [LOCK_NAME]
    assert list((tmp_path / "out").iterdir()) == []


def test_the_lock_of_a_killed_process_is_taken_over(other: Holder, tmp_path: Path) -> None:
    other.kill()
    assert (tmp_path / "out" / LOCK_NAME).exists()
    with folder_lock(tmp_path / "out"):
        pass
    assert list((tmp_path / "out").iterdir()) == []


def test_other_numbers_can_be_filled_in_meanwhile(tmp_path: Path) -> None:
    holder, out = Holder(tmp_path / "out", 100, 50), tmp_path / "out"
    try:
        for first, count in ((0, 100), (150, 50)):
            with folder_lock(out, range(first, first + count)):
                pass
            assert (out / LOCK_NAME).exists()  # the other one's
        for numbers in (range(101), range(149, 150), None, range(100, 150)):
            with pytest.raises(UserError, match="written by another process"):
                folder_lock(out, numbers).__enter__()
    finally:
        holder.end()
    assert list(out.iterdir()) == []


def test_one_process_does_not_drop_its_own_lock(tmp_path: Path) -> None:
    """POSIX drops it with any descriptor of the file."""
    out = tmp_path / "out"
    with folder_lock(out):
        with pytest.raises(UserError, match="written by this process"):
            folder_lock(out).__enter__()
        words = [sys.executable, "-c", HOLD, str(out), "0", "0"]
        ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        assert f"is being written by process {os.getpid()} on" in ended.stderr
    with folder_lock(out):
        pass


def test_a_lock_file_that_is_deleted_under_it_locks_nothing_and_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The holder's end comes between opening and locking."""
    lock, deleted = fcntl.lockf, []

    def late(*arguments: Any) -> None:
        if not deleted:
            deleted.append((tmp_path / LOCK_NAME).unlink())
        lock(*arguments)

    monkeypatch.setattr(fcntl, "lockf", late)
    with folder_lock(tmp_path):
        assert deleted and (tmp_path / LOCK_NAME).exists()
        with pytest.raises(subprocess.CalledProcessError):
            words = [sys.executable, "-c", HOLD, str(tmp_path), "0", "0"]
            subprocess.run(words, cwd=ROOT, capture_output=True, check=True)


def test_a_file_system_without_locks_is_told_of_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*arguments: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with folder_lock(tmp_path / "a\x1b"):
        pass
    said = capsys.readouterr().err
    assert "a\\x1b is on a file system without locks; make sure that nothing" in said
    assert said.count("\n") == 1 and list((tmp_path / "a\x1b").iterdir()) == []


def test_windows_which_has_no_such_locks_does_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locking, "fcntl", None)
    monkeypatch.delattr(os, "O_NOFOLLOW")
    with folder_lock(tmp_path), folder_lock(tmp_path, range(3)):
        assert list(tmp_path.iterdir()) == []


def test_what_lies_in_the_place_of_the_lock_file_is_not_written_to(tmp_path: Path) -> None:
    """A folder from somebody else may hold anything."""
    private, lock = tmp_path / "private", tmp_path / "out" / LOCK_NAME
    private.write_text("mine")
    lock.parent.mkdir()
    lock.symlink_to(private)
    with pytest.raises(UserError, match=r"out/\.lock is a link; delete it"):
        folder_lock(lock.parent).__enter__()
    lock.unlink()
    os.link(private, lock)
    with pytest.raises(UserError, match=r"out/\.lock is no lock file; move it away"):
        folder_lock(lock.parent).__enter__()
    assert private.read_text() == "mine"


def test_a_file_that_is_never_the_one_of_its_name_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locking, "_is_at", lambda file, path: False)
    with pytest.raises(UserError, match="cannot lock"):
        folder_lock(tmp_path).__enter__()


def test_a_target_that_is_replaced_as_a_whole_is_locked_from_beside(tmp_path: Path) -> None:
    with target_lock(tmp_path / "deep" / "out"):
        assert [path.name for path in (tmp_path / "deep").iterdir()] == [".out.lock"]
    assert list((tmp_path / "deep").iterdir()) == []


def test_the_folder_one_is_in_is_locked_from_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out" / "deep").mkdir(parents=True)
    for inside, target in (("out", "."), ("out/deep", "..")):
        monkeypatch.chdir(tmp_path / inside)
        with target_lock(Path(target)), pytest.raises(UserError, match="this process"):
            target_lock(tmp_path / "out").__enter__()


def test_folders_of_the_same_second_have_different_names(tmp_path: Path) -> None:
    folders = [new_dated_folder(tmp_path / "samples", "../a\x1b") for _ in range(20)]
    assert len(set(folders)) == 20
    assert {folder.parent for folder in folders} == {tmp_path / "samples"}
    assert all(folder.is_dir() and folder.name.startswith("_a__20") for folder in folders)


def test_an_output_folder_goes_if_nothing_came_of_it(tmp_path: Path) -> None:
    given, old = tmp_path / "given", tmp_path / "old"
    old.mkdir()
    for folder in (given, old, None):
        with pytest.raises(RuntimeError), output_folder(folder, tmp_path / "s", "x"):
            raise RuntimeError
    assert not given.exists() and old.exists()
    assert list((tmp_path / "s").iterdir()) == []
    with output_folder(given, tmp_path, "x") as folder:
        (folder / "00000.png").touch()
    assert [path.name for path in given.iterdir()] == ["00000.png"]


def test_a_shared_folder_is_not_locked(tmp_path: Path) -> None:
    with ExitStack() as stack:
        for _ in range(2):
            assert stack.enter_context(shared_folder(tmp_path, tmp_path, "x")) == tmp_path


@pytest.mark.parametrize(
    "command",
    [
        ["train", "--cfg-path", "RUN_FILE", "--run-dir", "OUT"],
        ["train", "--resume", "RUN"],
        ["sample", "--nb-samples", 1, "--steps", 1, "--out-dir", "OUT"],
        ["inpaint", "IMAGES", "--nb-samples", 1, "--steps", 1, "--out-dir", "OUT"],
        ["generate-latents", "--ckpt-path", CODEC_FILE, "--dataset-in", "IMAGES",
         "--latents-out", "OUT"],
    ],
    ids=lambda command: "-".join(command[:2]),
)  # fmt: skip
def test_no_script_writes_where_another_process_does(
    script: Callable[..., Ended],
    run_file: Callable[..., Path],
    tmp_path: Path,
    command: list[Any],
) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (64, 64), "red").save(tmp_path / "images" / "red.png")
    named = {"RUN_FILE": run_file(), "OUT": tmp_path / "out", "IMAGES": tmp_path / "images"}
    named["RUN"] = tmp_path / "run"
    if "RUN" in command:
        assert script("train", "--cfg-path", named["RUN_FILE"], "--run-dir", named["RUN"]).code == 0
        command = [*command, "--set", "trainer.max_steps=4"]
    filled = named["RUN"] if "RUN" in command else named["OUT"]
    before = contents(filled)
    holder = Holder(filled)
    try:
        name, *words = [named.get(word, word) for word in command]
        assert "is being written by process" in script(name, *words).refusal()
    finally:
        holder.end()
    assert contents(filled) == before
    ended = script(name, *words)
    assert ended.code == 0, ended
    assert not list(filled.rglob(LOCK_NAME))
    assert contents(filled) != before


def test_nor_does_anything_that_is_called_without_a_device(tmp_path: Path) -> None:
    out = tmp_path / "out"
    writers: list[Callable[[], Any]] = [
        lambda: release(BUNDLED, out),
        lambda: write_emoji(out, package_dir=tmp_path),
        lambda: save_codec(load_vqgan(CODEC_FILE), out.with_suffix(".safetensors")),
    ]
    with target_lock(out), target_lock(out.with_suffix(".safetensors")):
        for write in writers:
            with pytest.raises(UserError, match="is being written by this process"):
                write()
    with folder_lock(out), pytest.raises(UserError, match="is being written by this process"):
        write_pixel_dataset("digits", out)
    assert list(tmp_path.iterdir()) == [out] and list(out.iterdir()) == []


def test_what_another_process_has_just_written_is_seen_under_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It came between the first look and the lock."""
    entered, out = Lock.__enter__, tmp_path / "out"

    def late(write: Callable[[], Any]) -> Callable[[Lock], Lock]:
        def enter(self: Lock) -> Lock:
            if self.guarded == out:
                write()
            return entered(self)

        return enter

    def digits() -> None:
        shutil.copytree(tmp_path / "digits", out, dirs_exist_ok=True)

    def other() -> None:
        out.mkdir()
        (out / "emoji.json").write_text("{}")

    write_pixel_dataset("digits", tmp_path / "digits")
    (tmp_path / "digits" / "train" / "mark").touch()
    monkeypatch.setattr(Lock, "__enter__", late(digits))
    assert write_pixel_dataset("digits", out, skip_existing=True) is False
    assert (out / "train" / "mark").exists()
    for write in (lambda: release(BUNDLED, out), lambda: write_emoji(out, package_dir=tmp_path)):
        shutil.rmtree(out)
        monkeypatch.setattr(Lock, "__enter__", late(other))
        with pytest.raises(UserError, match=f"{out} (exists|holds files); choose another OUT"):
            write()
