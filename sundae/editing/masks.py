"""Masks: which pixels to repaint, and which tokens these make.

A mask is (H, W) bool, true where a pixel is repainted. The kinds of masks that are made here have
sizes that are shares of the image's sides, so that they mean the same for every image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from hourglass_transformer.config import ConfigError
from sundae.common.errors import UserError
from sundae.common.images import BadImage, load_image, to_rgb
from sundae.config.sections import STRICT
from sundae.config.values import Values

Size = tuple[int, int]  # (height, width)

# From which grey on, of 255, a pixel of a mask image is white. Half way, because what is lossily
# compressed has no clean black.
WHITE = 128

# Source pixels: an overlap below this is the rounding of a division.
_TOUCH = 1e-6


class MaskKind(Protocol):
    """A kind of mask with its sizes."""

    def make(self, size: Size, generator: torch.Generator) -> Tensor:
        """A mask of an image.

        Args:
            size: (height, width) of the image in pixels.
            generator: on the CPU; for what is drawn.

        Returns:
            (height, width) bool with at least one pixel set.
        """
        ...


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BlockMask:
    """One rectangle; what reaches over the edge is cut off."""

    section: ClassVar[str] = "mask.block"

    height: float = Field(0.5, gt=0, le=1, description="share of the image's height")
    width: float = Field(0.5, gt=0, le=1, description="share of the image's width")
    top: float | None = Field(None, ge=0, lt=1, description="share of the image's height "
                              "above it; by default drawn for each image")  # fmt: skip
    left: float | None = Field(None, ge=0, lt=1, description="share of the image's width "
                               "left of it; by default drawn for each image")  # fmt: skip

    def make(self, size: Size, generator: torch.Generator) -> Tensor:
        return _rectangle(size, (self.height, self.width), (self.top, self.left), generator)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RandomMask:
    """Several rectangles of random sizes at random places, which may overlap."""

    section: ClassVar[str] = "mask.random"

    count: int = Field(6, ge=1, description="number of blocks")
    smallest: float = Field(
        0.1, gt=0, le=1, description="smallest share of the image's sides that a block has"
    )
    largest: float = Field(0.3, gt=0, le=1, description="largest share of the image's sides")

    @model_validator(mode="after")
    def _check_order(self) -> RandomMask:
        if self.smallest > self.largest:
            raise ConfigError("mask.random.smallest", "is above largest; exchange them")
        return self

    def make(self, size: Size, generator: torch.Generator) -> Tensor:
        mask = torch.zeros(size, dtype=torch.bool)
        for _ in range(self.count):
            shares = torch.rand(2, generator=generator) * (self.largest - self.smallest)
            mask |= _rectangle(size, (shares + self.smallest).tolist(), (None, None), generator)
        return mask


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GridMask:
    """Squares in rows and columns, each in the middle of its cell."""

    section: ClassVar[str] = "mask.grid"

    count: int = Field(4, ge=1, description="squares along each side")
    share: float = Field(0.5, gt=0, le=1, description="masked share of each square's cell, by side")

    def make(self, size: Size, generator: torch.Generator) -> Tensor:
        rows, columns = (_stripes(whole, min(self.count, whole), self.share) for whole in size)
        return rows[:, None] & columns


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ClassicMask:
    """The centre, half of each side by default: the hole of arXiv 1604.07379."""

    section: ClassVar[str] = "mask.classic"

    share: float = Field(0.5, gt=0, le=1, description="share of the image's sides")

    def make(self, size: Size, generator: torch.Generator) -> Tensor:
        return GridMask(count=1, share=self.share).make(size, generator)


MASK_KINDS: dict[str, type[Any]] = {
    "block": BlockMask,
    "random": RandomMask,
    "grid": GridMask,
    "classic": ClassicMask,
}


def mask_kind(kind: str | None, flags: Mapping[str, Any]) -> MaskKind | None:
    """A kind of mask with the sizes that flags give.

    Args:
        kind: a key of MASK_KINDS, or None, which takes no sizes.
        flags: of all kinds, 'mask.block.height' for --block-height and so on; None where not given.

    Raises:
        UserError: no such kind, a size of another kind, or one out of range.
    """
    if kind is not None and kind not in MASK_KINDS:
        raise UserError(f"--inpaint-strategy {kind}: expected one of {', '.join(MASK_KINDS)}")
    values = Values.merged({}, "mask", flags=flags)
    sizes = values.tables.get("mask", {})
    for other in sizes.keys() - {kind}:
        flag = values.at(f"mask.{other}.{next(iter(sizes[other]))}")
        raise UserError(f"{flag} needs --inpaint-strategy {other}")
    return None if kind is None else values.checked(MASK_KINDS[kind], sizes.get(kind, {}))


def _rectangle(
    size: Size, shares: Sequence[float], starts: Sequence[float | None], generator: torch.Generator
) -> Tensor:
    """A rectangle of shares of the sides; its place is drawn where it has no start."""
    spans = []
    for whole, share, start in zip(size, shares, starts):
        side = _pixels(share, whole)
        if start is None:
            first = int(torch.randint(whole - side + 1, (), generator=generator))
        else:
            first = min(int(start * whole), whole - 1)
        spans.append(slice(first, first + side))
    mask = torch.zeros(size, dtype=torch.bool)
    mask[tuple(spans)] = True
    return mask


def _pixels(share: float, whole: int) -> int:
    """A share of a side in whole pixels, at least one."""
    return min(whole, max(1, round(share * whole)))


def _stripes(whole: int, count: int, share: float) -> Tensor:
    """(whole,) bool: `count` stripes, each in the middle of its part of the side."""
    stripes = torch.zeros(whole, dtype=torch.bool)
    edges = [whole * part // count for part in range(count + 1)]
    for start, stop in pairwise(edges):
        side = _pixels(share, stop - start)
        start += (stop - start - side) // 2
        stripes[start : start + side] = True
    return stripes


def read_mask(path: Path) -> Tensor:
    """Reads a mask image of any format that `load_image` reads; see `mask_from_image`.

    Returns:
        (height, width) bool, of the size of the file.

    Raises:
        UserError: it cannot be read, or nothing in it is white.
    """
    try:
        mask = mask_from_image(load_image(path, background="black"))
    except BadImage as error:
        raise UserError(f"{error}; give an image that is white where to repaint") from error
    if not mask.any():
        raise UserError(
            f"{path} masks nothing: expected white (a grey of {WHITE} of 255 or lighter) "
            "where to repaint; paint some of it white"
        )
    return mask


def mask_from_image(image: Image.Image) -> Tensor:
    """(height, width) bool: where an image is white, a grey of WHITE or lighter.

    Transparency counts as black, so white strokes on a transparent layer are a mask.
    """
    grey = to_rgb(image, background="black").convert("L")
    return torch.from_numpy(np.array(grey)) >= WHITE


def resize_mask(
    mask: Tensor, size: Size, box: tuple[float, float, float, float] | None = None
) -> Tensor:
    """Scales a mask so that every pixel which a set one touches is set.

    Args:
        mask: (H, W) bool.
        size: (height, width) of the result.
        box: (left, top, right, bottom), the part to scale in pixels of the mask; all by default.
    """
    left, top, right, bottom = box or (0, 0, mask.shape[1], mask.shape[0])
    rows = _any_touched(mask, top, bottom, size[0])
    return _any_touched(rows.T, left, right, size[1]).T.contiguous()


def _any_touched(mask: Tensor, start: float, stop: float, count: int) -> Tensor:
    """(H, W) bool -> (count, W) bool: whether a row is set that a part of start .. stop touches."""
    edges = start + (stop - start) / count * torch.arange(count + 1, dtype=torch.float64)
    first, last = (edges[:-1] + _TOUCH).floor().long(), (edges[1:] - _TOUCH).ceil().long()
    counts = F.pad(mask.cumsum(dim=0), (0, 0, 1, 0))
    return counts[last] > counts[first]


def token_mask(mask: Tensor, factor: int) -> Tensor:
    """Which tokens to draw anew: those with any masked pixel in their patch.

    Args:
        mask: (H, W) bool.
        factor: pixels per token along each side; H and W are multiples of it.

    Returns:
        (H / factor, W / factor) bool.
    """
    return rearrange(mask, "(h a) (w b) -> h w (a b)", a=factor, b=factor).any(dim=-1)
