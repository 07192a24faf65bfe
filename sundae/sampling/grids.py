"""Sample grids during training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sundae.codec.interface import ChunkedCodec, Codec
from sundae.common.files import make_folder
from sundae.common.images import make_grid, save_image
from sundae.config.run_file import RunConfig

if TYPE_CHECKING:
    from sundae.training.trainer import Trainer
from sundae.sampling.prior import Prior, even_classes, sample_seeds
from sundae.sampling.strategies import schedule_of


class SampleGrids:
    """A trainer's hook: draws the run file's number of samples and saves them as one picture."""

    def __init__(self, cfg: RunConfig, codec: Codec) -> None:
        self.cfg, self.codec = cfg, ChunkedCodec(codec)

    def __call__(self, trainer: Trainer) -> None:
        """Write RUN/samples/step-NNNNNNN.png; the seeds are the same every time."""
        if not trainer.accelerator.is_main_process:
            return
        # Without an average the network is the compiled one, and every step has another shape here.
        with torch.compiler.set_stance("force_eager"):
            grid = make_grid(self._drawn(trainer))
        if trainer.run is not None:
            folder = make_folder(trainer.run / "samples")
            save_image(grid, folder / f"step-{trainer.step:07d}.png")
        trainer.logbook.log_picture("samples", grid, trainer.step)

    def _drawn(self, trainer: Trainer) -> Tensor:
        """(nb_samples, 3, H, W) float32 in [0, 1], on the CPU."""
        prior = Prior(
            trainer.eval_net,
            self.cfg,
            trainer.device,
            use_amp=self.cfg.trainer.arithmetic != "fp32",
        )
        count = self.cfg.sampling.nb_samples
        classes = (
            even_classes(self.cfg.net.num_classes, count) if self.cfg.net.conditional else None
        )
        seeds = sample_seeds(trainer.seed, count)
        batch = prior.rows_at_once(trainer.mini_batch_size)
        pictures = []
        for start in range(0, count, batch):
            rows = slice(start, start + batch)
            *_, last = prior.refine(
                seeds[rows],
                None if classes is None else classes[rows],
                schedule_of(self.cfg.sampling),
            )
            pictures.append(self.codec.decode(prior.grids(last.tokens)).cpu())
        return torch.cat(pictures)
