"""How varied samples are within their classes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

_BATCH = 16  # pairs in one call


@torch.no_grad()
def class_diversity(
    read: Callable[[np.ndarray], Tensor],
    labels: np.ndarray,
    distance: Callable[[Tensor, Tensor], Tensor],
    *,
    pairs: int = 100,
    seed: int = 0,
) -> float:
    """Mean LPIPS between different images of a class, averaged over classes (arXiv 1711.11586).

    It is 0 when all images of each class are equal. Compare it with that of real images: noise is
    varied, too.

    Args:
        read: rows (n,) int64 -> images (n, 3, H, W) in [0, 1]; of all images, only those of the
            pairs are read, a few at a time.
        labels: (N,) class of each image; classes with one image are left out.
        distance: LPIPS, or another one: of two batches of images (n, 3, H, W), numbers (n,).
        pairs: of each class, drawn at random without repetition; fewer where there are no more.

    Raises:
        ValueError: no class has two images.
    """
    generator = np.random.default_rng(seed)
    means = []
    for label in np.unique(labels):
        chosen = _draw_pairs(np.flatnonzero(labels == label), pairs, generator)
        batches = [chosen[start : start + _BATCH] for start in range(0, len(chosen), _BATCH)]
        if batches:
            distances = [distance(read(batch[:, 0]), read(batch[:, 1])) for batch in batches]
            means.append(float(torch.cat(distances).mean()))
    if not means:
        raise ValueError("no class has two images")
    return float(np.mean(means))


def pixel_distance(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances (n,) of two batches of images (n, ...), which need no network."""
    return (a.float() - b.float()).flatten(1).norm(dim=1)


def _draw_pairs(members: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """(at most `count`, 2) different pairs of different members."""
    total = len(members) * (len(members) - 1) // 2
    number = generator.choice(total, min(count, total), replace=False) if total else np.arange(0)
    # Pairs (i, j), j < i, in the order (1, 0), (2, 0), (2, 1), (3, 0) ... have these numbers.
    i = ((1 + np.sqrt(1 + 8 * number)) / 2).astype(int)
    return np.stack([members[i], members[number - i * (i - 1) // 2]], 1)
