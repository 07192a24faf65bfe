"""Fidelity and variety of samples apart, by balls around feature vectors.

A ball around a vector reaches to its k-th nearest neighbour of the same set; all balls together
stand for the set's manifold. (Own code: torch-fidelity has precision and recall only, and density
and coverage are two more sums over the same balls.)
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

_BLOCK = 2**24  # distances held at once, 128 MB in float64


def precision_recall(samples: np.ndarray, real: np.ndarray, *, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall (arXiv 1904.06991, eq. 1 to 3), both in [0, 1].

    Precision is the share of samples inside a ball of a real image, recall the share of real
    images inside a ball of a sample. Both depend on the numbers of vectors.

    Args:
        samples, real: (n, d) and (m, d) features, n and m above k.

    Raises:
        ValueError: sets of at most k vectors.
    """
    points, known = _shifted(samples, real, k)
    return _share_inside(points, known, k), _share_inside(known, points, k)


def density_coverage(samples: np.ndarray, real: np.ndarray, *, k: int = 5) -> tuple[float, float]:
    """Density and coverage (arXiv 2002.09797, eq. 3 and 4).

    Density is the mean number of real images' balls that a sample is in, over k: 1 is expected of
    equal distributions, and more where samples crowd in the dense parts. Coverage, in [0, 1], is
    the share of real images with a sample in their ball. Outliers among the real images raise
    neither, unlike precision.

    Args:
        samples, real: see `precision_recall`.
    """
    points, known = _shifted(samples, real, k)
    radii = _radii(known, k)
    num_balls = sum(int((part <= radii).sum()) for part in _distances(points, known))
    nearest = torch.cat([part.amin(1) for part in _distances(known, points)])
    return num_balls / (k * len(points)), float((nearest <= radii).double().mean())


def _shifted(samples: np.ndarray, real: np.ndarray, k: int) -> tuple[Tensor, Tensor]:
    """Both sets in float64 with the centre of the real ones at 0, where squares lose least."""
    if min(len(samples), len(real)) <= k:
        raise ValueError(f"{len(samples)} and {len(real)} feature vectors, expected more than {k}")
    points, known = (torch.from_numpy(np.asarray(x, np.float64)) for x in (samples, real))
    centre = known.mean(0)
    return points - centre, known - centre


def _share_inside(points: Tensor, centres: Tensor, k: int) -> float:
    """Share of the points that are in at least one ball."""
    radii = _radii(centres, k)
    num_inside = sum(int((d <= radii).any(1).sum()) for d in _distances(points, centres))
    return num_inside / len(points)


def _radii(centres: Tensor, k: int) -> Tensor:
    """(m,) squared distances to the k-th neighbour; the vector itself comes first."""
    parts = _distances(centres, centres)
    return torch.cat([part.topk(k + 1, largest=False).values[:, -1] for part in parts])


def _distances(a: Tensor, b: Tensor) -> Iterator[Tensor]:
    """Squared distances (rows, m), a block of rows of `a` after the other."""
    squares = b.square().sum(1)
    for part in a.split(max(1, _BLOCK // len(b))):
        sums = part.square().sum(1, keepdim=True) + squares
        distances = sums - 2 * part @ b.T
        # Copies are at 0 exactly, whatever the order in which a product is summed.
        yield distances.masked_fill_(distances < 1e-12 * sums, 0)
