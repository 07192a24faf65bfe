"""Readers of labels: what they say of themselves, the cache, and figures of attributes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pixel_reader import images_of, read_pixels

from sundae.evaluation import label_reader
from sundae.evaluation.attributes import combinations, readable, share_known, share_preserved
from sundae.evaluation.image_sets import images_in_memory
from sundae.evaluation.label_reader import LabelledImages, LabelReader
from sundae.evaluation.label_table import class_labels


def fitted_reader(*data: LabelledImages, **settings: Any) -> LabelReader:
    reader = label_reader.fitted_reader(*data, **settings)
    assert reader is not None
    return reader


@pytest.fixture
def fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    return read_pixels(monkeypatch, tmp_path / "cache")


def digits(*values: int) -> LabelledImages:
    return LabelledImages(images_of(*[[v] for v in values]), class_labels(map(str, values)))


def test_it_knows_its_accuracy_on_held_out_images(fits: list[int]) -> None:
    training, held_out = digits(0, 1, 2, 2), digits(0, 1, 1, 2)
    held_out.images[1, 0, 0, 0] = 2  # an image of a 1 that looks like a 2
    reader = fitted_reader(training, held_out)
    assert reader.accuracy == {"class": 0.75} and reader.commonest == {"class": 0.5}
    assert (reader.num_images, reader.num_held_out) == (4, 4)
    pair = LabelledImages(images_of([0], [0]), class_labels("01"))
    assert reader.share_right(pair) == reader.share_right(pair, ["class"]) == 0.5
    assert np.isnan(reader.share_right(pair, []))


def test_the_same_data_is_fitted_once(fits: list[int]) -> None:
    first = fitted_reader(digits(0, 1, 2), digits(0, 1))
    again = fitted_reader(digits(0, 1, 2), digits(0, 1))
    assert fits == [3] and again.accuracy == first.accuracy == {"class": 1.0}
    assert torch.equal(again.classifier.head.weight, first.classifier.head.weight)
    assert not again.classifier.training
    others = (
        (digits(0, 2, 1), digits(0, 1), 0),
        (digits(0, 1, 2), digits(0, 2), 0),
        (digits(0, 1, 2), digits(0, 1), 1),
        (LabelledImages(digits(0, 1, 2).images, class_labels("021")), digits(0, 1), 0),
    )
    for training, held_out, seed in others:
        fitted_reader(training, held_out, seed=seed)
    assert len(fits) == 5


def test_labels_that_never_vary_need_no_reader(fits: list[int]) -> None:
    assert label_reader.fitted_reader(digits(1, 1, 1), digits(1)) is None
    assert label_reader.fitted_reader(digits(0, 1, 2), digits(1), min_support=2) is None
    assert not fits


@pytest.mark.parametrize("content", [b"", b"damaged" * 9, "cut"])
def test_a_damaged_file_is_made_again(
    content: bytes | str, fits: list[int], tmp_path: Path
) -> None:
    fitted_reader(digits(0, 1), digits(0, 1))
    (path,) = (tmp_path / "cache" / "classifiers").iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:-100] if isinstance(content, str) else content)
    fitted_reader(digits(0, 1), digits(0, 1))
    fitted_reader(digits(0, 1), digits(0, 1))
    assert fits == [2, 2]


def test_images_of_a_set_are_taken_small_with_their_classes() -> None:
    images = images_in_memory(
        torch.full((3, 3, 128, 64), 7, dtype=torch.uint8), "cats",
        labels=np.array(["a", "b", "a"]),
    )  # fmt: skip
    small = LabelledImages.of(images)
    assert small.labels == [{"class": "a"}, {"class": "b"}, {"class": "a"}]
    assert small.images.shape == (3, 3, 64, 32) and (small.images == 7).all()


def portraits(*rows: Sequence[int]) -> LabelledImages:
    """Images with the attributes eyes and mouth."""
    labels = [{"eyes": f"e{eyes}", "mouth": f"m{mouth}"} for eyes, mouth in rows]
    return LabelledImages(images_of(*rows), labels)


GRID = [(eyes, mouth) for eyes in range(3) for mouth in range(3)]


def test_attributes_that_cannot_be_read_are_left_out(fits: list[int]) -> None:
    held_out = portraits(*GRID)
    held_out.images[:2, 0, 0, 1] = 2  # two of nine mouths are not what they seem
    reader = fitted_reader(portraits(*GRID), held_out)
    assert reader.accuracy == pytest.approx({"eyes": 1, "mouth": 7 / 9})
    assert readable(reader) == ["eyes"]


def test_naming_the_commonest_value_is_not_reading(fits: list[int]) -> None:
    rows = [(0, 0)] * 19 + [(1, 1)]
    held_out = portraits(*rows)
    held_out.images[-1, 0, 0, 1] = 0  # "m1" is never read, yet 19 of 20 are right
    reader = fitted_reader(portraits(*rows), held_out)
    assert reader.accuracy["mouth"] == reader.commonest["mouth"] == 0.95
    assert readable(reader) == ["eyes"]


def test_a_codec_that_blurs_an_attribute_preserves_the_others(fits: list[int]) -> None:
    reader = fitted_reader(portraits(*GRID), portraits(*GRID))
    decoded = portraits(*GRID).images
    decoded[:, 0, 0, 0] = 0
    assert share_preserved(reader, portraits(*GRID), portraits(*GRID).images) == (1, 1)
    assert share_preserved(reader, portraits(*GRID), decoded) == pytest.approx((1, (9 + 3) / 18))


def test_combinations_of_training_images_are_known_and_others_new(fits: list[int]) -> None:
    reader = fitted_reader(portraits(*GRID), portraits(*GRID))
    training = combinations(reader, portraits(*GRID[:6]).images)
    assert share_known(training, training) == 1
    samples = images_of(GRID[0], GRID[0], GRID[5], GRID[8])
    assert share_known(combinations(reader, samples), training) == 0.75


def test_attributes_of_other_classes_do_not_count(fits: list[int]) -> None:
    images = images_of((0, 0), (1, 1), (0, 0), (1, 1))
    labels = [{"bot/ears": "0"}, {"bot/ears": "1"}, {"cat/ears": "0"}, {"cat/ears": "1"}]
    reader = fitted_reader(LabelledImages(images, labels), LabelledImages(images, labels))
    assert readable(reader) == ["bot/ears", "cat/ears"]
    training = combinations(reader, images_of((0, 0), (1, 1)), ["bot", "cat"])
    assert training == [("bot", (0,)), ("cat", (1,))]
    same = combinations(reader, images_of((0, 1), (0, 1), (0, 1)), np.array(["bot", "cat", "cat"]))
    assert share_known(same, training) == 1
    assert share_known(combinations(reader, images_of((0, 0)), ["cat"]), training) == 0
