"""An image extended to whole patches, so that tokens can be frozen and drawn anew."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sundae.common.errors import UserError
from sundae.common.images import to_tensor
from sundae.editing.compositing import composite, fill_masked
from sundae.editing.masks import token_mask
from sundae.editing.request import EditInput
from sundae.sampling.canvas import Shape


@dataclass(frozen=True)
class AlignedImage:
    """An image extended to whole patches.

    An image of the trained size fills the grid. Any other is placed such that its known part begins
    with a whole patch; otherwise outpainting would lose a row of known tokens.

    Attributes:
        image: (3, H, W) float in [0, 1].
        mask: (H, W) bool.
        border: (left, right, top, bottom), pixels that complete the patches at its edges.
        factor: pixels per token along each side.
        feather: of the composite; None leaves samples as they are decoded.
    """

    image: Tensor
    mask: Tensor
    border: tuple[int, int, int, int]
    factor: int
    feather: int | None

    @classmethod
    def of(cls, edit: EditInput, factor: int, trained: Shape) -> AlignedImage:
        """Raises UserError when the image has fewer pixels in a direction than the trained grid."""
        height, width = edit.image.height, edit.image.width
        pixels = (trained[0] * factor, trained[1] * factor)
        if height < pixels[0] or width < pixels[1]:
            raise UserError(
                f"an image of {height}x{width} pixels is smaller than the {pixels[0]}x{pixels[1]} "
                "that the network was trained on; scale it up first"
            )
        feather = None
        if edit.mask is not None and edit.request.composite:
            feather = factor // 2 if edit.request.feather is None else edit.request.feather
        mask = torch.zeros(height, width, dtype=torch.bool) if edit.mask is None else edit.mask
        known = (~mask).nonzero()
        top, left = 0, 0
        if len(known) and (height, width) != pixels:
            top, left = (-side % factor for side in known.amin(dim=0).tolist())
        border = (left, -(left + width) % factor, top, -(top + height) % factor)
        return cls(to_tensor(edit.image), mask, border, factor, feather)

    def unknown_tokens(self) -> Tensor:
        """(h, w) bool: the tokens with a masked pixel, or one outside the image."""
        return token_mask(F.pad(self.mask, self.border, value=True), self.factor)

    def context(self) -> Tensor:
        """(3, h * factor, w * factor): the known pixels, continued to where there is none."""
        outer = F.pad(self.mask, self.border, value=True)
        return fill_masked(F.pad(self.image, self.border), outer)

    def crop(self, decoded: Tensor) -> Tensor:
        """Decoded images (N, 3, h * factor, w * factor) -> samples of the image (N, 3, H, W)."""
        left, _, top, _ = self.border
        height, width = self.mask.shape
        samples = decoded[..., top : top + height, left : left + width]
        if self.feather is None:
            return samples
        return composite(samples, self.image, self.mask, self.feather)
