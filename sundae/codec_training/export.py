"""A trained codec as files: this project's, and taming-transformers' layout."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import yaml

from sundae.codec.vqgan.codec import Rules, VQGANCodec
from sundae.codec.vqgan.convert import save_codec
from sundae.codec_training.config import CodecRunConfig
from sundae.codec_training.module import CodecTraining
from sundae.common.files import atomic_path, make_folder, write_text


def export(
    module: CodecTraining, cfg: CodecRunConfig, folder: Path, resolution: int | None
) -> list[Path]:
    """Write a codec, replacing an earlier one.

    `load_vqgan(folder)` reads vqgan.safetensors and vqgan.json; vqgan.ckpt and vqgan.yaml are for
    software that reads taming-transformers' checkpoints, the discriminator included. (Taming's code
    supports 32 groups only: a network with another num_groups loads there, and decodes wrongly.)

    Args:
        resolution: side of the images that the codec is for, None where their sizes differ.

    Returns:
        the four paths, in this order.

    Raises:
        UserError: they cannot be written.
    """
    vqgan = copy.deepcopy(module.vqgan).cpu().requires_grad_(False)
    vqgan.set_gradient_checkpointing(False)
    codec = VQGANCodec(vqgan, Rules("l2", "signed"), family=cfg.family, resolution=resolution)
    ours = save_codec(codec, make_folder(folder) / "vqgan.safetensors", overwrite=True)
    checkpoint, config = folder / "vqgan.ckpt", folder / "vqgan.yaml"
    state = {f"loss.discriminator.{n}": t for n, t in module.discriminator.state_dict().items()}
    state = module.vqgan.state_dict() | state
    plain = {n: t.cpu().clone(memory_format=torch.contiguous_format) for n, t in state.items()}
    with atomic_path(checkpoint) as partial:
        torch.save({"state_dict": plain}, partial)
    write_text(
        config, yaml.safe_dump({"model": _for_whole_images(cfg, resolution)}, sort_keys=False)
    )
    return [*ours, checkpoint, config]


def _for_whole_images(cfg: CodecRunConfig, resolution: int | None) -> dict[str, Any]:
    """The model section; with crops, which exclude attention, its resolution is free to be theirs.

    Where there is attention the resolution says at which level.
    """
    model = copy.deepcopy(cfg.model)
    if cfg.training.full_resolution and resolution is not None:
        params = model["params"] if "params" in model else model["init_args"]
        params["ddconfig"]["resolution"] = resolution
    return model
