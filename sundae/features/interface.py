"""What every feature network offers: images in, vectors that describe them out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class ImageFeatures:
    """Features of N images, on the CPU.

    Attributes:
        pooled: (N, d) float32, the features over the whole image: for distances between sets.
        layout: (N, k) float32 of unit length, what is where: for the nearest image. Vectors of
            networks are averages of 4x4 regions.
        logits: (N, classes) float32 where the network classifies: for the Inception score.
    """

    pooled: np.ndarray
    layout: np.ndarray
    logits: np.ndarray | None


class FeatureNetwork(ABC):
    """A frozen network in evaluation mode, or another function of images with vector values.

    Attributes:
        name: One of `FEATURES`.
        title: The name in tables.
        distance_name: Of the Fréchet distance: "FID" for the reference Inception only.
        protocol: What is done to an image: weights, input size, resize filter, layer. For JSON.
        device: Where the network is.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    distance_name: ClassVar[str]
    protocol: ClassVar[dict[str, Any]]
    batch_size: ClassVar[int] = 32

    def __init__(self, device: torch.device, *, quiet: bool = False) -> None:
        """quiet: no progress bar while weights are downloaded."""
        self.device = device

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> ImageFeatures:
        """Features of images (N, 3, H, W) float32 in [0, 1], at least one, of any size."""
        with full_precision():
            parts = [self.see(part.to(self.device)) for part in images.split(self.batch_size)]
        pooled, layout, logits = (
            None if values[0] is None else torch.cat(values).float().cpu().numpy()
            for values in zip(*parts)
        )
        assert pooled is not None and layout is not None
        return ImageFeatures(pooled, layout, logits)

    @abstractmethod
    def see(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Pooled features, layout and logits of one batch on the device."""


def full_precision() -> AbstractContextManager[None]:
    """Convolutions in float32: TF32 would make figures depend on the GPU."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


def resized(images: Tensor, height: int, width: int) -> Tensor:
    """Antialiased bicubic resampling of (N, 3, H, W) in [0, 1]; the aspect ratio is not kept."""
    if images.shape[2:] == (height, width):
        return images
    size = (height, width)
    return F.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)


def pooled_and_layout(features: Tensor) -> tuple[Tensor, Tensor]:
    """(N, C, h, w) -> means (N, C), and 4x4 regions (N, 16 C) of unit length."""
    regions = F.adaptive_avg_pool2d(features, 4)
    return features.mean((2, 3)), F.normalize(regions.flatten(1), dim=1)
