"""Figures of samples of handwritten digits: classifier accuracy and variety within classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from sklearn.svm import SVC

from sundae.codec.interface import PixelCodec
from sundae.common.images import load_image, to_tensor
from sundae.data.dataset import Latents


def fit_classifier(real: Latents) -> SVC:
    """A support-vector classifier (gamma 0.001), fitted on real digits, see `pixels_and_labels`."""
    return SVC(gamma=0.001).fit(*pixels_and_labels(real))


def pixels_and_labels(real: Latents) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (rows, pixels) and classes (rows,) of images as tokens of a `PixelCodec`."""
    assert real.labels is not None
    return np.asarray(real.tokens).reshape(len(real), -1), real.labels[real.images]


def read_tokens(folder: Path, codec: PixelCodec, count: int) -> np.ndarray:
    """(count, pixels) int64: the first images that sample.py wrote to a folder, as tokens."""
    images = [to_tensor(load_image(path)) for path in sorted(folder.glob("*.png"))[:count]]
    return codec.encode(torch.stack(images)).flatten(1).numpy()


def class_accuracy(classifier: SVC, tokens: np.ndarray, targets: np.ndarray) -> float:
    """Share in [0, 1] of tokens (samples, pixels) that get their target class (samples,)."""
    return float((classifier.predict(tokens) == targets).mean())


def spread_ratio(tokens: np.ndarray, targets: np.ndarray, real: Latents) -> float:
    """How varied samples are within their classes: 1 is as varied as real digits, 0 all equal.

    The mean distance between samples of a class over the mean distance between real digits of it,
    averaged over classes.

    Args:
        tokens, targets: see `class_accuracy`.
    """
    pixels, labels = pixels_and_labels(real)
    ratios = [
        _mean_distance(tokens[targets == digit]) / _mean_distance(pixels[labels == digit])
        for digit in np.unique(targets)
    ]
    return float(np.mean(ratios))


def _mean_distance(points: np.ndarray) -> float:
    """Mean Euclidean distance over all pairs of different rows."""
    values = torch.from_numpy(points.astype(np.float32))
    return float(torch.nn.functional.pdist(values).mean())
