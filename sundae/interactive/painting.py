"""Images that a user uploads, and the masks painted over them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sundae.common.errors import UserError
from sundae.common.images import BadImage, load_image, within
from sundae.editing.masks import resize_mask

# Pixels of the longer side of an image that is edited, at most, for the sake of memory and time.
MAX_SIDE = 2048


def read_upload(path: Path) -> Image.Image:
    """Reads an image of any format as RGB of at most MAX_SIDE pixels a side.

    Raises:
        UserError: it is no image. The message has the file's name without its folders.
    """
    try:
        return within(load_image(path), MAX_SIDE)
    except BadImage as error:
        reason = error.reason.replace(str(path.parent), "")
        raise UserError(
            f"{path.name} cannot be read as an image ({reason}); try a PNG or a JPEG"
        ) from error


def painted_mask(layers: list[NDArray[np.uint8]], size: tuple[int, int]) -> Tensor:
    """(height, width) bool: what a brush has touched, however lightly.

    Args:
        layers: (h, w, 4) each, the strokes on transparent ground.
        size: (height, width) of the image, which the layers are stretched to.
    """
    mask = torch.zeros(size, dtype=torch.bool)
    for layer in layers:
        touched = torch.from_numpy(np.ascontiguousarray(layer[..., -1] > 0))
        mask |= resize_mask(touched, size)
    return mask
