"""Reconstruction grids during training."""

from __future__ import annotations

import torch
from torch import Tensor

from sundae.codec_training.config import CodecRunConfig
from sundae.codec_training.dataset import ImageDataset
from sundae.codec_training.module import unwrapped
from sundae.common.images import make_grid
from sundae.common.precision import autocast
from sundae.training.trainer import Trainer

_COLUMNS = 8


class ReconstructionGrids:
    """A trainer's hook: images above their reconstructions, RUN/reconstructions/step-*.png."""

    def __init__(self, cfg: CodecRunConfig, data: ImageDataset) -> None:
        """data: held-out images; the first of them, at most training.nb_pictures, are shown."""
        self.precision = cfg.training.arithmetic
        self.images = data.__getitems__(range(min(cfg.training.nb_pictures, len(data))))["images"]

    @torch.no_grad()
    def __call__(self, trainer: Trainer) -> None:
        """Reconstruct and log a grid."""
        codec = unwrapped(trainer.state.eval_net).eval()
        generator, made = torch.Generator(trainer.device), []
        for images in self.images.split(trainer.batches.mini_batch_size):
            with autocast(trainer.device, self.precision):
                result = codec.reconstruct(images.to(trainer.device) * 2 - 1, generator)
            made.append((result.pixels.cpu() + 1) / 2)
        grid = make_grid(_alternate_rows(self.images, torch.cat(made)), columns=_COLUMNS)
        trainer.logbook.log_image("reconstructions", grid, trainer.step)


def _alternate_rows(originals: Tensor, made: Tensor) -> Tensor:
    """A row of originals, the row of their reconstructions, the next originals: (2 N, 3, H, W).

    A last row that is not full is filled up with white.
    """
    missing = -len(originals) % _COLUMNS
    white = originals.new_ones(missing, *originals.shape[1:])
    rows = [torch.cat((part, white)).unflatten(0, (-1, _COLUMNS)) for part in (originals, made)]
    return torch.stack(rows, 1).flatten(0, 2)
