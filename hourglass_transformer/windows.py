"""Attention within windows of a grid: which tokens meet, and how they are brought together."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from .config import Level


@dataclass(frozen=True)
class Partition:
    """A grid cut into windows, from its corner or displaced.

    Attributes:
        grid, window: (height, width) in tokens; windows divide the grid.
        shift: (rows, columns) by which the cuts move down and to the right. What sticks out at the
            end of an axis fills the window that the displacement leaves at its start.
    """

    grid: tuple[int, int]
    window: tuple[int, int]
    shift: tuple[int, int] = (0, 0)

    @property
    def _sides(self) -> dict[str, int]:
        (height, width), (i, j) = self.grid, self.window
        return {"h": height // i, "w": width // j, "i": i, "j": j}

    def split(self, x: Tensor) -> Tensor:
        """(batch, heads, h*w, width), raster order -> (batch * windows, heads, tokens, width)"""
        if any(self.shift):
            rows, columns = self.shift
            x = x.unflatten(2, self.grid).roll((-rows, -columns), dims=(2, 3)).flatten(2, 3)
        return rearrange(x, "b n (h i w j) d -> (b h w) n (i j) d", **self._sides)

    def join(self, x: Tensor) -> Tensor:
        """The inverse of `split`."""
        x = rearrange(x, "(b h w) n (i j) d -> b n (h i) (w j) d", **self._sides)
        return (x.roll(self.shift, dims=(2, 3)) if any(self.shift) else x).flatten(2, 3)

    def mask(self) -> Tensor | None:
        """(windows, 1, tokens, tokens) bool, true where two tokens of a window are neighbours and
        not from opposite ends of the grid; None where no window holds such tokens.
        """
        if not any(self.shift):
            return None
        rows, columns = (
            torch.arange(size) < shift for size, shift in zip(self.grid, self.shift, strict=True)
        )
        end = (2 * rows[:, None] + columns).flatten()
        end = self.split(end[None, None, :, None])[..., 0]
        return end[..., :, None] == end[..., None, :]


class Windows(nn.Module):
    """Restricts attention to windows. It has no parameters and no saved state."""

    mask: Tensor | None

    def __init__(self, queries: Partition, keys: Partition) -> None:
        """Window number n of the queries attends to window number n of the keys. Only partitions of
        one and the same grid may be displaced.
        """
        super().__init__()
        self.queries, self.keys = queries, keys
        self.reset()

    @classmethod
    def of(cls, level: Level, context: Level | None, shifted: bool) -> Windows | None:
        """Of the attention of a level to itself or to a coarser one; None where it sees everything.

        A displaced partition moves by half a window along every axis that has several windows.
        """
        window, grid, side = level.window, level.grid, level.cell
        if window is None or (context is not None and context.index < level.index):
            return None
        if context is None:
            rows, columns = (
                part // 2 if shifted and size > part else 0 for size, part in zip(grid, window)
            )
            own = Partition(grid, window, (rows, columns))
            return cls(own, own)
        coarse = Partition(context.grid, (window[0] // side, window[1] // side))
        return cls(Partition(grid, window), coarse)

    def reset(self) -> None:
        """Compute the mask, anew after the module was built on the meta device."""
        self.register_buffer("mask", self.queries.mask(), persistent=False)

    def split(
        self, q: Tensor, k: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """(batch, heads, tokens, width) each -> the same by window, (batch * windows, ...), and the
        mask of attention: (batch * windows, 1, queries, keys) bool or None.
        """
        mask = None if self.mask is None else self.mask.repeat(len(q), 1, 1, 1)
        return self.queries.split(q), self.keys.split(k), self.keys.split(v), mask

    def join(self, attended: Tensor) -> Tensor:
        """(batch * windows, heads, tokens, width) -> (batch, heads, h*w, width)"""
        return self.queries.join(attended)
