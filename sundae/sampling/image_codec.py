"""The codec of a sampler: PIL images at the front door, tensors inside."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sundae.codec.interface import Codec
from sundae.common import memory
from sundae.common.errors import UserError
from sundae.common.images import resize_and_crop, to_pil, to_tensor


class ImageCodec:
    """A codec that takes and returns PIL images, too, and decodes a batch in parts to save memory.

    One image is a PIL image and a grid of tokens (h, w); a batch of images is a tensor
    (B, 3, H, W) in [0, 1] and grids (B, h, w), as in `sundae.codec.interface.Codec`.
    """

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.codebook_size, self.factor = codec.codebook_size, codec.factor
        self.identity = codec.identity

    def to(self, device: torch.device | str) -> ImageCodec:
        """Move to a device; returns the codec itself."""
        self.codec.to(device)
        return self

    def encode(self, images: Image.Image | Tensor) -> Tensor:
        """A PIL image -> (h, w) int64 on the CPU; a batch (B, 3, H, W) -> (B, h, w) int64.

        Of an image whose sides are no multiples of `factor`, the centre is encoded.

        Raises:
            UserError: an image smaller than one token.
        """
        if isinstance(images, Tensor):
            return self.codec.encode(images)
        sides = (images.height, images.width)
        height, width = (side // self.factor * self.factor for side in sides)
        if not height or not width:
            raise UserError(
                f"an image of {sides[0]}x{sides[1]} pixels is smaller than a token, which has "
                f"{self.factor}x{self.factor}; scale it up first"
            )
        whole = resize_and_crop(images.convert("RGB"), (height, width))
        return self.codec.encode(to_tensor(whole)[None])[0].cpu()

    def decode(self, tokens: Tensor) -> Any:
        """(h, w) integer -> a PIL image; a batch (B, h, w) -> (B, 3, H, W) float32 in [0, 1]."""
        if tokens.ndim == 2:
            return to_pil(self.codec.decode(tokens[None])[0])
        pixels = tokens.shape[-2] * tokens.shape[-1] * self.factor**2
        parts = tokens.split(max(1, memory.PIXELS // pixels))
        return torch.cat([self.codec.decode(part) for part in parts])
