"""A trained codec as files: this project's, and taming-transformers' layout."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
import yaml

from sundae.codec.vqgan.codec import Rules, VQGANCodec
from sundae.codec.vqgan.convert import save_codec
from sundae.codec_training.config import CodecRunConfig
from sundae.codec_training.module import CodecTraining, unwrapped
from sundae.common.files import atomic_path, make_folder, write_text
from sundae.common.precision import Precision
from sundae.training.trainer import Trainer


def codec_of(
    module: CodecTraining, cfg: CodecRunConfig, precision: Precision = "auto"
) -> VQGANCodec:
    """A codec with a copy of the weights, on the CPU."""
    vqgan = copy.deepcopy(module.vqgan).cpu().requires_grad_(False)
    vqgan.set_gradient_checkpointing(False)
    rules = Rules("l2", "signed")
    return VQGANCodec(
        vqgan, rules, family="taming", resolution=cfg.training.size, precision=precision
    )


def export(module: CodecTraining, cfg: CodecRunConfig, folder: Path) -> list[Path]:
    """Write a codec, replacing an earlier one.

    `load_vqgan(folder)` reads vqgan.safetensors and vqgan.json; vqgan.ckpt and vqgan.yaml are for
    software that reads taming-transformers' checkpoints, the discriminator included. (Taming's code
    supports 32 groups only: a network with another num_groups loads there, and decodes wrongly.)

    Returns:
        the four paths, in this order.

    Raises:
        UserError: they cannot be written.
    """
    ours = save_codec(
        codec_of(module, cfg), make_folder(folder) / "vqgan.safetensors", overwrite=True
    )
    checkpoint, config = folder / "vqgan.ckpt", folder / "vqgan.yaml"
    state = {f"loss.discriminator.{n}": t for n, t in module.discriminator.state_dict().items()}
    state = module.vqgan.state_dict() | state
    plain = {n: t.cpu().clone(memory_format=torch.contiguous_format) for n, t in state.items()}
    with atomic_path(checkpoint) as partial:
        torch.save({"state_dict": plain}, partial)
    write_text(config, yaml.safe_dump({"model": cfg.model}, sort_keys=False))
    return [*ours, checkpoint, config]


class Exports:
    """A trainer's hook: exports the codec of the last checkpoint into RUN, averaged if it is."""

    def __init__(self, cfg: CodecRunConfig) -> None:
        self.cfg = cfg

    def __call__(self, trainer: Trainer) -> None:
        assert trainer.logbook.run is not None
        export(unwrapped(trainer.state.eval_net), self.cfg, trainer.logbook.run)
