"""Pixels as features: for small images that no network of photographs describes better."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from sundae.features.interface import FeatureNetwork, resized

_LARGEST = 32


class Pixels(FeatureNetwork):
    """The image itself, at most 32 pixels a side.

    Channels are scaled so that distances between grey images are those of one channel. The layout
    is the same vector with unit length, because 4x4 regions of pixels say too little.
    """

    name = "pixels"
    title = "pixels"
    distance_name = "FD (pixels)"
    protocol: ClassVar[dict[str, Any]] = {
        "network": "none",
        "resize": f"antialiased bicubic to {_LARGEST} pixels where a side is longer",
        "features": "pixels in [0, 1], each channel over the root of 3",
    }

    def see(self, images: Tensor) -> tuple[Tensor, Tensor, None]:
        height, width = (min(side, _LARGEST) for side in images.shape[2:])
        pixels = resized(images, height, width).flatten(1) / math.sqrt(3)
        return pixels, F.normalize(pixels, dim=1), None
