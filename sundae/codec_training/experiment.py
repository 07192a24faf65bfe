"""The training of a codec from a folder of images, as train-vqgan.py runs it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from sundae.codec_training.config import CodecRunConfig, dump_yaml
from sundae.codec_training.dataset import ImageDataset, open_images
from sundae.codec_training.export import export
from sundae.codec_training.module import unwrapped
from sundae.codec_training.perceptual import load_perceptual
from sundae.codec_training.task import CodecTask, build_training
from sundae.common.images import make_grid
from sundae.common.precision import autocast
from sundae.training.experiment import Experiment
from sundae.training.trainer import Trainer

_COLUMNS = 8


class CodecExperiment(Experiment):
    """The training of a codec."""

    kind, run_file = "vqgan", "config.yaml"
    cfg: CodecRunConfig
    data: tuple[ImageDataset, ImageDataset]

    def __init__(self, cfg: CodecRunConfig, root: Path) -> None:
        """Open the images below `root`, and the perceptual network.

        Raises:
            UserError: there are no images, or the perceptual network is not installed.
        """
        training = cfg.training
        data = open_images(
            root,
            size=training.size,
            load_size=training.load_size,
            eval_fraction=training.eval_fraction,
            cache=training.cache,
        )
        super().__init__(cfg, data)
        self.perceptual = load_perceptual(training.perceptual)
        self._shown = data[1].__getitems__(range(min(training.nb_pictures, len(data[1]))))["images"]

    def build(self, device: torch.device, accumulate: int) -> tuple[nn.Module, CodecTask]:
        task = CodecTask(self.cfg, self.perceptual.to(device), accumulate)
        return build_training(self.cfg, accumulate), task

    def compilable(self, net: nn.Module) -> list[nn.Module]:
        return [*unwrapped(net).compilable(), self.perceptual]

    def dump(self) -> str:
        return dump_yaml(self.cfg)

    def describe(self, net: nn.Module) -> str:
        parameters = sum(p.numel() for p in unwrapped(net).vqgan.parameters())
        train, held_out = map(len, self.data)
        return (
            f"{parameters:,} parameters, perceptual loss {self.cfg.training.perceptual}, "
            f"{train:,} training and {held_out:,} held-out images"
        )

    def export(self, trainer: Trainer) -> None:
        """A trainer's hook: write the codec, averaged if it is, into the run folder."""
        assert trainer.logbook.run is not None
        export(unwrapped(trainer.state.eval_net), self.cfg, trainer.logbook.run)

    @torch.no_grad()
    def log_reconstructions(self, trainer: Trainer) -> None:
        """A trainer's hook: held-out images above reconstructions, RUN/reconstructions/step-*.png.

        At most training.nb_pictures are shown, the first.
        """
        codec = unwrapped(trainer.state.eval_net).eval()
        generator, made = torch.Generator(trainer.device), []
        for images in self._shown.split(trainer.batches.mini_batch_size):
            with autocast(trainer.device, self.cfg.training.arithmetic):
                result = codec.reconstruct(images.to(trainer.device) * 2 - 1, generator)
            made.append((result.pixels.cpu() + 1) / 2)
        grid = make_grid(_alternate_rows(self._shown, torch.cat(made)), columns=_COLUMNS)
        trainer.logbook.log_image("reconstructions", grid, trainer.step)


def _alternate_rows(originals: Tensor, made: Tensor) -> Tensor:
    """A row of originals, the row of their reconstructions, the next originals: (2 N, 3, H, W).

    A last row that is not full is filled up with white.
    """
    missing = -len(originals) % _COLUMNS
    white = originals.new_ones(missing, *originals.shape[1:])
    rows = [torch.cat((part, white)).unflatten(0, (-1, _COLUMNS)) for part in (originals, made)]
    return torch.stack(rows, 1).flatten(0, 2)
