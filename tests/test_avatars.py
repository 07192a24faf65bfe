"""Avatars: what is drawn is what the attributes say, and the same parts have the same name."""

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("dicebear")
pytest.importorskip("resvg_py")

from sundae.common.errors import UserError
from sundae.datasets.avatars import num_combinations, plan_avatar, write_avatars


def test_images_are_of_their_size_and_show_their_background(tmp_path: Path) -> None:
    for seed in range(5):
        drawing = plan_avatar(("stack", seed), size=24)
        image = drawing.draw()
        assert (image.size, image.mode) == ((24, 24), "RGB")
        background = drawing.attributes["backgroundColor"].removeprefix("#")
        assert image.getpixel((0, 0)) == tuple(bytes.fromhex(background))


def test_a_smaller_set_is_the_beginning_of_a_larger_one(tmp_path: Path) -> None:
    for count in (2, 3):
        write_avatars(
            tmp_path / str(count), size=8, count=count, styles=["stack"], nb_workers=0, quiet=True
        )
    small, large = (
        {path.name: path.read_bytes() for path in (tmp_path / count / "stack").iterdir()}
        for count in "23"
    )
    assert len(large) == 3 and small.items() < large.items()


def test_combinations_are_of_parts_whatever_the_colours() -> None:
    drawings = [plan_avatar(("stack", seed), size=8) for seed in range(300)]
    attributes = defaultdict(list)
    for drawing in drawings:
        attributes[drawing.name.split("@")[0]].append(drawing.attributes)
    assert len(attributes) < 300  # some occur twice
    for values in attributes.values():
        assert len({(v["piles"], v["stone"], v["cap"]) for v in values}) == 1
    assert any(len({v["backgroundColor"] for v in values}) > 1 for values in attributes.values())


def test_equal_attributes_but_the_seed_give_no_equal_image() -> None:
    """Placement is continuous, so that even equal combinations are drawn differently."""
    images = [np.asarray(plan_avatar(("stack", seed), size=32).draw()) for seed in range(60)]
    assert len({image.tobytes() for image in images}) == 60


def test_every_image_of_a_style_has_the_same_attributes() -> None:
    keys = [plan_avatar(("stack", seed), size=8).attributes.keys() for seed in range(20)]
    assert all(key == keys[0] for key in keys)
    assert {"piles", "stone", "cap", "backgroundColor"} <= keys[0]
    assert num_combinations("stack") == 11 * 7 * 6


def test_impossible_values_are_refused(tmp_path: Path) -> None:
    for values, message in (
        ({"size": 0}, "--size is 0"),
        ({"size": 1025}, "--size is 1025, expected 1 to 1,024"),
        ({"count": 0}, "--count is 0"),
        ({"styles": ["stak"]}, "did you mean 'stack'"),
    ):
        with pytest.raises(UserError, match=message):
            write_avatars(tmp_path / "out", **values)
    assert not list(tmp_path.iterdir())
