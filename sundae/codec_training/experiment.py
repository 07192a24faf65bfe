"""The training of a codec from a folder of images, as train-vqgan.py runs it."""

from __future__ import annotations

from math import isqrt
from pathlib import Path

import torch
from torch import Tensor, nn

from sundae.codec_training.config import CodecRunConfig, dump_yaml
from sundae.codec_training.dataset import ImageDataset, WholeImages, open_images
from sundae.codec_training.export import export
from sundae.codec_training.module import unwrapped
from sundae.codec_training.perceptual import load_perceptual
from sundae.codec_training.task import CodecTask, build_training
from sundae.common.images import make_grid, stack_on_white, to_pil, to_tensor, within
from sundae.common.precision import autocast
from sundae.training.experiment import Experiment
from sundae.training.trainer import Trainer

_COLUMNS = 8
_GRID_PIXELS = 2**24  # a PNG of some 10 MB; 8 images of 1024x1024 fit with their originals


class CodecExperiment(Experiment):
    """The training of a codec."""

    kind, run_file = "vqgan", "config.yaml"
    cfg: CodecRunConfig
    data: tuple[ImageDataset, ImageDataset | WholeImages]

    def __init__(self, cfg: CodecRunConfig, root: Path) -> None:
        """Open the images below `root`, and the perceptual network.

        Raises:
            UserError: see `open_images`, or the perceptual network is not installed.
        """
        super().__init__(cfg, open_images(root, cfg.training, cfg.arch.factor))
        self.perceptual = load_perceptual(cfg.training.perceptual)

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
        codec = unwrapped(trainer.state.eval_net)
        export(codec, self.cfg, trainer.logbook.run, self.data[1].resolution)

    @torch.no_grad()
    @torch.compiler.set_stance("force_eager")  # which compiles for none of their sizes
    def log_reconstructions(self, trainer: Trainer) -> None:
        """A trainer's hook: held-out images above reconstructions, RUN/reconstructions/step-*.png.

        training.nb_pictures of them, from all classes of a sorted folder, scaled down where they
        would not fit into the file.
        """
        total = len(self.data[1])
        count = min(self.cfg.training.nb_pictures, total)
        side = isqrt(_GRID_PIXELS // (2 * count))
        shown = []
        for number in range(count):
            pair = self._reconstruct(number * total // count, trainer)
            shown.append([to_tensor(within(to_pil(image), side)) for image in pair])
        originals, made = (stack_on_white(images) for images in zip(*shown, strict=True))
        columns = min(_COLUMNS, count)
        grid = make_grid(_alternate_rows(originals, made, columns), columns)
        trainer.logbook.log_image("reconstructions", grid, trainer.step)

    def _reconstruct(self, index: int, trainer: Trainer) -> tuple[Tensor, Tensor]:
        """A held-out image and its reconstruction, (3, H, W) in [0, 1]."""
        codec = unwrapped(trainer.state.eval_net).eval()
        image = self.data[1].__getitems__([index])["images"]
        with autocast(trainer.device, self.cfg.training.arithmetic):
            made = codec.reconstruct(
                image.to(trainer.device) * 2 - 1, torch.Generator(trainer.device)
            )
        return image[0], (made.pixels[0].cpu() + 1) / 2


def _alternate_rows(originals: Tensor, made: Tensor, columns: int) -> Tensor:
    """A row of originals, the row of their reconstructions, the next originals: (2 N, 3, H, W).

    A last row that is not full is filled up with white.
    """
    missing = -len(originals) % columns
    white = originals.new_ones(missing, *originals.shape[1:])
    rows = [torch.cat((part, white)).unflatten(0, (-1, columns)) for part in (originals, made)]
    return torch.stack(rows, 1).flatten(0, 2)
