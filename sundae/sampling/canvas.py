"""Canvases larger than the grid a network was trained on, by overlapping windows."""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor

from sundae.common import memory
from sundae.common.errors import UserError
from sundae.sampling.loop import ClassDenoise

Shape = tuple[int, int]  # (height, width) in tokens

# Area of the largest canvas, in trained grids.
LARGEST_CANVAS = 64


def parse_canvas(text: str, factor: int) -> Shape:
    """Parse a canvas: HxW in tokens ("32x64"), or in pixels ("1024x2048px").

    Args:
        text: as the user wrote it.
        factor: pixels a token along each side.

    Returns:
        (height, width) in tokens.

    Raises:
        UserError: another form, or pixels that are no multiples of the factor.
    """
    match = re.fullmatch(r"([1-9][0-9]*)x([1-9][0-9]*)(px)?", text.strip().lower())
    if match is None:
        raise UserError(
            f"--canvas {text}: expected HEIGHTxWIDTH in tokens, such as 32x64, or in pixels, such "
            "as 1024x2048px"
        )
    height, width = int(match[1]), int(match[2])
    if match[3] is None:
        return height, width
    if height % factor or width % factor:
        near = "x".join(str(max(1, round(side / factor)) * factor) for side in (height, width))
        raise UserError(f"--canvas {text}: pixels must be multiples of {factor}, such as {near}px")
    return height // factor, width // factor


def check_canvas(canvas: Shape, grid: Shape) -> None:
    """Check that the trained grid fits on a canvas, and the canvas into memory.

    Raises:
        UserError: the canvas is smaller in one direction, or more than LARGEST_CANVAS grids.
    """
    if canvas[0] * canvas[1] > LARGEST_CANVAS * grid[0] * grid[1]:
        raise UserError(
            f"a canvas of {canvas[0]}x{canvas[1]} tokens is more than {LARGEST_CANVAS} times the "
            f"{grid[0]}x{grid[1]} that the network was trained on; choose a smaller one (pixels "
            "are written with px, as in 512x1024px)"
        )
    if canvas[0] < grid[0] or canvas[1] < grid[1]:
        raise UserError(
            f"a canvas of {canvas[0]}x{canvas[1]} tokens is smaller than the {grid[0]}x{grid[1]} "
            "that the network was trained on; choose one at least as large in both directions"
        )


def window_starts(side: int, window: int, overlap: int) -> list[int]:
    """Where windows begin along one side: as few as overlap enough, evenly spread.

    Args:
        side: of the canvas, at least that of the window.
        window: side of a window.
        overlap: tokens that neighbours share at least, in 0 .. window-1.
    """
    spare = side - window
    gaps = math.ceil(spare / (window - overlap))
    return [round(spare * gap / gaps) for gap in range(gaps + 1)] if gaps else [0]


def windowed(
    denoise: ClassDenoise, grid: Shape, canvas: Shape, *, at_once: int = memory.WINDOWS
) -> ClassDenoise:
    """A denoiser of a canvas, made from one of the trained grid.

    Windows of the trained grid cover the canvas; neighbours share at least a quarter of each side.
    All are denoised in parallel, and where they overlap their logits are averaged (as arXiv
    2302.08113 does with a diffusion model's predictions), weighted by a token's distance from its
    window's border: a window counts most where it has most context. A canvas of the trained grid's
    size costs nothing extra.

    Args:
        denoise: tokens (batch, grid height * width), classes (batch,) or None -> logits.
        grid: of the network.
        canvas: at least as large in both directions.
        at_once: windows, counted over all samples, that are denoised together at most; one of every
            sample at least.

    Returns:
        tokens (batch, canvas height * width), classes (batch,) or None -> logits (batch, canvas
        height * width, vocab), float32 where anything was averaged.

    Raises:
        UserError: the canvas is too small.
    """
    check_canvas(canvas, grid)
    if canvas == grid:
        return denoise
    rows, columns = (
        window_starts(side, window, overlap=window // 4) for side, window in zip(canvas, grid)
    )
    areas = [
        (slice(top, top + grid[0]), slice(left, left + grid[1])) for top in rows for left in columns
    ]

    def denoise_canvas(tokens: Tensor, classes: Tensor | None) -> Tensor:
        grids = tokens.unflatten(1, canvas)
        weight = _window_weight(grid, tokens.device)
        total = torch.zeros(canvas, device=tokens.device)
        logits: Tensor | None = None
        size = max(1, at_once // len(tokens))
        for start in range(0, len(areas), size):
            some = areas[start : start + size]
            batch = torch.cat([grids[:, down, across].flatten(1) for down, across in some])
            labels = None if classes is None else classes.repeat(len(some))
            parts = denoise(batch, labels).unflatten(1, grid).chunk(len(some))
            if logits is None:
                logits = tokens.new_zeros((*grids.shape, parts[0].shape[-1]), dtype=torch.float32)
            for (down, across), part in zip(some, parts):
                logits[:, down, across].addcmul_(part.float(), weight[..., None])
                total[down, across] += weight
        assert logits is not None
        return logits.div_(total[..., None]).flatten(1, 2)

    return denoise_canvas


def _window_weight(grid: Shape, device: torch.device) -> Tensor:
    """(height, width) float32 above 0: falls linearly from the middle to each border."""
    height, width = (
        torch.minimum(
            torch.arange(1, side + 1, device=device), torch.arange(side, 0, -1, device=device)
        ).float()
        for side in grid
    )
    return height[:, None] * width
