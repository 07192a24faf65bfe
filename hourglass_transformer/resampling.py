"""From a token grid to a shorter one and back, by cells of side x side neighbouring tokens."""

from __future__ import annotations

from einops import rearrange, reduce, repeat
from torch import Tensor, nn

from .config import Level, NetConfig
from .layers import Layer, Rotation, at_positions, axial_rotation, grid_positions


def to_cells(x: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """(batch, h*w, dim) in raster order -> (batch, cells, side*side, dim), both in raster order."""
    return rearrange(
        x, "b (h i w j) d -> b (h w) (i j) d", h=grid[0] // side, w=grid[1] // side, i=side, j=side
    )


def from_cells(cells: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """The inverse of `to_cells`: (batch, cells, side*side, dim) -> (batch, h*w, dim)."""
    height = grid[0] // side
    return rearrange(cells, "b (h w) (i j) d -> b (h i w j) d", h=height, i=side, j=side)


class _Resample(nn.Module):
    """What both directions share: the cells, and rotary tables that put both levels on one ruler.

    The coarse token of a cell stands at the centre of the cell, so attention across the levels sees
    true distances.
    """

    def __init__(self, cfg: NetConfig, fine: Level, level: Level, context: Level) -> None:
        """Args:
        fine: the finer one of the two.
        level: the one of the result, whose tokens attend to those of the context.
        context: the other one.
        """
        super().__init__()
        self.grid, self.side, self.width = fine.grid, fine.cell, cfg.head_width
        self.layer = Layer(cfg, level, context_level=context) if cfg.attn_resampling else None

    def rotations(self) -> tuple[Rotation, Rotation]:
        """Tables of the (fine, coarse) tokens, raster order."""
        coarse = (self.grid[0] // self.side, self.grid[1] // self.side)
        return (
            axial_rotation(*grid_positions(self.grid), self.grid, self.width),
            axial_rotation(*grid_positions(coarse, self.side), self.grid, self.width),
        )


class Downsample(_Resample):
    """Shorten: one token a cell, which then attends to the tokens of its cell."""

    def __init__(self, cfg: NetConfig, fine: Level, coarse: Level) -> None:
        super().__init__(cfg, fine, level=coarse, context=fine)
        merged, dim = self.side**2 * fine.dim, coarse.dim
        self.project = nn.Linear(merged, dim) if cfg.resampling == "linear" else None

    def forward(self, fine: Tensor, rotations: tuple[Rotation, Rotation] | None) -> Tensor:
        """(batch, h*w, dim) -> (batch, h*w/side^2, dim of the next level)"""
        cells = to_cells(fine, self.grid, self.side)
        if self.project is not None:
            coarse = self.project(rearrange(cells, "b n c d -> b n (c d)"))
        else:
            coarse = reduce(cells, "b n c d -> b n d", "mean")
        return coarse if self.layer is None else self._attend(coarse, cells, rotations)

    def _attend(
        self, coarse: Tensor, cells: Tensor, rotations: tuple[Rotation, Rotation] | None
    ) -> Tensor:
        assert self.layer is not None
        batch = len(coarse)
        q_rotation = k_rotation = None
        if rotations is not None:
            # Only differences of positions count, and they are the same in every cell: the tables
            # of the first cell serve all.
            (fine_cos, fine_sin), (coarse_cos, coarse_sin) = rotations
            q_rotation = (coarse_cos[:1], coarse_sin[:1])
            k_rotation = (self._first_cell(fine_cos), self._first_cell(fine_sin))
        query = rearrange(coarse, "b n d -> (b n) 1 d")
        context = rearrange(cells, "b n c d -> (b n) c d")
        attended = self.layer(query, context, q_rotation, k_rotation)
        return rearrange(attended, "(b n) 1 d -> b n d", b=batch)

    def _first_cell(self, table: Tensor) -> Tensor:
        """(h*w, width) -> (side*side, width), without a list of numbers for a GPU to wait for."""
        return table.unflatten(0, self.grid)[: self.side, : self.side].flatten(0, 1)


class Upsample(_Resample):
    """Lengthen: every token of a cell from the cell's one; all then attend to the coarse grid.

    Where the fine grid has windows, each attends to the coarse tokens of its window only.

    A cell's own coarse token alone would be a single key, whose softmax is constant: queries and
    keys would never learn.
    """

    def __init__(self, cfg: NetConfig, fine: Level, coarse: Level) -> None:
        super().__init__(cfg, fine, level=fine, context=coarse)
        merged, dim = self.side**2 * fine.dim, coarse.dim
        self.project = nn.Linear(dim, merged) if cfg.resampling == "linear" else None

    def forward(
        self,
        coarse: Tensor,
        residual: Tensor,
        rotations: tuple[Rotation, Rotation] | None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """coarse: (batch, h*w/side^2, dim of the next level), residual: (batch, h*w, dim) -> shape
        of residual, or (batch, count, dim) at positions (batch, count).
        """
        count = self.side**2
        if self.project is not None:
            cells = rearrange(self.project(coarse), "b n (c d) -> b n c d", c=count)
        else:
            cells = repeat(coarse, "b n d -> b n c d", c=count)
        fine = residual + from_cells(cells, self.grid, self.side)
        if self.layer is None:
            return at_positions(fine, positions)
        fine_rotation, coarse_rotation = rotations if rotations is not None else (None, None)
        return self.layer(fine, coarse, fine_rotation, coarse_rotation, positions)
