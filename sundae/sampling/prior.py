"""A trained network, ready to sample."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from copy import copy
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hourglass_transformer import HourglassTransformer
from sundae.common import memory
from sundae.common.compiling import Compiled
from sundae.common.precision import cast_linears_to_bf16, has_bf16
from sundae.config.run_file import RunConfig
from sundae.config.sections import SamplingConfig
from sundae.prior.categorical import draw_seeds
from sundae.sampling.canvas import Shape, check_canvas, windowed
from sundae.sampling.loop import Refinement, sample

if TYPE_CHECKING:
    pass


class Prior:
    """A trained network, ready to sample: rows of seeds and classes in, token grids out."""

    def __init__(
        self,
        net: nn.Module,
        cfg: RunConfig,
        device: torch.device,
        *,
        use_amp: bool = True,
        canvas: Shape | None = None,
        owns_net: bool = False,
        compiled: bool = False,
        quiet: bool = False,
    ) -> None:
        """Make a network ready to sample.

        Args:
            net: (tokens, classes) -> logits, on `device` already.
            cfg: of the run that trained it.
            use_amp: bfloat16 where the device has it.
            canvas: (height, width) in tokens of what is sampled, at least the grid of the run file
                in both directions; that grid unless given. See `sundae.sampling.canvas.windowed`.
            owns_net: nobody else needs the network, so that its linear maps may become bfloat16
                where they are used as such.
            compiled: compile the steps, as soon as there is one; see `Compiled`.
            quiet: do not say why they cannot be compiled.

        Raises:
            UserError: the canvas is too small.
        """
        self.net, self.cfg, self.device = net.eval(), cfg, device
        self.bf16 = use_amp and has_bf16(device)
        self.trained_grid = cfg.grid_shape
        self.canvas = canvas or cfg.grid_shape
        check_canvas(self.canvas, self.trained_grid)
        if owns_net and self.bf16:
            cast_linears_to_bf16(net)
        self.compiled = Compiled(device, quiet=quiet) if compiled else None

    def on_canvas(self, canvas: Shape) -> Prior:
        """The same network on a canvas of (height, width) tokens; UserError for one too small."""
        check_canvas(canvas, self.trained_grid)
        other = copy(self)
        other.canvas = canvas
        return other

    def rows_at_once(self, wanted: int, tokens: int | None = None) -> int:
        """A batch size, at most `wanted`, whose logits stay within a few gigabytes.

        tokens: of a sample, those of the canvas unless given.
        """
        logits = (tokens or prod(self.canvas)) * self.cfg.data.vocab_size
        return max(1, min(wanted, memory.LOGITS // logits))

    def refine(
        self,
        seeds: Tensor,
        classes: Tensor | None,
        schedule: SamplingConfig,
        *,
        tokens: Tensor | None = None,
        frozen: Tensor | None = None,
    ) -> Iterator[Refinement]:
        """Sample one batch, step by step; see `sundae.sampling.loop.sample`.

        Args:
            seeds: (batch,) int64, any device, as all of the following.
            classes: (batch,) int64 for a conditional network, else None.
            schedule: how to refine; guidance other than 1 needs a network with a null class.
            tokens: (batch, length) int64 to start from; uniform noise unless given.
            frozen: (batch, length) bool: tokens that keep the value they start with.
        """
        # Windows overlap, so on a larger canvas a token's logits come from several of them.
        at_positions = (
            isinstance(self.net, HourglassTransformer) and self.canvas == self.trained_grid
        )
        return sample(
            windowed(self._denoise, self.trained_grid, self.canvas),
            seeds=seeds.to(self.device),
            length=prod(self.canvas),
            vocab_size=self.cfg.data.vocab_size,
            schedule=schedule,
            grid=self.canvas,
            null_class=self.cfg.net.null_class,
            denoise_at=self._denoise if at_positions else None,
            classes=self._moved(classes),
            tokens=self._moved(tokens),
            frozen=self._moved(frozen),
            compiled=self.compiled,
        )

    def _moved(self, value: Tensor | None) -> Tensor | None:
        return None if value is None else value.to(self.device)

    def _denoise(self, tokens: Tensor, classes: Tensor | None, *positions: Tensor) -> Tensor:
        """Logits of all positions, or of the given ones (batch, count)."""
        with torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext():
            logits: Tensor = self.net(tokens, classes, *positions)
        return logits

    def grids(self, tokens: Tensor) -> Tensor:
        """(batch, length) -> (batch, height, width), as a codec takes them."""
        return tokens.unflatten(1, self.canvas)


def sample_seeds(seed: int, count: int, offset: int = 0) -> Tensor:
    """(count,) int64: the seeds of samples offset .. offset+count-1 of a run with this seed.

    Sample i has the same seed however many are asked for and wherever the asking starts.
    """
    return draw_seeds(offset + count, torch.Generator().manual_seed(seed))[offset:]


def even_classes(num_classes: int, count: int, offset: int = 0) -> Tensor:
    """(count,) int64: sample i of a run has class i modulo the number of classes."""
    return torch.arange(offset, offset + count) % num_classes
