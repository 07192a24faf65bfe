"""The Fréchet distance against Gaussians whose distance has a closed form."""

import numpy as np
import pytest
import torch

from sundae.evaluation.frechet import frechet_distance


def features_with(mean: np.ndarray, covariance: np.ndarray, count: int = 50) -> np.ndarray:
    """(count, d) vectors whose mean and unbiased covariance are exactly these."""
    rows = np.random.default_rng(count).normal(size=(count, len(mean)))
    rows -= rows.mean(0)
    whitening = np.linalg.inv(np.linalg.cholesky(np.cov(rows, rowvar=False)))
    return rows @ whitening.T @ np.linalg.cholesky(covariance).T + mean


def rotation(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s], [s, c]])


def test_the_distance_of_axis_aligned_gaussians_is_that_of_means_and_deviations() -> None:
    a = features_with(np.array([1.0, 2.0, 3.0]), np.diag([1.0, 4.0, 9.0]))
    b = features_with(np.array([1.0, 0.0, 4.0]), np.diag([4.0, 4.0, 0.25]), count=80)
    # (2^2 + 1^2) for the means, (1-2)^2 + 0 + (3-0.5)^2 for the deviations
    assert frechet_distance(a, b) == pytest.approx(5 + 1 + 6.25)
    assert frechet_distance(b, a) == pytest.approx(12.25)


def test_covariances_that_do_not_commute() -> None:
    """For 2x2 matrices tr(sqrt(M)) is sqrt(tr(M) + 2 sqrt(det(M)))."""
    turned = rotation(0.7)
    cov_a, cov_b = np.diag([9.0, 1.0]), turned @ np.diag([4.0, 0.5]) @ turned.T
    product = cov_a @ cov_b
    root = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    expected = 10 + 4.5 - 2 * root
    zero = np.zeros(2)
    assert frechet_distance(features_with(zero, cov_a), features_with(zero, cov_b)) == (
        pytest.approx(expected)
    )


def test_equal_sets_are_at_distance_zero_also_with_fewer_vectors_than_dimensions() -> None:
    few = np.random.default_rng(0).normal(size=(5, 64))
    few[:, 3] = 7.0  # a feature that never varies
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(few, few + np.eye(64)[10] * 3) == pytest.approx(9)


def test_tensors_and_a_single_feature_are_taken_too_and_sums_are_double() -> None:
    a = torch.tensor([[0.0], [2.0]])
    assert frechet_distance(a, a.numpy() + 1) == pytest.approx(1)
    # In float32 the mean of such values would lose the difference.
    assert frechet_distance(a + 2**22, a.double() + 2**22 + 0.25) == pytest.approx(0.0625)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.zeros((1, 3)), np.zeros((4, 3)), "at least 2 feature vectors"),
        (np.zeros((4, 3)), np.zeros((4, 2)), r"got \(4, 3\) and \(4, 2\)"),
        (np.zeros(4), np.zeros(4), r"\(n, d\)"),
        (np.zeros((4, 3)), np.full((4, 3), np.nan), "finite"),
    ],
)
def test_features_that_make_no_sense_are_refused(
    a: np.ndarray, b: np.ndarray, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        frechet_distance(a, b)


def test_torch_fidelity_gives_the_same() -> None:
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(200, 12)), generator.normal(0.3, 1.5, size=(150, 12))
    statistics = [fid_features_to_statistics(torch.from_numpy(x)) for x in (a, b)]
    expected = fid_statistics_to_metric(*statistics, verbose=False)
    assert frechet_distance(a, b) == pytest.approx(*expected.values(), rel=1e-3)
