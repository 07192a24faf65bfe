"""The two sides of an evaluation: what a path is, told by what lies there."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from sundae.codec.interface import Codec
from sundae.codec.vqgan import load_vqgan
from sundae.codec_training.config import load_codec_config
from sundae.common.errors import UserError
from sundae.evaluation.image_sets import ImageSet, images_in_memory, to_bytes
from sundae.evaluation.real_images import holds_tokens
from sundae.evaluation.statistics_file import is_statistics
from sundae.prior.checkpoint import CODEC
from sundae.prior.run import INFO, RUN_FILE, read_json
from sundae.sampling.sampler import BaseSampler, sample_seeds

Kind = Literal["prior", "codec", "tokens", "statistics", "images"]

_CODEC_FILES = {".ckpt", ".pt", ".pth", ".bin", ".safetensors"}
_CODEC_RUN_FILE = "config.yaml"
_CODEC_WEIGHTS = (CODEC, "diffusion_pytorch_model.safetensors")


def kind_of(path: Path) -> Kind:
    """What a path is: a prior or codec to evaluate, data, saved statistics or a folder of images.

    Raises:
        UserError: It does not exist, or is a file of no known kind.
    """
    if path.is_file():
        if is_statistics(path):
            return "statistics"
        if path.name == INFO or (path.name != CODEC and (path.parent / INFO).exists()):
            return "prior"
        if path.suffix in _CODEC_FILES:
            return "codec"
        raise UserError(f"{path}: expected a folder, a checkpoint or saved statistics")
    if not path.is_dir():
        raise UserError(f"{path} does not exist; correct the path")
    if (path / INFO).exists():
        is_codec = read_json(path / INFO, "use another checkpoint").get("kind") == "vqgan"
        return "codec" if is_codec else "prior"
    if (path / RUN_FILE).exists():
        return "prior"
    if any((path / name).exists() for name in (_CODEC_RUN_FILE, *_CODEC_WEIGHTS)):
        return "codec"
    return "tokens" if holds_tokens(path) else "images"


def open_codec_side(
    path: Path, config: Path | None = None, *, device: torch.device, **rules: Any
) -> tuple[Codec, list[float] | None]:
    """A codec, and how train-vqgan.py divided its images; None where the path is no such run.

    Args:
        config: Of a checkpoint that does not say it; see `load_vqgan`, also for `rules`.

    Raises:
        UserError: It cannot be loaded.
    """
    codec = load_vqgan(path, config, **rules).to(device)
    run_file = (path if path.is_dir() else path.parent) / _CODEC_RUN_FILE
    if not run_file.exists():
        return codec, None
    fraction = load_codec_config(run_file).training.eval_fraction
    return codec, [1 - fraction, fraction]


def draw_samples(
    sampler: BaseSampler,
    count: int,
    *,
    seed: int,
    labels: np.ndarray | None = None,
    batch_size: int = 64,
    quiet: bool = True,
    **settings: Any,
) -> ImageSet:
    """The first samples of a seed, rounded to 8 bits.

    Args:
        labels: Names of classes, which the samples take in turn; None takes all classes in turn.
        settings: Keys of [sampling].

    Raises:
        UserError: A class that the network does not know.
    """
    sampling = sampler.settings(**settings)
    names = sampler.class_names
    classes = sampler.class_rows(None if labels is None or not names else list(labels), count)
    states = sampler.refine_tokens(
        sample_seeds(seed, count), classes, sampling, batch_size=batch_size
    )
    parts = []
    with tqdm(total=count, desc="samples", unit="sample", disable=True if quiet else None) as bar:
        for state in states:
            bar.set_postfix(step=f"{state.step}/{state.num_steps}", running=state.num_running)
            if state.is_final:
                parts.append(to_bytes(state.pixels()))
                bar.update(len(parts[-1]))
    drawn = None if classes is None else np.array(names)[classes.numpy()]
    return images_in_memory(torch.cat(parts), "samples", labels=drawn)
