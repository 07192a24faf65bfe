"""Known pixels around a hole: continuing them into it, and joining an answer to them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def fill_hidden(image: Tensor, hidden: Tensor) -> Tensor:
    """Replace hidden pixels by a smooth continuation of the known ones around them.

    The known pixels are averaged into ever smaller pictures until there is no hole left, and each
    hole is filled from the next smaller picture. An encoder looks beyond the patch it codes, so
    what lies in a hole disturbs the tokens beside it: a continuation has no edge that the picture
    does not have, and moves the mean and the spread that normalisation layers take little.

    Args:
        image: (channels, H, W) float; what is hidden has no influence whatever it is.
        hidden: (H, W) bool.

    Returns:
        (channels, H, W) float within the range of the known pixels; zero where none is known.
    """
    known = torch.where(hidden, 0.0, image)
    return _fill(known[None], (~hidden)[None, None].to(image.dtype))[0]


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


def composited(answers: Tensor, image: Tensor, hidden: Tensor, feather: int) -> Tensor:
    """Put the known pixels back into answers, without a seam.

    Known pixels are exactly those of the picture. By how much an answer misses them at the edge of
    the hole is continued into the hole and added there, less and less over `feather` pixels: the
    answer's detail stays, its tone meets the picture's. Deeper in, the answer is as it was decoded.

    Args:
        answers: (N, 3, H, W) float in [0, 1].
        image: (3, H, W) float in [0, 1]; its hidden pixels have no influence.
        hidden: (H, W) bool.
        feather: width in pixels of the edge within the hole; 0 for a hard one.

    Returns:
        (N, 3, H, W) float in [0, 1].
    """
    fading = 1 - edge_depth(hidden, feather) / (feather + 1)
    joined = [answer + fading * fill_hidden(image - answer, hidden) for answer in answers]
    return torch.where(hidden, torch.stack(joined).clamp(0, 1), image)


def edge_depth(hidden: Tensor, limit: int) -> Tensor:
    """How deep each pixel lies in the hole, in steps of a chess king from the known pixels.

    Args:
        hidden: (H, W) bool.
        limit: how far to count.

    Returns:
        (H, W) float32: 0 where known, 1 beside that, up to limit + 1. Beyond the picture's borders
        nothing is known.
    """
    known = (~hidden)[None, None].float()
    depth = 1 - known
    for _ in range(limit):
        known = F.max_pool2d(known, 3, stride=1, padding=1)
        depth += 1 - known
    return depth[0, 0]
