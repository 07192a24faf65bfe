"""The training image that each sample resembles most, and how many samples are close to copies."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

_BLOCK = 2**24  # similarities held at once, 64 MB
_EXACT = 1 - 1e-5  # cosine of a vector with itself, up to rounding


@dataclass(frozen=True)
class Neighbours:
    """The nearest training image of each of n images.

    Attributes:
        index: (n,) int64, place among the training images.
        similarity: (n,) float32, cosine of both images' features, in [-1, 1].
    """

    index: np.ndarray
    similarity: np.ndarray


@dataclass(frozen=True)
class NearCopies:
    """How many images are as close to a training image as only the closest held-out ones are.

    Attributes:
        threshold: cosine from which on an image counts as a near-copy.
        share: of the samples, in [0, 1].
        held_out_share: of the held-out images. Above 1 minus the quantile only where the data
            itself holds duplicates; samples copy as far as `share` exceeds it.
    """

    threshold: float
    share: float
    held_out_share: float


def nearest_neighbours(images: np.ndarray, training: np.ndarray) -> Neighbours:
    """Finds the training image with the largest cosine similarity, see `ImageFeatures.layout`.

    Args:
        images, training: (n, d) and (m, d) features.
    """
    points, known = (F.normalize(torch.from_numpy(x).float(), dim=1) for x in (images, training))
    best = [(part @ known.T).max(1) for part in points.split(max(1, _BLOCK // len(known)))]
    similarity, index = (torch.cat(parts).numpy() for parts in zip(*best))
    return Neighbours(index, similarity)


def near_copies(samples: Neighbours, held_out: Neighbours, *, quantile: float = 0.99) -> NearCopies:
    """Share of near-copies, with a threshold that the data itself gives.

    A held-out image is no copy, however close its nearest training image is; the threshold is the
    given quantile of their similarities. Where more held-out images than that are duplicates of
    training images, it is that of exact copies.
    """
    threshold = min(float(np.quantile(held_out.similarity, quantile)), _EXACT)
    share, of_held_out = (
        float((side.similarity >= threshold).mean()) for side in (samples, held_out)
    )
    return NearCopies(threshold, share, of_held_out)


def digests(images: np.ndarray) -> list[bytes]:
    """What tells images (n, ...) of one shape apart, value by value, in 16 bytes each."""
    return [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images]


def exact_copies(images: Sequence[bytes], training: Collection[bytes]) -> float:
    """Share in [0, 1] of images that equal a training image, by their `digests`."""
    return float(np.mean([image in training for image in images]))
