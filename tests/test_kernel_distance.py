"""The kernel distance of sets whose distance is known, beside another implementation."""

import numpy as np
import pytest
import torch
from torchmetrics.image.kid import poly_mmd

from sundae.evaluation.kernel_distance import fitting_subset_size, kernel_distance


def gaussian(count: int, shift: float = 0.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 16)).astype(np.float32) + shift


def test_two_draws_of_one_distribution_are_at_zero_on_average() -> None:
    values = [kernel_distance(gaussian(200, seed=s), gaussian(200, seed=99 - s), num_subsets=20)[0]
              for s in range(20)]  # fmt: skip
    assert abs(np.mean(values)) < 2 * np.std(values) / np.sqrt(20) and min(values) < 0


def test_the_distance_of_shifted_point_masses_is_the_kernels() -> None:
    """k(x, x) + k(y, y) - 2 k(x, y) for sets that hold one point only, drawn many times."""
    x, y = np.zeros((10, 4)), np.full((12, 4), 2.0)
    mean, deviation = kernel_distance(x, y)
    assert mean == pytest.approx(1 + (16 / 4 + 1) ** 3 - 2 * 1) and deviation == 0


def test_it_grows_with_the_shift_and_a_seed_repeats_it() -> None:
    near, far = (kernel_distance(gaussian(100), gaussian(100, s, seed=1)) for s in (0.3, 0.6))
    assert 0 < near[0] < far[0]
    again = kernel_distance(gaussian(100), gaussian(100, 0.3, seed=1), seed=0)
    other = kernel_distance(gaussian(100), gaussian(100, 0.3, seed=1), seed=1)
    assert again == near != other


def test_torchmetrics_gives_the_same_of_the_whole_sets() -> None:
    a, b = gaussian(60), gaussian(60, 0.5, seed=1)
    expected = poly_mmd(torch.from_numpy(a).double(), torch.from_numpy(b).double())
    found = kernel_distance(a, b, subset_size=60, num_subsets=1)[0]
    assert found == pytest.approx(float(expected), rel=1e-3)


def test_the_subset_size_fits_small_sets_and_is_that_of_the_paper_for_large_ones() -> None:
    assert fitting_subset_size(500, 90) == 45 and fitting_subset_size(50_000, 10_000) == 1000
    with pytest.raises(ValueError, match="subsets of 101 of 100 and 200"):
        kernel_distance(gaussian(100), gaussian(200), subset_size=101)
    with pytest.raises(ValueError, match="subsets of 1 "):
        kernel_distance(gaussian(3), gaussian(3))
