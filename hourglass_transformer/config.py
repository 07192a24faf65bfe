"""The frozen description of a network; everything needed to build it and nothing else."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

# An int is a plain stack of that many layers; a triple is an hourglass (before, valley, after)
# whose valley is again a Depth.
Depth: TypeAlias = "int | tuple[int, Depth, int]"


@dataclass(frozen=True)
class HourglassConfig:
    """Shape of an hourglass transformer (arXiv 2110.13711) on a 2-D grid (arXiv 2206.12351).

    Attributes:
        vocab_size: number of distinct tokens.
        grid: (height, width) of the token grid; each divisible by the cell side at every level.
        dim: width of the residual stream; of the innermost level's where `dims` says more.
        nb_heads: attention heads at that width.
        depth: (before, valley, after) layers; the valley may itself be such a triple. A bare int
            is a plain transformer without shortening.
        shorten_factor: tokens merged into one, a perfect square (4 merges 2x2 cells), per level;
            a single entry serves every level.
        dims: width of every level, outermost first, the last one equal to dim; dim everywhere when
            empty. Heads keep their width, so their number follows the level's.
        window: side in tokens of the windows that attention stays within, for every grid, outermost
            first; 0, or a side that covers the grid, is full attention, which all have when empty.
            The up-sampling attention onto a windowed grid sees the coarse tokens of its window.
        dim_head: width of a head; dim // nb_heads unless given.
        num_classes: 0 for an unconditional network.
        null_class: whether there is one more class, number num_classes, that means "any"; for
            classifier-free guidance (arXiv 2207.12598).
        use_rotary: 2-D axial rotary position in every attention; learned positions otherwise.
        resampling: "linear" (a projection of the whole cell) or "average" (mean down, repeat up).
        attn_resampling: refine what resampling gives by attention across the two levels.
        use_scalenorm: ScaleNorm (arXiv 1910.05895) instead of LayerNorm.
        use_glu: gated feed-forward (SwiGLU, arXiv 2002.05202) at about equal parameters.
        ff_mult: hidden width of the feed-forward in multiples of dim.
        attn_dropout, ff_dropout, emb_dropout: probabilities in [0, 1).
    """

    vocab_size: int
    grid: tuple[int, int]
    dim: int
    nb_heads: int
    depth: Depth
    shorten_factor: tuple[int, ...] = (4,)
    dims: tuple[int, ...] = ()
    window: tuple[int, ...] = ()
    dim_head: int | None = None
    num_classes: int = 0
    null_class: bool = False
    use_rotary: bool = True
    resampling: str = "linear"
    attn_resampling: bool = True
    use_scalenorm: bool = False
    use_glu: bool = False
    ff_mult: float = 4.0
    attn_dropout: float = 0.0
    ff_dropout: float = 0.0
    emb_dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.dim_head is None and self.dim % self.nb_heads:
            raise ValueError(f"dim ({self.dim}) must be a multiple of nb_heads ({self.nb_heads})")
        if self.use_rotary and self.head_width % 4:
            raise ValueError(
                f"rotary position needs a head width divisible by 4, got {self.head_width}"
            )
        if self.resampling not in ("linear", "average"):
            raise ValueError(f"resampling must be 'linear' or 'average', got {self.resampling!r}")
        if len(self.shorten_factor) not in (1, self.nb_levels):
            raise ValueError(
                f"shorten_factor has {len(self.shorten_factor)} entries for {self.nb_levels} levels"
            )
        self._check_dims()
        for factor in self.shorten_factor:
            if factor < 4 or math.isqrt(factor) ** 2 != factor:
                raise ValueError(f"shorten_factor must be a perfect square such as 4, got {factor}")
        for level in range(self.nb_levels):
            height, width = self.level_grid(level)
            side = self.cell_side(level)
            if height % side or width % side:
                raise ValueError(
                    f"a {height}x{width} grid does not divide into {side}x{side} cells"
                )
        self._check_windows()

    def _check_dims(self) -> None:
        if not self.dims:
            return
        if len(self.dims) != self.nb_levels + 1:
            raise ValueError(
                f"dims has {len(self.dims)} entries; the depth needs {self.nb_levels + 1}, one for "
                "each grid from the outermost to the valley's"
            )
        if self.dims[-1] != self.dim:
            raise ValueError(f"dims must end with dim ({self.dim}), the valley's width")
        for width in self.dims:
            if width < 1 or self.nb_heads * width % self.dim:
                raise ValueError(
                    f"dims: {width} has no whole number of heads when {self.dim} has "
                    f"{self.nb_heads}"
                )
        if self.resampling == "average" and len(set(self.dims)) > 1:
            raise ValueError("resampling 'average' keeps the width; dims needs 'linear'")

    def _check_windows(self) -> None:
        if self.window and len(self.window) != self.nb_levels + 1:
            raise ValueError(
                f"window has {len(self.window)} entries; the depth needs {self.nb_levels + 1}, one "
                "for each grid from the outermost to the valley's"
            )
        for level, side in enumerate(self.window):
            shape, (height, width) = self.level_window(level), self.level_grid(level)
            if side < 0 or (shape and side % 2):
                raise ValueError(f"window: expected an even side or 0, got {side}")
            if shape is None:
                continue
            if height % shape[0] or width % shape[1]:
                raise ValueError(
                    f"window: a side of {side} does not divide a {height}x{width} grid"
                )
            if level == self.nb_levels or not self.attn_resampling:
                continue
            cell = self.cell_side(level)
            if shape[0] % cell or shape[1] % cell or shape[0] * shape[1] < 4 * cell**2:
                raise ValueError(
                    f"window: a side of {side} must hold at least 2x2 whole cells of {cell}x{cell}"
                )

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.dim_head or self.dim // self.nb_heads

    @property
    def nb_levels(self) -> int:
        """How many times the grid is shortened."""
        levels, depth = 0, self.depth
        while not isinstance(depth, int):
            levels, depth = levels + 1, depth[1]
        return levels

    @property
    def nb_layers(self) -> int:
        """Residual layers on the longest path, resampling layers included."""
        layers, depth = 0, self.depth
        while not isinstance(depth, int):
            layers, depth = layers + depth[0] + depth[2] + 2, depth[1]
        return layers + depth

    def level_dim(self, level: int) -> int:
        """Width of the residual stream after `level` shortenings."""
        return self.dims[level] if self.dims else self.dim

    def level_heads(self, level: int) -> int:
        """Attention heads of the layers after `level` shortenings."""
        return self.nb_heads * self.level_dim(level) // self.dim

    def level_window(self, level: int) -> tuple[int, int] | None:
        """(height, width) of the windows after `level` shortenings; None for full attention."""
        side, (height, width) = (self.window[level] if self.window else 0), self.level_grid(level)
        if side <= 0 or side >= max(height, width):
            return None
        return min(side, height), min(side, width)

    def cell_side(self, level: int) -> int:
        """Side of the square cells that `level` merges into single tokens."""
        return math.isqrt(self.shorten_factor[min(level, len(self.shorten_factor) - 1)])

    def level_grid(self, level: int) -> tuple[int, int]:
        """(height, width) of the grid after `level` shortenings."""
        height, width = self.grid
        for below in range(level):
            side = self.cell_side(below)
            height, width = height // side, width // side
        return height, width
