"""Perceptual distances between images: features of a pretrained network.

lpips               LPIPS (arXiv 1801.03924): VGG-16 features, calibrated on human judgements
efficientnet-lite0  features of EfficientNet-lite0 at four depths, unweighted
none                always 0
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sundae.common.errors import UserError
from sundae.features.efficientnet import EfficientNetLite0, load_efficientnet
from sundae.features.weights import package_folder, read_state

# Mean and deviation of ImageNet in [-1, 1], as LPIPS was calibrated with.
_LPIPS_MEAN, _LPIPS_STD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
# Layers of VGG-16 after which LPIPS compares: relu1_2, 2_2, 3_3, 4_3, 5_3; and their widths.
_VGG_TAPS = {3: 64, 8: 128, 15: 256, 22: 512, 29: 512}


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
            targets = [_normalised(feature) for feature in self.features(images)]
        total = pixels.new_zeros(())
        for depth, (feature, target) in enumerate(zip(self.features(pixels), targets, strict=True)):
            total = total + self.compare(depth, (_normalised(feature) - target).square())
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


class LPIPS(FeatureDistance):
    """LPIPS 0.1 with VGG-16."""

    mean: Tensor
    std: Tensor

    def __init__(self, vgg: nn.Sequential, weights: list[Tensor]) -> None:
        """vgg: `features` of torchvision's VGG-16. weights: (1, C, 1, 1) for each depth."""
        super().__init__()
        # In-place activations would overwrite features that are compared later.
        self.vgg = nn.Sequential(
            *(nn.ReLU() if isinstance(layer, nn.ReLU) else layer for layer in vgg[:30])
        )
        for depth, weight in enumerate(weights):
            self.register_buffer(f"weight_{depth}", weight)
        self.register_buffer("mean", torch.tensor(_LPIPS_MEAN)[:, None, None])
        self.register_buffer("std", torch.tensor(_LPIPS_STD)[:, None, None])

    def features(self, pixels: Tensor) -> Iterator[Tensor]:
        x = (pixels - self.mean) / self.std
        for index, layer in enumerate(self.vgg):
            x = layer(x)
            if index in _VGG_TAPS:
                yield x

    def compare(self, depth: int, difference: Tensor) -> Tensor:
        return (difference * self.get_buffer(f"weight_{depth}")).sum(1).mean()


def _normalised(features: Tensor) -> Tensor:
    """Unit length along the channels, in float32."""
    return F.normalize(features.float(), dim=1, eps=1e-10)


def _load_lpips() -> LPIPS:
    from torchvision.models import VGG16_Weights, vgg16

    folder = package_folder("lpips")
    calibration = read_state(folder / "weights" / "v0.1" / "vgg.pth")
    url = VGG16_Weights.IMAGENET1K_V1.url
    try:
        state = torch.hub.load_state_dict_from_url(
            url, map_location="cpu", progress=False, check_hash=True, weights_only=True
        )
    except (OSError, RuntimeError) as error:
        place = Path(torch.hub.get_dir()) / "checkpoints"
        raise UserError(
            f"VGG-16 could not be downloaded ({error}): download {url} into {place}"
        ) from error
    with torch.device("meta"):
        vgg = vgg16()
    vgg.load_state_dict(state, assign=True)
    return LPIPS(vgg.features, [calibration[f"lin{i}.model.1.weight"] for i in range(5)])


def _load_efficientnet() -> EfficientNetDistance:
    return EfficientNetDistance(load_efficientnet())


_LOADERS: dict[str, Callable[[], FeatureDistance]] = {
    "lpips": _load_lpips,
    "efficientnet-lite0": _load_efficientnet,
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
