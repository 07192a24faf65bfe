"""A classifier that is not fitted: it reads labels from pixels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sundae.evaluation import label_reader
from sundae.evaluation.classifier import ImageClassifier


class PixelReader(ImageClassifier):
    """Reads label i from pixel i of the first row."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        pixels = images[:, 0, 0].long().split(1, dim=1)
        return tuple(
            F.one_hot(pixel[:, 0].clamp(max=n - 1), n).float()
            for pixel, n in zip(pixels, self.num_values)
        )


def read_pixels(monkeypatch: pytest.MonkeyPatch, cache: Path) -> list[int]:
    """Puts it in the place of fitted ones; how many images each was fitted on so far."""
    counts: list[int] = []

    def fit(images: Tensor, labels: Any, num_values: Sequence[int], **_: Any) -> ImageClassifier:
        counts.append(len(images))
        return PixelReader((images.shape[2], images.shape[3]), num_values)

    monkeypatch.setenv("SUNDAE_CACHE", str(cache))
    monkeypatch.setattr(label_reader, "fit_classifier", fit)
    monkeypatch.setattr(label_reader, "ImageClassifier", PixelReader)
    return counts


def images_of(*rows: Sequence[int]) -> Tensor:
    """(N, 1, 8, 8) images whose first pixels are these."""
    images = torch.zeros(len(rows), 1, 8, 8, dtype=torch.uint8)
    images[:, 0, 0, : len(rows[0])] = torch.tensor(rows, dtype=torch.uint8)
    return images
