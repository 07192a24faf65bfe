"""Kernel distance of two sets of features, called KID when they come from an Inception network."""

from __future__ import annotations

import numpy as np
import torch

from sundae.common.extras import import_extra


def fitting_subset_size(num_a: int, num_b: int) -> int:
    """Vectors in a subset: half of the smaller set, at most the 1,000 of the paper."""
    return min(1000, min(num_a, num_b) // 2)


def kernel_distance(
    a: np.ndarray,
    b: np.ndarray,
    *,
    subset_size: int | None = None,
    num_subsets: int = 100,
    seed: int = 0,
) -> tuple[float, float]:
    """The squared maximum mean discrepancy with the kernel (x·y / d + 1)^3 (arXiv 1801.01401).

    Unbiased, unlike the Fréchet distance: equal distributions give 0 on average at any number of
    vectors, and a single estimate may be negative. Computed by torch-fidelity, in float64.

    Args:
        a, b: (n, d) and (m, d) features.
        subset_size: vectors drawn from each set for one estimate; None takes
            `fitting_subset_size`.

    Returns:
        Mean and standard deviation of the estimates from `num_subsets` random subsets. The
        deviation is that of one estimate, not the error of their mean.

    Raises:
        UserError: torch-fidelity is not installed.
        ValueError: a subset of less than 2 vectors, or of more than a set has.
    """
    subset_size = fitting_subset_size(len(a), len(b)) if subset_size is None else subset_size
    if not 2 <= subset_size <= min(len(a), len(b)):
        raise ValueError(f"subsets of {subset_size} of {len(a)} and {len(b)} feature vectors")
    metric = import_extra("torch_fidelity.metric_kid", "requirements-evaluate.txt")
    values = metric.kid_features_to_metric(
        torch.from_numpy(np.asarray(a, np.float64)),
        torch.from_numpy(np.asarray(b, np.float64)),
        kid_subsets=num_subsets,
        kid_subset_size=subset_size,
        rng_seed=seed,
        verbose=False,
    )
    return values[metric.KEY_METRIC_KID_MEAN], values[metric.KEY_METRIC_KID_STD]
