"""The codec between tokens and pixels: one interface, whatever kind it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from sundae.common.errors import UserError

if TYPE_CHECKING:
    from sundae.config.run_file import RunConfig

# ITU-R BT.601 luma weights, as Pillow's convert("L") uses them.
_LUMA = (0.299, 0.587, 0.114)


class Codec(Protocol):
    """Turns images into token grids and back.

    Attributes:
        codebook_size: number of distinct tokens; tokens are in [0, codebook_size).
        factor: pixels per token along each side.
        identity: a string that two codecs share exactly when they mean the same thing by a token.
    """

    @property
    def codebook_size(self) -> int: ...

    @property
    def factor(self) -> int: ...

    @property
    def identity(self) -> str: ...

    def encode(self, images: Tensor) -> Tensor:
        """images: (B, 3, H, W) float in [0, 1], H and W multiples of factor -> (B, h, w) int64."""
        ...

    def decode(self, tokens: Tensor) -> Tensor:
        """tokens: (B, h, w) integer in [0, codebook_size) -> (B, 3, H, W) float32 in [0, 1]."""
        ...

    def to(self, device: torch.device | str) -> Codec:
        """Move to a device; returns the codec itself."""
        ...


class PixelCodec:
    """Grey levels as tokens, one token a pixel; for small images that need no VQ-GAN."""

    factor = 1

    def __init__(self, levels: int) -> None:
        """levels: number of grey levels, 2 to 256, evenly spaced from black to white."""
        if not 2 <= levels <= 256:
            raise ValueError(f"levels must be between 2 and 256, got {levels}")
        self.codebook_size = levels
        self.identity = f"pixels-{levels}"

    def encode(self, images: Tensor) -> Tensor:
        """images: (B, 3, H, W) float in [0, 1] -> (B, H, W) int64, the level nearest the luma."""
        luma = (images * images.new_tensor(_LUMA)[:, None, None]).sum(dim=1)
        return (luma.clamp(0, 1) * (self.codebook_size - 1)).round().long()

    def decode(self, tokens: Tensor) -> Tensor:
        """tokens: (B, h, w) integer -> (B, 3, h, w) float32 in [0, 1], all channels equal."""
        grey = tokens.float() / (self.codebook_size - 1)
        return grey[:, None].expand(-1, 3, -1, -1)

    def to(self, device: torch.device | str) -> PixelCodec:
        """Has no weights, so there is nothing to move."""
        return self


def open_codec(cfg: RunConfig) -> Codec:
    """The codec of a run, on the CPU: its VQ-GAN, or grey levels where it has no [vqgan] section.

    Raises:
        UserError: the VQ-GAN cannot be loaded, or its codebook is not the run's vocabulary.
    """
    vocab_size, vqgan = cfg.data.vocab_size, cfg.vqgan
    if vqgan is None:
        if vocab_size > 256:
            raise UserError(
                f"data.vocab_size is {vocab_size} but there is no [vqgan] section, and pixels have "
                "at most 256 grey levels: add the [vqgan] that made the data"
            )
        return PixelCodec(vocab_size)
    from sundae.codec.vqgan import load_vqgan  # a pixel run never needs it

    for key, path in (("checkpoint", vqgan.checkpoint), ("config", vqgan.config)):
        if path is not None and not path.exists():
            raise UserError(
                f"vqgan.{key} is {path}, which does not exist here; give its place with "
                f"--set vqgan.{key}=PATH"
            )
    codec = load_vqgan(
        vqgan.checkpoint, vqgan.config, input_range=vqgan.input_range, distance=vqgan.distance
    )
    if codec.codebook_size != vocab_size:
        raise UserError(
            f"{vqgan.checkpoint} has {codec.codebook_size} codes, data.vocab_size is {vocab_size}: "
            f"set data.vocab_size = {codec.codebook_size}"
        )
    return codec
