"""A trained codec as files: this project's, and taming-transformers' layout."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
import yaml

from sundae.codec.vqgan.codec import Rules, VQGANCodec
from sundae.codec.vqgan.convert import save_codec
from sundae.codec_training.config import CodecRunConfig
from sundae.codec_training.module import CodecTraining
from sundae.common.files import atomic_path, make_folder, write_text


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
    vqgan = copy.deepcopy(module.vqgan).cpu().requires_grad_(False)
    vqgan.set_gradient_checkpointing(False)
    codec = VQGANCodec(vqgan, Rules("l2", "signed"), family="taming", resolution=cfg.training.size)
    ours = save_codec(codec, make_folder(folder) / "vqgan.safetensors", overwrite=True)
    checkpoint, config = folder / "vqgan.ckpt", folder / "vqgan.yaml"
    state = {f"loss.discriminator.{n}": t for n, t in module.discriminator.state_dict().items()}
    state = module.vqgan.state_dict() | state
    plain = {n: t.cpu().clone(memory_format=torch.contiguous_format) for n, t in state.items()}
    with atomic_path(checkpoint) as partial:
        torch.save({"state_dict": plain}, partial)
    write_text(config, yaml.safe_dump({"model": cfg.model}, sort_keys=False))
    return [*ours, checkpoint, config]
