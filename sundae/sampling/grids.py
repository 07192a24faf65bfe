"""Sample grids during training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sundae.codec.interface import Codec
from sundae.common.files import make_folder
from sundae.common.images import make_grid, save_image
from sundae.config.run_file import RunConfig
from sundae.sampling.sampler import BaseSampler

if TYPE_CHECKING:
    from sundae.training.trainer import Trainer


class SampleGrids:
    """A trainer's hook: draws the run file's number of samples and saves them as one image."""

    def __init__(self, cfg: RunConfig, codec: Codec) -> None:
        self.cfg, self.codec = cfg, codec

    def __call__(self, trainer: Trainer) -> None:
        """Write RUN/samples/step-NNNNNNN.png; the seeds are the same every time."""
        if not trainer.accelerator.is_main_process:
            return
        sampler = BaseSampler(
            trainer.eval_net,
            self.codec,
            self.cfg,
            device=trainer.device,
            precision=self.cfg.trainer.arithmetic,
        )
        # Without an average the network is the compiled one, and every step has another shape here.
        with torch.compiler.set_stance("force_eager"):
            states = sampler.refine(seed=trainer.seed, batch_size=trainer.mini_batch_size)
            grid = make_grid(torch.cat([state.pixels() for state in states if state.is_final]))
        if trainer.run is not None:
            folder = make_folder(trainer.run / "samples")
            save_image(grid, folder / f"step-{trainer.step:07d}.png")
        trainer.logbook.log_picture("samples", grid, trainer.step)
