"""VGG-16 of LPIPS as features of images."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from sundae.features.interface import FeatureNetwork, pooled_and_layout, resized
from sundae.features.lpips_weights import ARCHIVE, load_lpips


class VGGFeatures(FeatureNetwork):
    """The 512 channels of relu5_3, at stride 16."""

    name = "vgg16"
    title = "VGG-16"
    distance_name = "FD (VGG-16)"
    SIDE = 224
    protocol: ClassVar[dict[str, Any]] = {
        "network": "VGG-16, ImageNet",
        "weights": ARCHIVE,
        "resize": f"antialiased bicubic to {SIDE}x{SIDE}",
        "features": "mean of the 512 channels of relu5_3",
    }
    batch_size = 8

    def __init__(self, device: torch.device, *, quiet: bool = False) -> None:
        super().__init__(device, quiet=quiet)
        self.net = load_lpips("vgg16", device, quiet=quiet)

    def see(self, images: Tensor) -> tuple[Tensor, Tensor, None]:
        *_, features = self.net.stages(resized(images, self.SIDE, self.SIDE) * 2 - 1)
        return *pooled_and_layout(features), None
