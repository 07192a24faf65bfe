"""Precision, recall, density and coverage where they are known, beside other implementations."""

import contextlib
import io

import numpy as np
import pytest
import torch
from prdc import compute_prdc
from torch_fidelity.metric_prc import prc_features_to_metric

from sundae.evaluation import manifold
from sundae.evaluation.manifold import density_coverage, precision_recall


def modes(count: int, places: list[float], seed: int) -> np.ndarray:
    """Points around as many places on a line through 8 dimensions, equally many around each."""
    noise = np.random.default_rng(seed).normal(size=(count, 8))
    return (noise + np.resize(places, count)[:, None]).astype(np.float32)


def test_equal_sets_have_all_of_precision_recall_and_coverage() -> None:
    features = modes(60, [0, 10], seed=0)
    assert precision_recall(features, features) == (1, 1)
    density, coverage = density_coverage(features, features)
    assert coverage == 1 and density == pytest.approx(6 / 5)  # each is in its own ball, too


def test_a_dropped_mode_lowers_recall_and_coverage_but_not_precision_or_density() -> None:
    real = modes(300, [0, 20], seed=0)
    whole, dropped = modes(300, [0, 20], seed=1), modes(300, [0], seed=1)
    precision, recall = precision_recall(whole, real)
    less_precision, less_recall = precision_recall(dropped, real)
    assert less_precision > 0.95 * precision and less_recall < 0.55 * recall
    density, coverage = density_coverage(whole, real)
    same_density, less_coverage = density_coverage(dropped, real)
    assert same_density == pytest.approx(density, abs=0.15) == pytest.approx(1, abs=0.15)
    assert less_coverage == pytest.approx(coverage / 2, abs=0.05)


def test_an_invented_mode_lowers_precision_and_density_but_not_recall() -> None:
    real, samples = modes(200, [0], seed=0), modes(400, [0, 20], seed=1)
    precision, recall = precision_recall(samples, real)
    assert precision < 0.5 < 0.7 < recall
    assert density_coverage(samples, real)[0] == pytest.approx(0.5, abs=0.1)


def test_samples_that_are_all_equal_have_no_recall() -> None:
    real = modes(50, [0], seed=0)
    collapsed = np.repeat(real[:1], 50, 0)
    assert precision_recall(collapsed, real) == (1, 1 / 50)  # the image that was copied


def test_copies_are_inside_balls_of_radius_zero() -> None:
    duplicates = np.repeat(modes(4, [1e3], seed=0), 8, 0)
    assert precision_recall(duplicates[::8].repeat(4, 0), duplicates) == (1, 1)
    assert density_coverage(duplicates, duplicates)[1] == 1


@pytest.mark.parametrize(("k", "shift"), [(3, 0.0), (5, 1.0), (1, 0.5)])
def test_other_implementations_give_the_same(
    k: int, shift: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifold, "_BLOCK", 1000)  # many blocks
    samples, real = modes(90, [shift, 4], seed=1), modes(110, [0, 4], seed=2)
    precision, recall = precision_recall(samples, real, k=k)
    fidelity = prc_features_to_metric(
        torch.from_numpy(samples), torch.from_numpy(real), prc_neighborhood=k, verbose=False
    )
    assert (precision, recall) == pytest.approx((fidelity["precision"], fidelity["recall"]), 1e-3)
    with contextlib.redirect_stdout(io.StringIO()):
        other = compute_prdc(real.astype(float), samples.astype(float), nearest_k=k)
    density, coverage = density_coverage(samples, real, k=k)
    assert (density, coverage) == pytest.approx((other["density"], other["coverage"]), rel=1e-3)


def test_sets_without_k_neighbours_are_refused() -> None:
    few, many = modes(3, [0], seed=0), modes(30, [0], seed=0)
    for samples, real in ((few, many), (many, few)):
        with pytest.raises(ValueError, match="expected more than 3"):
            precision_recall(samples, real)
