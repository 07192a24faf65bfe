"""Diversity within classes, with a distance that is known."""

import numpy as np
import pytest
import torch
from torch import Tensor

from sundae.evaluation.diversity import class_diversity


def mean_difference(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).abs().mean((1, 2, 3))


def flat_images(*greys: float) -> Tensor:
    return torch.tensor(greys).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)


def test_it_is_the_mean_over_pairs_then_over_classes_of_two_or_more() -> None:
    images = flat_images(0.0, 0.5, 0.1, 0.2, 0.4, 0.9)
    labels = np.array([0, 0, 1, 1, 1, 2])
    expected = (0.5 + (0.1 + 0.3 + 0.2) / 3) / 2
    assert class_diversity(images.__getitem__, labels, mean_difference) == pytest.approx(expected)


def test_classes_of_equal_images_have_none_however_different_they_are() -> None:
    images, labels = flat_images(*[0.0, 1.0] * 10), np.array([0, 1] * 10)
    assert class_diversity(images.__getitem__, labels, mean_difference) == 0
    assert class_diversity(images.__getitem__, np.zeros(20), mean_difference) > 0.4


def test_drawn_pairs_are_different_ones_of_the_class() -> None:
    seen: list[tuple[float, float]] = []

    def spy(a: Tensor, b: Tensor) -> Tensor:
        seen.extend(zip(a[:, 0, 0, 0].tolist(), b[:, 0, 0, 0].tolist()))
        return mean_difference(a, b)

    images, labels = flat_images(*map(float, range(40))), np.arange(40) % 2
    first = class_diversity(images.__getitem__, labels, spy, pairs=30, seed=1)
    assert len(seen) == len({frozenset(pair) for pair in seen}) == 60
    assert all(a != b and a % 2 == b % 2 for a, b in seen)
    assert class_diversity(images.__getitem__, labels, mean_difference, pairs=30, seed=1) == first
    assert class_diversity(images.__getitem__, labels, mean_difference, pairs=30, seed=2) != first


def test_without_pairs_there_is_no_figure() -> None:
    with pytest.raises(ValueError, match="two images"):
        class_diversity(flat_images(0.0, 1.0).__getitem__, np.array([0, 1]), mean_difference)
