"""Nearest training images and shares of copies, for sets in which they are known."""

import numpy as np
import pytest

from sundae.evaluation import neighbours
from sundae.evaluation.neighbours import digests, exact_copies, near_copies, nearest_neighbours


def directions(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 32)).astype(np.float32)


def test_each_image_finds_the_one_that_it_was_made_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_BLOCK", 100)  # two rows at a time
    training, order = directions(50, seed=0), np.random.default_rng(1).permutation(50)[:20]
    found = nearest_neighbours(2 * training[order] + 0.1 * directions(20, seed=2), training)
    assert (found.index == order).all() and (found.similarity > 0.98).all()
    exact = nearest_neighbours(3 * training[order], training)
    np.testing.assert_allclose(exact.similarity, 1, atol=1e-6)


def test_copies_are_near_copies_and_new_images_are_not() -> None:
    training = directions(200, seed=0)
    held_out = nearest_neighbours(directions(200, seed=1), training)
    new = near_copies(nearest_neighbours(directions(200, seed=2), training), held_out)
    assert new.held_out_share == 0.01 and new.share < 0.05
    noisy = training[:50] + 0.2 * directions(50, seed=3)
    half = np.concatenate([noisy, directions(50, seed=4)])
    assert near_copies(nearest_neighbours(training, training), held_out).share == 1
    assert near_copies(nearest_neighbours(half, training), held_out).share == pytest.approx(
        0.5, abs=0.05
    )


def test_duplicates_in_the_data_are_no_copying() -> None:
    """Every fourth held-out image is also a training image, and so is every fourth sample."""
    training = directions(400, seed=0)

    def with_duplicates(seed: int) -> neighbours.Neighbours:
        images = directions(200, seed)
        images[::4] = training[seed : seed + 50] * 1.7
        return nearest_neighbours(images, training)

    found = near_copies(with_duplicates(1), with_duplicates(2))
    assert found.share == found.held_out_share == 0.25
    copies = near_copies(nearest_neighbours(training, training), with_duplicates(2))
    assert copies.share == 1 and copies.held_out_share == 0.25


def test_exact_copies_are_equal_in_every_value() -> None:
    training = np.random.default_rng(0).integers(0, 256, (30, 4, 4), dtype=np.uint8)
    images = training[:10].copy()
    images[:4, 3, 3] ^= 1
    assert exact_copies(digests(images), digests(training)) == 0.6
    turned = digests(images.transpose(0, 2, 1)), digests(training.transpose(0, 2, 1))
    assert exact_copies(*turned) == 0.6
