import io
import json
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sundae.common.errors import UserError
from sundae.datasets import emoji
from sundae.datasets.emoji import write_emoji


def pack(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def webp(colour: tuple[int, int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGBA", (8, 8), colour).save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


@pytest.fixture
def tarballs(tmp_path: Path) -> Path:
    """The two packages as npm names them: a face, a hand in two tones, a regional flag."""
    folder = tmp_path / "tarballs"
    folder.mkdir()
    images = {
        "1f600": (255, 0, 0, 255),
        "1f44b": (0, 255, 0, 255),
        "1f44b-1f3fb": (0, 0, 255, 255),
        "1f3f4-e0067_e007f": (0, 0, 0, 0),
    }
    pack(
        folder / "lobehub-fluent-emoji-3d-1.1.0.tgz",
        {f"assets/{name}.webp": webp(colour) for name, colour in images.items()},
    )
    groups = {"\U0001f600": "Smileys & Emotion", "\U0001f44b\ufe0f": "People & Body"}
    content = {character: {"group": group} for character, group in groups.items()}
    pack(
        folder / "unicode-emoji-json-0.9.0.tgz",
        {"data-by-emoji.json": json.dumps(content).encode()},
    )
    return folder


def test_images_lie_in_their_groups_on_a_plain_background(tmp_path: Path, tarballs: Path) -> None:
    out = tmp_path / "out"
    counts = write_emoji(out, size=4, package_dir=tarballs, quiet=True)
    assert counts == {"flags": 1, "people-body": 2, "smileys-emotion": 1}
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*.png")) == [
        "flags/1f3f4-e0067_e007f.png",
        "people-body/1f44b.png",
        "people-body/1f44b@1f44b-1f3fb.png",
        "smileys-emotion/1f600.png",
    ]
    with Image.open(out / "smileys-emotion" / "1f600.png") as face:
        assert (face.size, face.mode, face.getpixel((2, 2))) == ((4, 4), "RGB", (255, 0, 0))
    with Image.open(out / "flags" / "1f3f4-e0067_e007f.png") as empty:
        assert empty.getpixel((0, 0)) == (236, 236, 236)


def test_white_background_and_no_skin_tones(tmp_path: Path, tarballs: Path) -> None:
    out = tmp_path / "out"
    counts = write_emoji(
        out, background="white", skin_tones=False, package_dir=tarballs, quiet=True
    )
    assert counts == {"flags": 1, "people-body": 1, "smileys-emotion": 1}
    with Image.open(out / "flags" / "1f3f4-e0067_e007f.png") as empty:
        assert empty.getpixel((0, 0)) == (255, 255, 255)


def test_what_a_killed_call_moved_aside_is_there_again(tmp_path: Path, tarballs: Path) -> None:
    out = tmp_path / "out"
    write_emoji(out, size=4, package_dir=tarballs, quiet=True)
    out.rename(tmp_path / ".out.123-0123abcd.replaced")
    with pytest.raises(UserError, match="out holds the emoji already"):
        write_emoji(out, size=4, package_dir=tarballs, quiet=True)
    assert out.is_dir()


def test_what_exists_is_kept_skipped_or_replaced_as_asked(tmp_path: Path, tarballs: Path) -> None:
    out = tmp_path / "out"
    write_emoji(out, size=4, package_dir=tarballs, quiet=True)
    with pytest.raises(UserError, match="--overwrite"):
        write_emoji(out, size=4, package_dir=tarballs, quiet=True)
    again = write_emoji(out, size=4, package_dir=tarballs, quiet=True, skip_existing=True)
    assert again is None
    with pytest.raises(UserError, match="other emoji"):
        write_emoji(out, size=8, package_dir=tarballs, quiet=True, skip_existing=True)
    assert write_emoji(out, size=8, package_dir=tarballs, quiet=True, overwrite=True)
    with Image.open(out / "smileys-emotion" / "1f600.png") as face:
        assert face.size == (8, 8)


def test_nothing_is_left_when_an_image_is_broken(tmp_path: Path, tarballs: Path) -> None:
    pack(tarballs / "lobehub-fluent-emoji-3d-1.1.0.tgz", {"assets/1f600.webp": b"no image"})
    with pytest.raises(UserError, match="1f600.webp cannot be read"):
        write_emoji(tmp_path / "out", package_dir=tarballs, quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == ["tarballs"]


def test_a_path_out_of_the_archive_is_refused(tmp_path: Path, tarballs: Path) -> None:
    pack(tarballs / "lobehub-fluent-emoji-3d-1.1.0.tgz", {"../../evil": b"x"})
    with pytest.raises(UserError, match="cannot be unpacked"):
        write_emoji(tmp_path / "out", package_dir=tarballs, quiet=True)


def test_without_npm_one_line_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"install Node.js.*--package-dir"):
        write_emoji(tmp_path / "out", quiet=True)


def test_npms_failure_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "npm error code ENOTFOUND\nmore\n")

    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(UserError, match="could not fetch .* ENOTFOUND; try again") as caught:
        write_emoji(tmp_path / "out", quiet=True)
    assert "\n" not in str(caught.value)


def test_impossible_sizes_are_refused(tmp_path: Path, tarballs: Path) -> None:
    with pytest.raises(UserError, match="--size is 0"):
        write_emoji(tmp_path / "out", size=0, package_dir=tarballs)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("1f600", "1f600"),
        ("1f44b-1f3fb", "1f44b@1f44b-1f3fb"),
        ("1f468-1f3fb-200d-1f680", "1f9d1-200d-1f680@1f468-1f3fb-200d-1f680"),
        ("1f9d1-200d-1f680", "1f9d1-200d-1f680"),
        ("1f3c3-200d-2640-fe0f", "1f3c3@1f3c3-200d-2640-fe0f"),
        ("1f3cb-fe0f", "1f3cb@1f3cb-fe0f"),  # of the family of 1f3cb-1f3fb
        ("1f3f4-e0067_e007f", "1f3f4-e0067_e007f"),
        ("2640", "2640"),  # the sign itself, not a mark of another emoji
    ],
)
def test_variants_are_named_after_the_emoji_of_no_certain_sex_and_skin(
    name: str, expected: str
) -> None:
    assert emoji.file_name(name) == expected
