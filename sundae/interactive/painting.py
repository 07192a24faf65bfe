"""Pictures that a user hands in, and the masks painted over them, as tensors of a fitting size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sundae.common.animation import within
from sundae.common.errors import UserError
from sundae.common.images import BadImage, load_image
from sundae.editing.inpaint import fit_picture
from sundae.editing.masks import resize_mask

# Pixels of the longer side: no more than that is worked on, for the sake of memory and time.
LARGEST_SIDE = 2048


def read_picture(path: Path) -> Image.Image:
    """Read an upload, whatever it is, as RGB of at most LARGEST_SIDE pixels a side.

    Raises:
        UserError: it is no picture. The message has the file's name without its folders.
    """
    try:
        return within(load_image(path), LARGEST_SIDE)
    except BadImage as error:
        reason = error.reason.replace(str(path.parent), "")
        raise UserError(
            f"{path.name} cannot be read as a picture ({reason}); try a PNG or a JPEG"
        ) from error


def painted_mask(layers: list[Any], size: tuple[int, int]) -> Tensor:
    """What a brush has touched, however lightly.

    Args:
        layers: (h, w, 4) uint8 arrays, what was painted, on transparent ground.
        size: (height, width) of the picture, which the layers are stretched to.

    Returns:
        (height, width) bool.
    """
    hidden = torch.zeros(size, dtype=torch.bool)
    for layer in layers:
        touched = torch.from_numpy(np.ascontiguousarray(layer[..., -1] > 0))
        hidden |= resize_mask(touched, size)
    return hidden


def fitted(
    image: Image.Image, hidden: Tensor, trained: tuple[int, int], *, keep_size: bool
) -> tuple[Tensor, Tensor]:
    """Bring a picture and its mask to a size that the network can work on.

    Args:
        image: RGB.
        hidden: (H, W) bool, of the size of the picture.
        trained: (height, width) in pixels of what the network was trained on.
        keep_size: work on the picture as it is, scaled up where it is smaller than `trained`;
            otherwise its centre is brought to that size.

    Returns:
        image: (3, height, width) float32 in [0, 1].
        hidden: (height, width) bool.

    Raises:
        UserError: a picture too narrow to be kept.
    """
    if not keep_size:
        return fit_picture(image, trained, hidden)
    scale = max(1.0, trained[0] / image.height, trained[1] / image.width)
    size = round(image.height * scale), round(image.width * scale)
    if max(size) > LARGEST_SIDE:
        raise UserError(
            f"a picture of {image.width}x{image.height} is too narrow to keep its size; "
            "let its centre be cut out"
        )
    return fit_picture(image, size, hidden)
