"""Labels by name as numbers: rare values, missing ones, and the file of attributes."""

import json
from pathlib import Path

import numpy as np
import pytest

from sundae.common.errors import UserError
from sundae.evaluation.label_table import (
    OTHER,
    LabelTable,
    class_labels,
    labels_of,
    read_attributes,
)


def test_labels_become_places_among_the_sorted_values() -> None:
    labels = class_labels(np.array(["b", "a", "c", "a"]))
    table = LabelTable.of(labels)
    assert table.columns == {"class": ("a", "b", "c")} and table.num_values == [3]
    assert table.encode(labels)[:, 0].tolist() == [1, 0, 2, 0]
    assert table.encode(class_labels(["c", "unknown"]))[:, 0].tolist() == [2, -1]


def test_rare_values_count_as_one_where_they_are_enough_together() -> None:
    images = [{"eyes": value} for value in "aaaabbbbcd"]
    assert LabelTable.of(images, 4).columns == {"eyes": ("a", "b")}
    table = LabelTable.of(images, 2)
    assert table.columns == {"eyes": ("a", "b", OTHER)}
    assert table.encode(images)[-2:, 0].tolist() == [2, 2]
    assert table.encode([{"eyes": "new"}])[0, 0] == 2


def test_columns_with_one_value_are_left_out_and_images_without_one_have_none() -> None:
    images = [{"fur": "red", "tail": "long"}, {"fur": "red", "tail": "short"}, {"fur": "red"}]
    table = LabelTable.of(images)
    assert list(table.columns) == ["tail"]
    assert table.encode(images)[:, 0].tolist() == [0, 1, -1]


def test_attributes_of_a_class_are_columns_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "attributes.json"
    attributes = {"cat/1": {"eyes": "round"}, "bot/1": {"eyes": "red"}, "alone": {"eyes": "none"}}
    path.write_text(json.dumps({"attributes": attributes}))
    assert read_attributes(path) == {
        "cat/1": {"cat/eyes": "round"}, "bot/1": {"bot/eyes": "red"}, "alone": {"eyes": "none"},
    }  # fmt: skip


@pytest.mark.parametrize(
    "text", [None, "{", "[1]", '{"attributes": [1]}', '{"attributes": {"a": 1}}']
)
def test_another_file_is_refused(text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "attributes.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match="holds no attributes of images .*get-images.py"):
        read_attributes(path)


def test_an_image_without_attributes_is_named() -> None:
    attributes = {"a/1": {"eyes": "round"}, "a/2": {"eyes": "none"}}
    assert labels_of(["a/2", "a/1"], attributes) == [{"eyes": "none"}, {"eyes": "round"}]
    with pytest.raises(UserError, match="1 of 3 images have no attributes, a/3 for one"):
        labels_of(["a/1", "a/3", "a/2"], attributes)
