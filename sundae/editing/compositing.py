"""Known pixels around a hole: continuing them into it, and joining a sample to them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def fill_masked(image: Tensor, mask: Tensor) -> Tensor:
    """Replaces masked pixels by a smooth continuation of the known ones around them.

    The known pixels are averaged into ever smaller images until there is no hole left, and each
    hole is filled from the next smaller image. An encoder sees beyond the patch it codes, so what
    lies in a hole disturbs the tokens beside it. A continuation has no edge that the image does not
    have, and changes the mean and spread that normalisation layers take little.

    Args:
        image: (channels, H, W) float; masked values have no influence, whatever they are.
        mask: (H, W) bool.

    Returns:
        (channels, H, W) float within the range of the known pixels; zero where none is known.
    """
    known = torch.where(mask, 0.0, image)
    return _fill(known[None], (~mask)[None, None].to(image.dtype))[0]


def _fill(values: Tensor, known: Tensor) -> Tensor:
    """values: (1, channels, H, W), zero where known (1, 1, H, W) is 0; 1 elsewhere."""
    height, width = values.shape[-2:]
    if bool(known.all()) or height == width == 1:
        return values
    halve = (min(2, height), min(2, width))
    share = F.avg_pool2d(known, halve, ceil_mode=True)
    coarse = F.avg_pool2d(values, halve, ceil_mode=True) / share.where(share > 0, 1.0)
    coarse = _fill(coarse, (share > 0).to(values.dtype))
    fine = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
    return torch.where(known > 0, values, fine)


def composite(samples: Tensor, image: Tensor, mask: Tensor, feather: int) -> Tensor:
    """Puts the known pixels back into samples, without a seam.

    Known pixels are exactly those of the image. The difference between image and sample at the edge
    of the hole is continued into the hole and added there, fading over `feather` pixels: the
    sample's detail stays, its tone meets the image's. Deeper in, the sample is as decoded.

    Args:
        samples: (N, 3, H, W) float in [0, 1].
        image: (3, H, W) float in [0, 1]; its masked pixels have no influence.
        mask: (H, W) bool.
        feather: width in pixels of the edge within the hole; 0 for a hard one.

    Returns:
        (N, 3, H, W) float in [0, 1].
    """
    fading = 1 - edge_depth(mask, feather) / (feather + 1)
    joined = [sample + fading * fill_masked(image - sample, mask) for sample in samples]
    return torch.where(mask, torch.stack(joined).clamp(0, 1), image)


def edge_depth(mask: Tensor, limit: int) -> Tensor:
    """Depth of each pixel in the hole, in chess king's steps from the known pixels.

    Args:
        mask: (H, W) bool.
        limit: depth at which counting ends.

    Returns:
        (H, W) float32: 0 where known, 1 beside that, up to limit + 1. Nothing is known beyond the
        image's borders.
    """
    known = (~mask)[None, None].float()
    depth = 1 - known
    for _ in range(limit):
        known = F.max_pool2d(known, 3, stride=1, padding=1)
        depth += 1 - known
    return depth[0, 0]
