"""Tokens (and a class) to logits. Knows nothing of corruption, unrolling or sampling."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .config import Level, NetConfig
from .layers import Layer, Rotation, axial_rotation, grid_positions, make_norm
from .resampling import Downsample, Upsample
from .windows import Windows


class RotaryTables(nn.Module):
    """Holds (cos, sin) pairs as buffers that follow the module but are never saved."""

    def __init__(self, rotations: list[Rotation]) -> None:
        super().__init__()
        self.assign(rotations)

    def assign(self, rotations: list[Rotation]) -> None:
        """Store the tables, float32."""
        for index, (cos, sin) in enumerate(rotations):
            self.register_buffer(f"cos_{index}", cos, persistent=False)
            self.register_buffer(f"sin_{index}", sin, persistent=False)

    def __getitem__(self, index: int) -> Rotation:
        return self.get_buffer(f"cos_{index}"), self.get_buffer(f"sin_{index}")


class Stage(nn.Module):
    """A stack of layers on one grid, or an hourglass whose valley is again a stage.

    Where the grid has windows, every second layer displaces them, so that tokens on the two sides
    of a cut meet in the next layer; the up-sampling layer counts as one that does not.
    """

    gradient_checkpointing = False

    def __init__(self, cfg: NetConfig, level: Level, *coarser: Level) -> None:
        super().__init__()
        before, after = level.layers
        self.grid, self.head_width = level.grid, cfg.head_width
        self.before = nn.ModuleList(Layer(cfg, level, shifted=i % 2 == 1) for i in range(before))
        self.after = nn.ModuleList(Layer(cfg, level, shifted=i % 2 == 0) for i in range(after))
        self.down: Downsample | None = None
        if coarser:
            self.down = Downsample(cfg, level, coarser[0])
            self.up = Upsample(cfg, level, coarser[0])
            self.valley = Stage(cfg, *coarser)
        self.tables = RotaryTables(self._rotations()) if cfg.use_rotary else None

    def _rotations(self) -> list[Rotation]:
        """Tables of this grid's own layers, then, across the levels, of fine and coarse tokens."""
        own = axial_rotation(*grid_positions(self.grid), self.grid, self.head_width)
        return [own, *(self.down.rotations() if self.down is not None else ())]

    def reset(self) -> None:
        """Compute the rotary tables anew, after the module was built on the meta device."""
        if self.tables is not None:
            self.tables.assign(self._rotations())

    def _run(self, part: nn.Module, *inputs: Any) -> Tensor:
        """A layer; with gradient checkpointing it saves only its inputs for the backward pass."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(part, *inputs, use_reentrant=False)
        return part(*inputs)

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """(batch, h*w, dim) -> the same shape, or (batch, count, dim) at positions (batch, count).

        The last layer is then computed for these only; no other token needs it.
        """
        own = self.tables[0] if self.tables is not None else None
        last = [*self.before, *([] if self.down is None else [self.up]), *self.after][-1]

        def positions_of(part: nn.Module) -> Tensor | None:
            return positions if part is last else None

        for layer in self.before:
            x = self._run(layer, x, None, own, own, positions_of(layer))
        if self.down is not None:
            across = (self.tables[1], self.tables[2]) if self.tables is not None else None
            coarse = self.valley(self._run(self.down, x, across))
            x = self._run(self.up, coarse, x, across, positions_of(self.up))
        for layer in self.after:
            x = self._run(layer, x, None, own, own, positions_of(layer))
        return x


class HourglassTransformer(nn.Module):
    """Denoises a token grid: for every position, logits over the whole codebook."""

    def __init__(self, cfg: NetConfig, *, vocab_size: int, grid: tuple[int, int]) -> None:
        """Args:
            cfg: [net] of a run file.
            vocab_size: number of distinct tokens.
            grid: (height, width) in tokens.

        Raises:
            ConfigError: a grid that the configuration does not fit.
        """
        super().__init__()
        cfg.check_grid(grid)
        self.cfg, self.vocab_size, self.grid = cfg, vocab_size, grid
        levels = cfg.levels(grid)
        length, dim = grid[0] * grid[1], levels[0].dim
        self.token_embedding = nn.Embedding(vocab_size, dim)
        classes = cfg.num_classes + (cfg.null_class is not None)
        self.class_embedding = nn.Embedding(classes, dim) if cfg.num_classes else None
        self.position = None if cfg.use_rotary else nn.Parameter(torch.empty(length, dim))
        self.dropout = nn.Dropout(cfg.emb_dropout)
        self.stage = Stage(cfg, *levels)
        self.norm = make_norm(cfg, levels[0])
        self.to_logits = nn.Linear(dim, vocab_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Variance-preserving linear maps; branches that add to the residual stream start small
        enough that the stream's variance stays of order one whatever the depth; the last map starts
        at zero, so that the first loss is exactly log(vocab_size).
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.5)
        for branch_end in self._branch_ends():
            branch_end.weight.data.mul_(1 / math.sqrt(2 * self.cfg.num_layers))
        if self.position is not None:
            nn.init.normal_(self.position, std=0.5)
        nn.init.zeros_(self.to_logits.weight)

    def _branch_ends(self) -> Iterator[nn.Linear]:
        """The last map of every branch that adds to the residual stream."""
        for module in self.modules():
            if isinstance(module, Layer):
                yield from (module.attn.to_out, module.ff.down)
            elif isinstance(module, Upsample) and module.project is not None:
                yield module.project

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Recompute each layer in the backward pass instead of keeping its activations."""
        for module in self.modules():
            if isinstance(module, Stage):
                module.gradient_checkpointing = enabled

    def reset_tables(self) -> None:
        """Compute what is neither saved nor learned, after building on the meta device."""
        for module in self.modules():
            if isinstance(module, (Stage, Windows)):
                module.reset()

    def forward(
        self,
        tokens: Tensor,
        classes: Tensor | None = None,
        positions: Tensor | None = None,
        *,
        head: bool = True,
    ) -> Tensor:
        """Args:
            tokens: (batch, height*width) int64 in [0, vocab_size), raster order.
            classes: (batch,) int64 in [0, num_classes), or num_classes, the null class, where
                it is learned; required by a conditional network only.
            positions: (batch, count) int64 in [0, height*width): logits for these only, which saves
                most of a large vocabulary's and of the last layer's cost; all unless given.
            head: apply `to_logits`; without it the result is what that map takes, so that a caller
                can do so for some rows at a time.

        Returns:
            logits: (batch, height*width, vocab_size), or (batch, count, vocab_size) at positions;
            without the head, dim instead of vocab_size.

        Raises:
            ValueError: classes are missing, or given to an unconditional network.
        """
        if (classes is None) != (self.class_embedding is None):
            verb = "needs" if self.class_embedding is not None else "takes no"
            raise ValueError(f"this network {verb} classes: num_classes is {self.cfg.num_classes}")
        x = self.token_embedding(tokens)
        if self.class_embedding is not None:
            x = x + self.class_embedding(classes)[:, None]
        if self.position is not None:
            x = x + self.position
        x = self.norm(self.stage(self.dropout(x), positions))
        return self.to_logits(x) if head else x
