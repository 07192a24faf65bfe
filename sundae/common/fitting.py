"""Images brought to a size that a codec can cut into patches."""

from dataclasses import dataclass

import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sundae.common.errors import UserError
from sundae.common.images import resize_and_crop, to_tensor

FITS = ("resize", "pad", "crop")


@dataclass(frozen=True)
class Fitted:
    """An image ready to be cut into patches.

    Attributes:
        pixels: (3, H, W) in [0, 1], H and W multiples of the factor.
        height, width: the part, from the top left, that is image; the rest is padding.
    """

    pixels: Tensor
    height: int
    width: int

    def visible(self, pixels: Tensor) -> Tensor:
        """`pixels` (3, H, W) without the padding."""
        return pixels[:, : self.height, : self.width]


def fit_image(image: Image.Image, factor: int, size: int | None, fit: str) -> Fitted:
    """Brings an image to a size that can be cut into patches of `factor` pixels.

    An image that already fits is not resampled.

    Args:
        size: the shorter side in pixels; None leaves it alone.
        fit: resize rounds each side to the nearest multiple. pad repeats the border to the next
            multiple, which is not counted or shown later. crop takes the centre: a square when
            `size` is given, else the largest that fits.
    """
    scale = size / min(image.size) if size else 1
    height, width = (max(1, round(side * scale)) for side in (image.height, image.width))
    if fit == "resize":
        height, width = (max(factor, round(side / factor) * factor) for side in (height, width))
    if fit == "crop":
        height, width = (size, size) if size else (height, width)
        height, width = height // factor * factor, width // factor * factor
        if 0 in (height, width):
            raise UserError(f"an image of {image.height}x{image.width} is smaller than a patch")
        if size:
            image = resize_and_crop(image, (height, width))
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    padding = (0, -width % factor, 0, -height % factor)  # none but for "pad"
    pixels = F.pad(to_tensor(image)[None], padding, mode="replicate")[0]
    return Fitted(pixels, height, width)
