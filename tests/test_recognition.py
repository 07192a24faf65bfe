"""What is read off samples and reconstructions, by classifiers that read pixels."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pixel_reader import images_of, read_pixels

from sundae.evaluation.image_sets import ImageSet, images_in_memory
from sundae.evaluation.real_images import RealImages
from sundae.evaluation.recognition import Recognition

CPU = torch.device("cpu")
FIGURES = ("classes", "attributes")


@pytest.fixture(autouse=True)
def _pixels_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_pixels(monkeypatch, tmp_path / "cache")
    monkeypatch.setattr("sundae.evaluation.recognition.MIN_SUPPORT", 1)


def animals(*labels: str) -> ImageSet:
    """Images of cats, which have a dark pixel, and dogs."""
    kinds = [[int(label == "dog")] for label in labels]
    return images_in_memory(images_of(*kinds), "animals", labels=np.array(labels))


def faces(folder: Path, *rows: Sequence[int], classes: Sequence[str] | None = None) -> ImageSet:
    """Images that show their attributes in their first pixels, in a folder that says them."""
    names = [f"{classes[i]}/{i}" if classes else str(i) for i in range(len(rows))]
    values = {name: {"ears": str(row[0]), "eyes": str(row[1])} for name, row in zip(names, rows)}
    folder.mkdir()
    (folder / "attributes.json").write_text(json.dumps({"attributes": values}))
    labels = None if classes is None else np.array(classes)
    about = {"folder": str(folder)}
    pixels = images_of(*rows)
    return images_in_memory(pixels, "faces", labels=labels, names=np.array(names), about=about)


def test_classes_are_counted_where_they_are_those_of_the_data() -> None:
    real = RealImages(animals("cat", "dog"), animals("dog", "cat", "cat"), "")
    recognition = Recognition.of(real, FIGURES, device=CPU)
    assert recognition.attributes is None and recognition.floor() == {"class_accuracy": 1}
    samples = animals("cat", "dog", "dog", "dog")
    assert recognition.samples(samples) == {"class_accuracy": 1}
    samples = replace(samples, labels=np.array(["cat", "dog", "dog", "cat"]))
    assert recognition.samples(samples) == {"class_accuracy": 0.75}
    assert recognition.samples(replace(samples, labels=np.array(["bird"] * 4))) == {}
    assert recognition.samples(replace(samples, labels=None)) == {}


def test_one_class_is_nothing_to_tell_apart() -> None:
    real = RealImages(animals("cat"), animals("cat", "cat"), "")
    assert Recognition.of(real, FIGURES, device=CPU).floor() == {}


def test_combinations_of_training_images_are_counted_beside_those_of_held_out_ones(
    tmp_path: Path,
) -> None:
    training = faces(tmp_path / "a", (0, 0), (1, 1), (0, 2))
    held_out = faces(tmp_path / "b", (0, 0), (1, 0), (1, 2), (0, 1))
    recognition = Recognition.of(RealImages(held_out, training, ""), FIGURES, device=CPU)
    assert recognition.floor() == {"known_combinations": 0.25}
    samples = images_in_memory(images_of((0, 0), (0, 0), (1, 1), (1, 0)), "samples")
    assert recognition.samples(samples) == {"known_combinations": 0.75}


def test_a_reconstruction_that_changes_an_attribute_is_counted(tmp_path: Path) -> None:
    images = faces(tmp_path / "a", (0, 0), (1, 1), (0, 1), (1, 0))
    recognition = Recognition.of(RealImages(images, images, ""), FIGURES, device=CPU)
    pixels = images_of((0, 0), (1, 1), (0, 1), (1, 1))  # other eyes of one of four
    after, before = recognition.reconstructions(images, images_in_memory(pixels, "decoded"))
    assert (after, before) == ({"attribute_accuracy": 7 / 8}, {"attribute_accuracy": 1})


def test_attributes_of_classes_say_nothing_of_images_of_no_class(tmp_path: Path) -> None:
    rows = [(0, 0), (1, 1), (0, 0), (1, 1)]
    images = faces(tmp_path / "a", *rows, classes=["cat", "cat", "dog", "dog"])
    real = RealImages(images, images, "")
    recognition = Recognition.of(real, ["attributes"], device=CPU)
    assert recognition.attributes is not None
    assert recognition.samples(replace(images, labels=None)) == {}
