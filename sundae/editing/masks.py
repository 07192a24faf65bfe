"""Masks: which pixels to repaint, and which tokens that makes.

A mask is (H, W) bool, true where a pixel is hidden and gets repainted. The masks that are made here
say their sizes as shares of the picture's sides, so that they mean the same for every picture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from sundae.common.errors import UserError
from sundae.common.images import BadImage, load_image

Size = tuple[int, int]  # (height, width)

# From which grey on, of 255, a pixel of a mask picture is white. Half way, because what is lossily
# compressed has no clean black.
WHITE = 128

# Source pixels: an overlap below this is the rounding of a division.
_TOUCH = 1e-6


def token_mask(hidden: Tensor, factor: int) -> Tensor:
    """Which tokens have to be drawn anew: those with any hidden pixel in their patch.

    Args:
        hidden: (H, W) bool.
        factor: pixels a token along each side; H and W are multiples of it.

    Returns:
        (H / factor, W / factor) bool.

    Raises:
        ValueError: the sides are no multiples of the factor.
    """
    height, width = hidden.shape
    if height % factor or width % factor:
        raise ValueError(f"a mask of {height}x{width} does not divide into patches of {factor}")
    patches = rearrange(hidden, "(h a) (w b) -> h w (a b)", a=factor, b=factor)
    return patches.any(dim=-1)


def block(
    size: Size,
    generator: torch.Generator,
    *,
    height: float = 0.5,
    width: float = 0.5,
    top: float | None = None,
    left: float | None = None,
) -> Tensor:
    """One rectangle.

    Args:
        size: of the picture in pixels.
        generator: on the CPU; draws the place where none is given.
        height, width: of the rectangle, shares of the picture's in (0, 1].
        top, left: its place as shares in [0, 1); what reaches over the edge is cut off.
    """
    sides = _pixels(height, size[0]), _pixels(width, size[1])
    places = [
        _below(whole - side + 1, generator) if share is None else min(int(share * whole), whole - 1)
        for share, whole, side in zip((top, left), size, sides)
    ]
    return _rectangle(size, places, sides)


def random_blocks(
    size: Size,
    generator: torch.Generator,
    *,
    count: int = 6,
    smallest: float = 0.1,
    largest: float = 0.3,
) -> Tensor:
    """Several rectangles of random sizes at random places, which may overlap.

    Args:
        size: of the picture in pixels.
        generator: on the CPU.
        count: how many.
        smallest, largest: of each side, shares of the picture's in (0, 1].
    """
    hidden = torch.zeros(size, dtype=torch.bool)
    for _ in range(count):
        shares = torch.rand(2, generator=generator) * (largest - smallest) + smallest
        height, width = shares.tolist()
        hidden |= block(size, generator, height=height, width=width)
    return hidden


def grid(size: Size, *, count: int = 4, share: float = 0.5) -> Tensor:
    """Squares in rows and columns, each in the middle of its cell.

    Args:
        size: of the picture in pixels.
        count: cells along each side, no more than the picture has pixels.
        share: of a cell's side that is hidden, in (0, 1].
    """
    rows, columns = (_stripes(whole, min(count, whole), share) for whole in size)
    return rows[:, None] & columns


def classic(size: Size, *, share: float = 0.5) -> Tensor:
    """The centre, half of each side unless told otherwise: the hole of arXiv 1604.07379.

    Args:
        size: of the picture in pixels.
        share: of each side, in (0, 1].
    """
    return grid(size, count=1, share=share)


# Of each kind: its sizes, their type and what they are. `make_mask` takes the names.
_SHARE = "share of the picture's"
MASK_SIZES: dict[str, dict[str, tuple[type, str]]] = {
    "block": {
        "height": (float, f"{_SHARE} height (0.5)"),
        "width": (float, f"{_SHARE} width (0.5)"),
        "top": (float, f"{_SHARE} height above it (drawn for each picture)"),
        "left": (float, f"{_SHARE} width left of it (drawn for each picture)"),
    },
    "random": {
        "count": (int, "how many blocks (6)"),
        "smallest": (float, f"{_SHARE} sides that a block has at least (0.1)"),
        "largest": (float, "and at most (0.3)"),
    },
    "grid": {
        "count": (int, "squares along each side (4)"),
        "share": (float, "hidden share of each square's cell, by side (0.5)"),
    },
    "classic": {"share": (float, f"{_SHARE} sides (0.5)")},
}


def make_mask(
    strategy: str, size: Size, generator: torch.Generator, sizes: Mapping[str, float]
) -> Tensor:
    """A mask of one of the kinds in MASK_SIZES.

    Args:
        strategy: block, random, grid or classic.
        size: (height, width) of the picture in pixels.
        generator: on the CPU; for what is drawn.
        sizes: those that are not to be the usual ones.

    Returns:
        (height, width) bool.

    Raises:
        UserError: no such kind, or a size out of its range; "--block-height" stands for the height
            of a block.
    """
    if strategy not in MASK_SIZES:
        raise UserError(f"--inpaint-strategy {strategy}: expected one of {', '.join(MASK_SIZES)}")
    for name, value in sizes.items():
        _check_size(f"--{strategy}-{name}", name, value)
    if strategy == "random":
        if sizes.get("smallest", 0.1) > sizes.get("largest", 0.3):
            raise UserError("--random-smallest is above --random-largest; exchange them")
        return random_blocks(size, generator, **sizes)  # type: ignore[arg-type]
    if strategy == "block":
        return block(size, generator, **sizes)
    return {"grid": grid, "classic": classic}[strategy](size, **sizes)


def _check_size(flag: str, name: str, value: float) -> None:
    if name == "count":
        if value < 1:
            raise UserError(f"{flag} is {value}, expected an integer at least 1")
    elif name in ("top", "left"):
        if not 0 <= value < 1:
            raise UserError(f"{flag} is {value:g}, expected a share from 0 up to, not including, 1")
    elif not 0 < value <= 1:
        raise UserError(f"{flag} is {value:g}, expected a share above 0 and at most 1")


def read_mask(path: Path, size: Size) -> Tensor:
    """A user's mask picture, stretched to a picture's size: white is repainted.

    A pixel of the file is white from grey 128 of 255 on. That is decided before the mask is
    resized, and then every pixel that a white one touches is repainted, so that scaling never
    uncovers what was painted over. Transparency counts as black: white strokes on a transparent
    layer are the mask. Palettes, 16-bit greys and whatever else `load_image` reads are welcome.

    Args:
        path: any picture, of any size; one of other proportions is stretched.
        size: (height, width) of the result.

    Raises:
        UserError: it cannot be read, or nothing in it is white.
    """
    try:
        grey = load_image(path, background="black").convert("L")
    except BadImage as error:
        raise UserError(f"{error}; give a picture that is white where to repaint") from error
    white = torch.from_numpy(np.array(grey)) >= WHITE
    if not white.any():
        raise UserError(
            f"{path} hides nothing: expected white (a grey of {WHITE} of 255 or lighter) "
            "where to repaint; paint some of it white"
        )
    return resize_mask(white, size)


def resize_mask(
    hidden: Tensor, size: Size, box: tuple[float, float, float, float] | None = None
) -> Tensor:
    """Scales a mask so that every pixel which a hidden one touches is hidden.

    Args:
        hidden: (H, W) bool.
        size: (height, width) of the result.
        box: (left, top, right, bottom), the part to scale in pixels of the mask; all unless given.
    """
    left, top, right, bottom = box or (0, 0, hidden.shape[1], hidden.shape[0])
    rows = _any_between(hidden, _bounds(top, bottom, size[0]))
    return _any_between(rows.T, _bounds(left, right, size[1])).T.contiguous()


def _pixels(share: float, whole: int) -> int:
    """A share of a side in whole pixels, at least one."""
    return min(whole, max(1, round(share * whole)))


def _below(limit: int, generator: torch.Generator) -> int:
    return int(torch.randint(limit, (), generator=generator))


def _rectangle(size: Size, place: Sequence[int], sides: Sequence[int]) -> Tensor:
    hidden = torch.zeros(size, dtype=torch.bool)
    hidden[place[0] : place[0] + sides[0], place[1] : place[1] + sides[1]] = True
    return hidden


def _stripes(whole: int, count: int, share: float) -> Tensor:
    """(whole,) bool: `count` stripes, each in the middle of its part of the side."""
    stripes = torch.zeros(whole, dtype=torch.bool)
    edges = [whole * part // count for part in range(count + 1)]
    for start, stop in pairwise(edges):
        side = _pixels(share, stop - start)
        start += (stop - start - side) // 2
        stripes[start : start + side] = True
    return stripes


def _bounds(start: float, stop: float, count: int) -> list[tuple[int, int]]:
    """For each of `count` equal parts of start .. stop: the whole pixels that it touches."""
    step = (stop - start) / count
    edges = [start + step * part for part in range(count + 1)]
    return [(math.floor(low + _TOUCH), math.ceil(high - _TOUCH)) for low, high in pairwise(edges)]


def _any_between(hidden: Tensor, bounds: list[tuple[int, int]]) -> Tensor:
    """(H, W) bool -> (len(bounds), W) bool: whether any row from start to stop is hidden."""
    counts = hidden.cumsum(dim=0, dtype=torch.int32)
    counts = torch.cat([torch.zeros_like(counts[:1]), counts])
    starts, stops = torch.tensor(bounds).T
    return counts[stops] > counts[starts]
