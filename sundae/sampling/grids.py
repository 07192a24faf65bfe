"""Sample grids during training."""

from __future__ import annotations

import torch

from sundae.codec.interface import Codec
from sundae.common.images import make_grid
from sundae.config.run_file import RunConfig
from sundae.sampling.sampler import BaseSampler
from sundae.training.trainer import Trainer


class SampleGrids:
    """A trainer's hook: RUN/samples/step-NNNNNNN.png, with sampling.nb_samples samples."""

    def __init__(self, cfg: RunConfig, codec: Codec) -> None:
        self.cfg, self.codec = cfg, codec

    def __call__(self, trainer: Trainer) -> None:
        """Sample and log a grid; the seeds are the same every time."""
        sampler = BaseSampler(
            trainer.state.eval_net,
            self.codec,
            self.cfg,
            device=trainer.device,
            precision=self.cfg.trainer.arithmetic,
        )
        # Without an average the network is the compiled one, and every step has another shape here.
        with torch.compiler.set_stance("force_eager"):
            states = sampler.refine(
                seed=trainer.info.seed, batch_size=trainer.batches.mini_batch_size
            )
            images = torch.cat([state.pixels() for state in states if state.is_final])
        trainer.logbook.log_image("samples", make_grid(images), trainer.step)
