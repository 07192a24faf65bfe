"""The codec of a sampler: PIL images at the front door, tensors inside."""

from __future__ import annotations

from typing import Any

from PIL import Image
from torch import Tensor

from sundae.codec.interface import ChunkedCodec
from sundae.common.errors import UserError
from sundae.common.images import resize_and_crop, to_pil, to_tensor


class ImageCodec(ChunkedCodec):
    """A codec within a bounded memory that takes and returns PIL images, too.

    One image is a PIL image and a grid of tokens (h, w); a batch of images is a tensor
    (B, 3, H, W) in [0, 1] and grids (B, h, w), as in `sundae.codec.interface.Codec`.
    """

    def encode(self, images: Image.Image | Tensor) -> Tensor:
        """A PIL image -> (h, w) int64 on the CPU; a batch (B, 3, H, W) -> (B, h, w) int64.

        Of an image whose sides are no multiples of `factor`, the centre is encoded.

        Raises:
            UserError: an image smaller than one token.
        """
        if isinstance(images, Tensor):
            return super().encode(images)
        sides = (images.height, images.width)
        height, width = (side // self.factor * self.factor for side in sides)
        if not height or not width:
            raise UserError(
                f"an image of {sides[0]}x{sides[1]} pixels is smaller than a token, which has "
                f"{self.factor}x{self.factor}; scale it up first"
            )
        whole = resize_and_crop(images.convert("RGB"), (height, width))
        return super().encode(to_tensor(whole)[None])[0].cpu()

    def decode(self, tokens: Tensor) -> Any:
        """(h, w) integer -> a PIL image; a batch (B, h, w) -> (B, 3, H, W) float32 in [0, 1]."""
        if tokens.ndim == 2:
            return to_pil(super().decode(tokens[None])[0])
        return super().decode(tokens)
