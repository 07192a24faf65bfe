"""How far apart two sets of feature vectors are, as the Gaussians that fit them best."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def frechet_distance(a: ArrayLike, b: ArrayLike) -> float:
    """The squared Fréchet distance between Gaussians fitted to two sets of features.

    |m_a - m_b|^2 + tr(S_a) + tr(S_b) - 2 tr((S_a S_b)^(1/2)) (Dowson and Landau 1982; called FID
    when the features come from an Inception network, arXiv 1706.08500). With S = R^T R, the last
    trace is the sum of the singular values of R_a R_b^T: no complex numbers come in, and neither
    fewer vectors than dimensions nor a feature that never varies costs precision.

    Fitted to n vectors the covariances are off by O(1/n), which makes the distance too large: only
    numbers from equally many samples can be compared.

    Args:
        a, b: (n, d) and (m, d) numbers, NumPy arrays or CPU tensors; n and m at least 2.

    Raises:
        ValueError: other shapes, or values that are not finite.
    """
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    for features in (first, second):
        if features.ndim != 2 or len(features) < 2 or features.shape[1] != first.shape[1]:
            raise ValueError(
                "expected two sets of at least 2 feature vectors, (n, d) and (m, d), got "
                f"{first.shape} and {second.shape}"
            )
        if not np.isfinite(features).all():
            raise ValueError("features must be finite numbers")
    apart = float(((first.mean(0) - second.mean(0)) ** 2).sum())
    root_a, root_b = _covariance_root(first), _covariance_root(second)
    overlap = float(np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum())
    return max(0.0, apart + float((root_a**2).sum() + (root_b**2).sum()) - 2 * overlap)


def _covariance_root(features: np.ndarray) -> np.ndarray:
    """(n, d) -> R (min(n, d), d) such that R^T R is the unbiased covariance."""
    centred = (features - features.mean(0)) / np.sqrt(len(features) - 1)
    return np.asarray(np.linalg.qr(centred, mode="r"))
