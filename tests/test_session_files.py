"""Files of the page: each session's own, for a while, and not too many."""

from pathlib import Path

import pytest

from sundae.interactive.session_files import NOBODY, Limits, SessionFiles

ANN, BOB = "a" * 32, "b" * 32


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def uploaded(files: SessionFiles, owner: str, name: str, size: int = 1) -> Path:
    """A file as Gradio puts it: ROOT/<hash>/NAME."""
    path = files.root / f"hash-{name}" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x" * size)
    files.add_upload(owner, str(path))
    return path


def test_a_session_reads_its_own_files_and_no_others(tmp_path: Path) -> None:
    files = SessionFiles(tmp_path / "files")
    result = files.new_folder(ANN) / "00000.png"
    result.write_text("x")
    upload = uploaded(files, ANN, "a.png")
    stray = files.root / "stray.png"
    stray.write_text("x")
    for path in map(str, (result, upload)):
        assert files.may_read(ANN, path)
        assert not files.may_read(BOB, path)
        assert not files.may_read(NOBODY, path)
    outside = map(str, (stray, files.root, tmp_path, "/etc/passwd", "train.py", "", "x\0y"))
    assert not any(files.may_read(ANN, path) for path in outside)


def test_a_path_has_to_be_spelt_as_it_was_handed_out(tmp_path: Path) -> None:
    """To Gradio, "http://x/../.." is an address that it fetches for the visitor."""
    files = SessionFiles(tmp_path / "files")
    path = str(uploaded(files, ANN, "a.png"))
    up = "../" * 20 + path[1:]
    for spelling in (
        *(f"http://example.com/{up}", f"https://hf.co/{up}", f"file:///x/{up}", f"x/{up}", up),
        *(f"/{path}", f"{path}/", f"{path}/.", path.replace("/a.png", "//a.png")),
        path.replace("/a.png", "/../hash-a.png/a.png"),
    ):
        assert not files.may_read(ANN, spelling), spelling


def test_a_link_leads_out_of_nothing(tmp_path: Path) -> None:
    files = SessionFiles(tmp_path / "files")
    folder = files.new_folder(ANN)
    (tmp_path / "secret").write_text("x")
    (folder / "link").symlink_to(tmp_path / "secret")
    assert not files.may_read(ANN, str(folder / "link"))


def test_what_two_sessions_upload_alike_belongs_to_both(tmp_path: Path) -> None:
    files = SessionFiles(tmp_path / "files")
    path = uploaded(files, ANN, "same.png")
    assert uploaded(files, BOB, "same.png") == path
    assert files.may_read(ANN, str(path)) and files.may_read(BOB, str(path))
    assert not files.may_read("c" * 32, path)


def test_without_a_session_the_path_is_the_secret(tmp_path: Path) -> None:
    files = SessionFiles(tmp_path / "files")
    folder = files.new_folder(NOBODY)
    assert len(folder.name) == 32
    assert files.may_read(NOBODY, str(folder / "x")) and files.may_read(ANN, str(folder / "x"))


def test_uploads_go_after_an_hour_results_after_a_day(tmp_path: Path, clock: Clock) -> None:
    files = SessionFiles(tmp_path / "files", clock=clock)
    upload, result = uploaded(files, ANN, "a.png"), files.new_folder(ANN)
    clock.now += 3599
    files.sweep()
    assert upload.exists() and result.exists()
    clock.now += 2
    files.sweep()
    assert not upload.exists() and result.exists()
    assert not files.may_read(ANN, str(upload))
    clock.now += 86400
    files.sweep()
    assert list(files.root.iterdir()) == []


def test_an_upload_that_comes_again_is_kept_from_then_on(tmp_path: Path, clock: Clock) -> None:
    files = SessionFiles(tmp_path / "files", clock=clock)
    path = uploaded(files, ANN, "a.png")
    clock.now += 3000
    uploaded(files, ANN, "a.png")
    clock.now += 3000
    files.sweep()
    assert files.may_read(ANN, str(path)) and path.exists()


def test_a_session_keeps_its_newest_uploads(tmp_path: Path) -> None:
    files = SessionFiles(tmp_path / "files", Limits(uploads=3))
    other = uploaded(files, BOB, "other.png")
    paths = [uploaded(files, ANN, f"{number}.png") for number in range(5)]
    assert [path.exists() for path in paths] == [False, False, True, True, True]
    assert other.exists()


def test_all_files_together_are_bounded_the_oldest_going_first(tmp_path: Path) -> None:
    files = SessionFiles(tmp_path / "files", Limits(size=100_000))
    folders = [files.new_folder(owner) for owner in (ANN, BOB, ANN)]
    for folder in folders:
        (folder / "x").write_bytes(b"x" * 60_000)
    files.sweep()
    assert [folder.exists() for folder in folders] == [False, False, True]


def test_uploads_together_are_bounded_at_once(tmp_path: Path) -> None:
    files = SessionFiles(tmp_path / "files", Limits(upload_size=100_000))
    result = files.new_folder(ANN)
    paths = [uploaded(files, owner, f"{owner}.png", 60_000) for owner in (ANN, BOB)]
    assert [path.exists() for path in paths] == [False, True] and result.exists()


def test_a_sweep_survives_what_is_deleted_under_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = SessionFiles(tmp_path / "files")
    folder = files.new_folder(ANN)
    (folder / "step-1").mkdir()
    (folder / "step-1" / "x").touch()

    def gone(*arguments: object) -> object:
        raise FileNotFoundError

    monkeypatch.setattr("sundae.interactive.session_files.os.lstat", gone)
    files.sweep()
    assert files.may_read(ANN, str(folder))


def test_what_a_broken_upload_left_goes_when_it_is_old(tmp_path: Path) -> None:
    clock = Clock()
    files = SessionFiles(tmp_path / "files", clock=clock)
    stray = files.root / "tmpabc"
    stray.write_text("half")
    clock.now = stray.stat().st_mtime + 10
    files.sweep()
    assert stray.exists()
    clock.now += 30
    files.sweep()
    assert not stray.exists()
