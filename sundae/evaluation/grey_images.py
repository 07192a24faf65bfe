"""Images whose tokens are grey levels, as a classifier takes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sundae.codec.interface import PixelCodec
from sundae.common.errors import UserError
from sundae.common.images import load_image
from sundae.data.dataset import open_latents
from sundae.evaluation.label_reader import LabelledImages
from sundae.evaluation.label_table import class_labels


def labelled_digits(root: Path) -> LabelledImages:
    """The images and classes of a folder of token data, see `sundae.datasets.digits`.

    Raises:
        UserError: there is none, or it has no classes.
    """
    latents = open_latents(root)
    if latents.labels is None or latents.classes is None:
        raise UserError(f"{root} has no classes; generate it with generate-discrete-mnist.py")
    images = grey_images(torch.from_numpy(np.array(latents.tokens)), latents.codebook_size)
    names = np.array(latents.classes)[latents.labels[latents.images]]
    return LabelledImages(images, class_labels(names))


def grey_images(tokens: Tensor, levels: int) -> Tensor:
    """(N, H, W) integers in [0, levels) -> (N, 3, H, W) uint8, rounded as a PNG holds them."""
    return (PixelCodec(levels).decode(tokens) * 255).round().byte()


def read_samples(folder: Path, count: int) -> Tensor:
    """(count, 3, H, W) uint8: the first images that sample.py wrote to a folder."""
    images = [np.array(load_image(path)) for path in sorted(folder.glob("*.png"))[:count]]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
