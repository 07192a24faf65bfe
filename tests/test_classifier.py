"""The classifier on images whose labels are known."""

import numpy as np
import pytest
import torch
from torch import Tensor

from sundae.evaluation.classifier import ImageClassifier, fit_classifier, fitting_size


def bars(count: int, seed: int, side: int = 8) -> tuple[Tensor, np.ndarray]:
    """Noise with a bright bar; labels: lying or standing, and in the first or second half."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, (count, 2))
    images = generator.integers(0, 120, (count, 1, side, side), dtype=np.uint8)
    for image, (standing, second) in zip(images, labels):
        rows = image.transpose(0, 2, 1) if standing else image
        rows[:, (1 + second * side // 2)] = 255
    return torch.from_numpy(images), labels


@pytest.fixture(scope="module")
def classifier() -> ImageClassifier:
    """Fitted on bars; each label is missing at half of them."""
    images, labels = bars(256, seed=0)
    labels[::2, 0] = labels[1::2, 1] = -1
    return fit_classifier(images, labels, [2, 2])


def test_labels_that_images_show_are_read(classifier: ImageClassifier) -> None:
    held_out, expected = bars(200, seed=1)
    predicted = classifier.predict(held_out)
    assert (predicted == expected).mean() > 0.95
    rgb = held_out.expand(-1, 3, -1, -1)  # the same images
    assert (classifier.predict(rgb) == predicted).all()
    order = torch.randperm(200)  # as alone, whatever else is in the batch
    assert (classifier.predict(held_out[order]) == predicted[order]).all()


def test_a_seed_gives_the_same_classifier_and_leaves_the_global_generator_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sundae.evaluation.classifier._MOST", 2)
    monkeypatch.setattr("sundae.evaluation.classifier._LEAST", 2)
    images, labels = bars(32, seed=0)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = (fit_classifier(images, labels, [2, 2], seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    weights = [classifier.head.weight for classifier in (first, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_large_images_are_scaled_down_for_fitting_and_reading(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert fitting_size((256, 128)) == (64, 32) and fitting_size((28, 28)) == (28, 28)
    monkeypatch.setattr("sundae.evaluation.classifier._LARGEST", 8)
    monkeypatch.setattr("sundae.evaluation.classifier._MOST", 15)
    images, labels = bars(256, seed=0)
    large = images.repeat_interleave(5, 2).repeat_interleave(5, 3)
    classifier = fit_classifier(large, labels, [2, 2])
    assert classifier.size == (8, 8)
    held_out, expected = bars(200, seed=1)
    large = held_out.repeat_interleave(3, 2).repeat_interleave(3, 3)
    assert (classifier.predict(large) == expected).mean() > 0.95
