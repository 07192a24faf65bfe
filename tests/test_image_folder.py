"""Folders of drawn images: complete or not there, resumable, one combination on one side."""

import json
import os
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from sundae.common.errors import UserError
from sundae.data.splits import EVAL, split_by_fraction
from sundae.datasets import image_folder
from sundae.datasets.image_folder import (
    ATTRIBUTES,
    CREDITS,
    Drawing,
    ImageSet,
    check_choice,
    combination_name,
    write_images,
)


def plan(seed: int, fail_at: int | None = None) -> Drawing:
    """A grey square of a class, even or odd; from number `fail_at` on it cannot be drawn."""

    def draw() -> Image.Image:
        if fail_at is not None and seed >= fail_at:
            raise KeyboardInterrupt
        return Image.new("RGB", (2, 2), (seed, seed, seed))

    label = "odd" if seed % 2 else "even"
    parts = {"shade": str(seed // 2)}
    return Drawing(f"{label}/{combination_name(parts, seed)}", parts, draw)


def squares(count: int, fail_at: int | None = None, **settings: Any) -> ImageSet[int]:
    return ImageSet(
        name="squares",
        settings={"count": count, **settings},
        credits="nobody\n",
        items=range(count),
        plan=partial(plan, fail_at=fail_at),
    )


def write(images: ImageSet[int], out: Path, **changes: Any) -> dict[str, int] | None:
    options = {"overwrite": False, "skip_existing": False, "nb_workers": 0, "quiet": True}
    return write_images(images, out, **(options | changes))


def test_images_lie_in_classes_with_attributes_credits_and_settings(tmp_path: Path) -> None:
    assert write(squares(5), tmp_path / "out") == {"even": 3, "odd": 2}
    names = {path.stem: path for path in (tmp_path / "out").rglob("*.png")}
    drawing = plan(3)
    assert drawing.name.startswith("odd/")
    with Image.open(names[drawing.name.removeprefix("odd/")]) as image:
        assert image.getpixel((0, 0)) == (3, 3, 3)
    attributes = json.loads((tmp_path / "out" / ATTRIBUTES).read_text())["attributes"]
    assert attributes == {plan(seed).name: {"shade": str(seed // 2)} for seed in range(5)}
    assert (tmp_path / "out" / CREDITS).read_text() == "nobody\n"
    manifest = json.loads((tmp_path / "out" / "squares.json").read_text())
    assert manifest == {"count": 5, "counts": {"even": 3, "odd": 2}}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_stopped_call_leaves_no_folder_and_the_next_draws_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_folder, "_CHUNK", 2)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        write(squares(9, fail_at=5), out)
    assert not out.exists()
    (left,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert len(list(left.rglob("*.png"))) == 5
    (left / "even" / ".half.7.partial.png").write_bytes(b"half")  # as a kill leaves it
    times = {path.name: os.stat(path).st_mtime_ns for path in left.rglob("[!.]*.png")}
    assert write(squares(9), out) == {"even": 5, "odd": 4}
    paths = {path.name: path for path in out.rglob("*") if path.is_file()}
    assert {name: os.stat(paths[name]).st_mtime_ns for name in times} == times
    assert len(paths) == 9 + 3
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_was_begun_with_other_settings_is_begun_anew(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(squares(9, fail_at=5), tmp_path / "out")
    assert write(squares(2, size=4), tmp_path / "out") == {"even": 1, "odd": 1}
    assert len(list((tmp_path / "out").rglob("*.png"))) == 2


def test_processes_draw_the_same(tmp_path: Path) -> None:
    write(squares(40), tmp_path / "one")
    write(squares(40), tmp_path / "two", nb_workers=2)
    files = [
        {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
        for out in (tmp_path / "one", tmp_path / "two")
    ]
    assert files[0] == files[1] and len(files[0]) == 43


def test_a_process_that_draws_ends_with_the_one_that_started_it() -> None:
    """Killed, that one can tell it nothing; the pool's own processes would wait for ever."""
    with pytest.raises(SystemExit), mock.patch.object(os, "_exit", side_effect=SystemExit):
        image_folder._end_with(os.getppid() + 1)


def test_what_exists_is_refused_skipped_or_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(squares(3), out)
    with pytest.raises(UserError, match="holds the squares already.*--overwrite"):
        write(squares(3), out)
    assert write(squares(3), out, skip_existing=True) is None
    with pytest.raises(UserError, match="holds other squares"):
        write(squares(4), out, skip_existing=True)
    assert write(squares(1), out, overwrite=True) == {"even": 1}
    assert len(list(out.rglob("*.png"))) == 1
    (out / "squares.json").unlink()
    with pytest.raises(UserError, match="holds files"):
        write(squares(1), out, skip_existing=True)


def test_a_file_in_the_place_of_the_folder_is_called_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("notes")
    with pytest.raises(UserError, match="out is a file"):
        write(squares(1), tmp_path / "out")


def test_images_of_one_combination_are_on_one_side() -> None:
    parts = [{"eyes": str(seed % 50), "mouth": "o"} for seed in range(400)]
    names = [f"critters/{combination_name(part, seed)}.png" for seed, part in enumerate(parts)]
    assert len(set(names)) == 400
    held_out = split_by_fraction(names, 0.8, 0.2) == EVAL
    assert 0 < held_out.sum() < 400
    np.testing.assert_array_equal(held_out, np.tile(held_out[:50], 8))


def test_a_combination_has_one_name_in_any_order_of_its_parts() -> None:
    assert combination_name({"a": "1", "b": "2"}, 3) == combination_name({"b": "2", "a": "1"}, 3)
    assert combination_name({"a": "1", "b": "2"}, 3) != combination_name({"a": "2", "b": "1"}, 3)


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="--styles is 'clai'; did you mean 'clay'?"):
        check_choice("--styles", "clai", ["clay", "stack"])
