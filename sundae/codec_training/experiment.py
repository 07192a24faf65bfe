"""The training of a codec from a folder of images, as train-vqgan.py runs it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from sundae.codec_training.config import CodecRunConfig, dump_yaml
from sundae.codec_training.dataset import ImageDataset, open_images
from sundae.codec_training.module import unwrapped
from sundae.codec_training.perceptual import load_perceptual
from sundae.codec_training.task import CodecTask, build_training
from sundae.training.experiment import Built, Experiment


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

    def build(self, device: torch.device, accumulate: int) -> Built:
        net = build_training(self.cfg, accumulate)
        task = CodecTask(self.cfg, self.perceptual.to(device), accumulate)
        return Built(net, task, [*net.compilable(), self.perceptual])

    def dump(self) -> str:
        return dump_yaml(self.cfg)

    def describe(self, net: nn.Module) -> str:
        parameters = sum(p.numel() for p in unwrapped(net).vqgan.parameters())
        train, held_out = map(len, self.data)
        return (
            f"{parameters:,} parameters, perceptual loss {self.cfg.training.perceptual}, "
            f"{train:,} training and {held_out:,} held-out images"
        )
