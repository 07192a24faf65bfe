"""Perceptual distances between images: features of a pretrained network.

lpips               LPIPS (arXiv 1801.03924): VGG-16 features, calibrated on human judgements
efficientnet-lite0  features of EfficientNet-lite0 at four depths, unweighted
none                always 0
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from sundae.common.errors import UserError
from sundae.features.efficientnet import EfficientNetLite0, load_efficientnet
from sundae.features.lpips import LPIPS, normalised
from sundae.features.lpips_weights import load_lpips


class FeatureDistance(nn.Module, ABC):
    """Mean squared difference of features that are normalised at every position, over depths."""

    @abstractmethod
    def features(self, pixels: Tensor) -> Iterator[Tensor]:
        """pixels: (B, 3, H, W) in [-1, 1] -> one (B, C, h, w) for each depth."""

    def compare(self, depth: int, difference: Tensor) -> Tensor:
        """(B, C, h, w) squared differences at a depth -> scalar."""
        return difference.sum(1).mean()

    def forward(self, pixels: Tensor, images: Tensor) -> Tensor:
        """Both (B, 3, H, W) in [-1, 1] -> scalar, 0 for equal ones; no gradient to `images`."""
        with torch.no_grad():
            targets = [normalised(feature) for feature in self.features(images)]
        total = pixels.new_zeros(())
        for depth, (feature, target) in enumerate(zip(self.features(pixels), targets, strict=True)):
            total = total + self.compare(depth, (normalised(feature) - target).square())
        return total


class Nothing(FeatureDistance):
    """No perceptual loss: always 0."""

    def features(self, pixels: Tensor) -> Iterator[Tensor]:
        return iter(())


class EfficientNetDistance(FeatureDistance):
    """The mean over the stages of EfficientNet-lite0 with stride 2, 4, 8 and 16."""

    def __init__(self, net: EfficientNetLite0) -> None:
        super().__init__()
        self.net = net

    def features(self, pixels: Tensor) -> Iterator[Tensor]:
        return self.net.stages(pixels)

    def compare(self, depth: int, difference: Tensor) -> Tensor:
        return super().compare(depth, difference) / len(self.net.TAPS)


class LPIPSDistance(FeatureDistance):
    """LPIPS 0.1 with VGG-16."""

    def __init__(self, net: LPIPS) -> None:
        super().__init__()
        self.net = net

    def features(self, pixels: Tensor) -> Iterator[Tensor]:
        return self.net.stages(pixels)

    def compare(self, depth: int, difference: Tensor) -> Tensor:
        return self.net.compare(depth, difference).mean()


_LOADERS: dict[str, Callable[[], FeatureDistance]] = {
    "lpips": lambda: LPIPSDistance(load_lpips("vgg16", torch.device("cpu"))),
    "efficientnet-lite0": lambda: EfficientNetDistance(load_efficientnet()),
    "none": Nothing,
}


def load_perceptual(name: str) -> FeatureDistance:
    """A frozen distance by name: lpips, efficientnet-lite0 or none; on the CPU.

    Raises:
        UserError: its package or weights are missing; says how to get them.
    """
    try:
        distance = _LOADERS[name]().eval().requires_grad_(False)
    except UserError as error:
        others = " or ".join(other for other in _LOADERS if other != name)
        raise UserError(
            f"training.perceptual is {name}, but {error}; or set training.perceptual to {others}"
        ) from error
    return distance.to(memory_format=torch.channels_last)
