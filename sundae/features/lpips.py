"""LPIPS 0.1 (arXiv 1801.03924): a distance of images that was calibrated on human judgements.

Features of a classifier at five depths, normalised at every position, are compared; each channel
has a weight. The paper recommends AlexNet for reporting; VGG-16 is what losses are made of.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sundae.features.interface import full_precision

# Mean and deviation of ImageNet in [-1, 1], as LPIPS was calibrated with.
_MEAN, _STD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_WIDTHS = {"alexnet": (64, 192, 384, 256, 256), "vgg16": (64, 128, 256, 512, 512)}
NETS = tuple(_WIDTHS)
# AlexNet has no features of images below 31 pixels a side: smaller than _SMALLEST are enlarged.
_SMALLEST, _ENLARGED = 32, 64


class LPIPS(nn.Module):
    """The distance, with random weights until they are loaded; for evaluation mode."""

    mean: Tensor
    std: Tensor

    def __init__(self, net: str, widths: Sequence[int] | None = None) -> None:
        """net: one of `NETS`. widths: channels at the five depths, unless those of the net."""
        super().__init__()
        widths = widths or _WIDTHS[net]
        stages = _alexnet(widths) if net == "alexnet" else _vgg16(widths)
        self.trunk = nn.ModuleList(nn.Sequential(*layers) for layers in stages)
        self.heads = nn.ParameterList(torch.ones(width, 1, 1) for width in widths)
        self.register_buffer("mean", torch.tensor(_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(_STD)[:, None, None], persistent=False)

    def stages(self, pixels: Tensor) -> Iterator[Tensor]:
        """pixels: (B, 3, H, W) in [-1, 1] -> one (B, C, h, w) for each depth."""
        x = (pixels - self.mean) / self.std
        for stage in self.trunk:
            x = stage(x)
            yield x

    def compare(self, depth: int, difference: Tensor) -> Tensor:
        """(B, C, h, w) squared differences of normalised features at a depth -> (B,)."""
        return (difference * self.heads[depth]).sum(1).mean((1, 2))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """(N,) distances between images (N, 3, H, W) in [0, 1], 0 for equal ones.

        Images with a side below 32 pixels are enlarged, their shorter side to 64.
        """
        pairs = zip(*(self.stages(_enlarged(images) * 2 - 1) for images in (a, b)))
        with full_precision():
            distances = [
                self.compare(depth, (normalised(x) - normalised(y)).square())
                for depth, (x, y) in enumerate(pairs)
            ]
        return torch.stack(distances).sum(0)


def normalised(features: Tensor) -> Tensor:
    """Unit length along the channels, in float32."""
    return F.normalize(features.float(), dim=1, eps=1e-10)


def _enlarged(images: Tensor) -> Tensor:
    shorter = min(images.shape[2:])
    if shorter >= _SMALLEST:
        return images
    scale = _ENLARGED / shorter
    return F.interpolate(images, scale_factor=scale, mode="bilinear", antialias=True)


def _conv(before: int, width: int, kernel: int = 3, stride: int = 1, padding: int = 1) -> list:
    return [nn.Conv2d(before, width, kernel, stride, padding), nn.ReLU()]


def _alexnet(widths: Sequence[int]) -> list[list[nn.Module]]:
    """Up to relu1 ... relu5."""
    a, b, c, d, e = widths
    pool = nn.MaxPool2d(3, 2)
    return [
        _conv(3, a, 11, 4, 2),
        [pool, *_conv(a, b, 5, 1, 2)],
        [pool, *_conv(b, c)],
        _conv(c, d),
        _conv(d, e),
    ]


def _vgg16(widths: Sequence[int]) -> list[list[nn.Module]]:
    """Up to relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3."""
    stages: list[list[nn.Module]] = []
    before = 3
    for count, width in zip((2, 2, 3, 3, 3), widths, strict=True):
        stage: list[nn.Module] = [nn.MaxPool2d(2)] if stages else []
        for _ in range(count):
            stage += _conv(before, width)
            before = width
        stages.append(stage)
    return stages
