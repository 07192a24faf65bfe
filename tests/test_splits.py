"""Splits follow from image names alone and never part an image from its mirror image."""

from pathlib import Path

import numpy as np
import pytest

from sundae.common.errors import UserError
from sundae.common.naming import family_name, image_name, natural_key
from sundae.data.dataset import Latents
from sundae.data.splits import split_rows

SIZES = [(0.7, 0.3), (0.5, 0.2), (30, 10)]


def latents_of(sources: list[str], mirrored: bool = True) -> Latents:
    """Data of one-token images, two rows each when mirrored."""
    per_image = 2 if mirrored else 1
    return Latents(
        root=Path("data"),
        tokens=np.zeros((len(sources) * per_image, 1, 1), dtype=np.uint8),
        images=np.arange(len(sources) * per_image) // per_image,
        sources=tuple(sources),
        labels=None,
        classes=None,
        codebook_size=1,
        codec_identity=None,
    )


def names(count: int) -> list[str]:
    return [f"photos/{i}.jpg" for i in range(count)]


def sides(latents: Latents, sizes: tuple[float, float]) -> dict[str, str]:
    """Side of each image that is used, by its source."""
    train, held_out = split_rows(latents, sizes)
    rows = [(row, "train") for row in train] + [(row, "eval") for row in held_out]
    return {latents.sources[latents.images[row]]: side for row, side in rows}


@pytest.mark.parametrize("sizes", SIZES)
def test_sides_are_disjoint_and_mirror_images_stay_with_their_image(
    sizes: tuple[float, float],
) -> None:
    latents = latents_of(names(60))
    train, held_out = (set(rows.tolist()) for rows in split_rows(latents, sizes))
    assert not train & held_out
    assert all(row ^ 1 in train for row in train)
    assert all(row ^ 1 in held_out for row in held_out)


def test_images_mirrored_before_encoding_stay_together() -> None:
    sources = [name for i in range(30) for name in (f"{i}.png", f"{i}_flip.png")]
    found = sides(latents_of(sources, mirrored=False), (0.5, 0.5))
    assert all(found[f"{i}.png"] == found[f"{i}_flip.png"] for i in range(30))


def test_counts_are_met_in_images_and_fractions_up_to_chance() -> None:
    latents = latents_of(names(1000))
    train, held_out = split_rows(latents, (300, 50))
    assert (len(train), len(held_out)) == (600, 100)
    assert max(*train, *held_out) == 699  # the first 350 images
    train, held_out = split_rows(latents, (0.8, 0.2))
    assert len(train) + len(held_out) == 2000  # 0.8 and 0.2 leave nobody out
    assert 340 < len(held_out) < 460
    train, held_out = split_rows(latents, (0.25, 0.25))
    assert 430 < len(train) < 570
    assert 430 < len(held_out) < 570


@pytest.mark.parametrize("sizes", SIZES)
def test_files_added_at_the_end_move_nobody(sizes: tuple[float, float]) -> None:
    before = sides(latents_of(names(60)), sizes)
    after = sides(latents_of(names(90)), sizes)
    assert before == {name: side for name, side in after.items() if name in before}


def test_a_fraction_depends_on_no_other_file() -> None:
    everyone = sides(latents_of(names(200)), (0.7, 0.3))
    some = sides(latents_of(names(200)[::-3]), (0.7, 0.3))
    assert some.items() <= everyone.items()


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((50, 20), "is 50 \\+ 20 images, there are 60"),
        ((0.8, 0.3), "has sum 1.1"),
        ((0.5, 0.0), "two positive numbers"),
        ((0.999, 1e-12), "0 to evaluate"),
    ],
)
def test_impossible_sizes(sizes: tuple[float, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        split_rows(latents_of(names(60)), sizes)


def test_natural_order() -> None:
    listed = ["b1x", "10", "a-b/1.png", "b1", "a/10.png", "2", "b01", "a/9.png"]
    expected = ["2", "10", "a/9.png", "a/10.png", "a-b/1.png", "b01", "b1", "b1x"]
    assert sorted(listed, key=natural_key) == expected


def test_image_name_drops_one_mark_and_the_suffix() -> None:
    paths = ["a/cat.png", "a/cat_orig.npy", "a/cat-flip.npy", "a/cat_hflip.jpg", "a/cat_aug.npy"]
    assert {image_name(path) for path in paths} == {"a/cat"}
    assert image_name("_flip.png") == "_flip"
    assert image_name("backflip.png") == "backflip"


def test_variants_of_an_image_are_on_its_side() -> None:
    sources = [f"hands/{i}{mark}.png" for i in range(60) for mark in ("", "@dark", "@light_flip")]
    side = sides(latents_of(sources), (0.5, 0.5))
    assert set(side.values()) == {"train", "eval"}
    for source, where in side.items():
        assert where == side[family_name(source) + ".png"], source


def test_a_family_is_named_by_what_stands_before_the_at() -> None:
    paths = ["a/hand.png", "a/hand@dark.png", "a/hand@dark_flip.png", "a/hand@1@2.png"]
    assert {family_name(path) for path in paths} == {"a/hand"}
    assert family_name("@2x.png") == "@2x"
