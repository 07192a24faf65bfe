"""What to repaint of an image, and the image brought to a size that the network can work on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from sundae.common.errors import UserError
from sundae.common.images import crop_box, resize_and_crop, to_pil, to_tensor
from sundae.editing.compositing import fill_masked
from sundae.editing.masks import MaskKind, Size, resize_mask
from sundae.sampling.canvas import LARGEST_CANVAS, Shape, check_canvas

# How an image is brought to a size:
#   crop   scaled until it just covers the grid, its centre cut out
#   whole  scaled until it just covers the grid, nothing cut off but what fills no patch
#   keep   its own size, scaled up where it is smaller than the grid
Fit = Literal["crop", "whole", "keep"]


@dataclass(frozen=True, kw_only=True)
class Margins:
    """Pixels to add around an image."""

    left: int = 0
    right: int = 0
    top: int = 0
    bottom: int = 0

    def __post_init__(self) -> None:
        """Raises UserError if a side is below 0, or all are 0."""
        for name, pixels in vars(self).items():
            if pixels < 0:
                raise UserError(f"outpainting adds pixels: {name} is {pixels}, expected at least 0")
        if not any(vars(self).values()):
            raise UserError("outpainting adds pixels: at least one side must be above 0")


def parse_margins(text: str) -> Margins:
    """The value of --outpaint: LEFT,RIGHT,TOP,BOTTOM in pixels.

    Raises:
        UserError: another form, or margins that make no sense.
    """
    try:
        left, right, top, bottom = map(int, text.split(","))
    except ValueError:
        raise UserError(
            f"--outpaint {text}: expected LEFT,RIGHT,TOP,BOTTOM in pixels, such as 0,128,0,0"
        ) from None
    return Margins(left=left, right=right, top=top, bottom=bottom)


@dataclass(frozen=True, kw_only=True)
class EditRequest:
    """What to do to an image: repaint a mask, add margins, or vary a fraction of its tokens.

    Attributes:
        mask: (h, w) bool, true where to repaint, stretched to the image; or a kind of mask.
        outpaint: margins to add, in pixels of the scaled image.
        strength: fraction of tokens that start from noise, in [0, 1].
        composite: put the known pixels back into the samples; else they are as decoded.
        feather: pixels within the hole over which a sample's tone meets the image's; half a patch
            by default.
        canvas: (height, width) in tokens that the image is scaled to cover; the trained grid by
            default.
        fit: how it is scaled; see `Fit`.
    """

    mask: Tensor | MaskKind | None = None
    outpaint: Margins | None = None
    strength: float | None = None
    composite: bool = True
    feather: int | None = None
    canvas: Shape | None = None
    fit: Fit = "crop"

    def __post_init__(self) -> None:
        """Raises UserError for what makes no sense, ValueError unless one edit is given."""
        if sum(edit is not None for edit in (self.mask, self.outpaint, self.strength)) != 1:
            raise ValueError("expected exactly one of mask, outpaint and strength")
        if isinstance(self.mask, Tensor) and not self.mask.any():
            raise UserError("nothing to repaint: the mask covers no pixel of the image; paint some")
        if self.strength is not None and not 0 <= self.strength <= 1:
            raise UserError(
                f"strength is {self.strength:g}, expected a fraction of the tokens, 0 to 1"
            )
        if self.feather is not None and self.feather < 0:
            raise UserError(f"feather is {self.feather}, expected at least 0 pixels")

    def prepare(
        self, image: Image.Image, generator: torch.Generator, *, trained: Shape, factor: int
    ) -> EditInput:
        """Brings an image to a size that the network can work on, and its mask with it.

        The filter that scales an image mixes neighbouring pixels. So that nothing masked gets into
        what is known, pixels of a given mask are replaced by a continuation of the known ones
        before.

        Args:
            image: RGB of any size.
            generator: on the CPU; for masks that are drawn.
            trained: (height, width) in tokens of the grid that the network was trained on.
            factor: pixels per token along each side.

        Raises:
            UserError: too large an image, or nothing is masked within the part that is cut out.
        """
        size = self._fitted_size((image.height, image.width), trained, factor)
        original = resize_and_crop(image, size)
        if self.strength is not None:
            return EditInput(self, original, original, None)
        if self.outpaint is not None:
            left, right, top, bottom = vars(self.outpaint).values()
            wider = ImageOps.expand(original, (left, top, right, bottom), "white")
            known = torch.zeros(size, dtype=torch.bool)
            return EditInput(
                self, wider, wider, F.pad(known, (left, right, top, bottom), value=True)
            )
        if not isinstance(self.mask, Tensor):
            assert self.mask is not None
            return EditInput(self, original, original, self.mask.make(size, generator))
        mask = resize_mask(self.mask, (image.height, image.width))
        filled = resize_and_crop(to_pil(fill_masked(to_tensor(image), mask)), size)
        mask = resize_mask(mask, size, crop_box((image.height, image.width), size))
        if not mask.any():
            raise UserError(
                "the mask covers nothing of the centre that is cut out of the image; paint there, "
                "or take the whole image"
            )
        return EditInput(self, original, filled, mask)

    def _fitted_size(self, size: Size, trained: Shape, factor: int) -> Size:
        """(height, width) in pixels that an image of a size is brought to."""
        grid = self.canvas or trained
        check_canvas(grid, trained)
        if self.fit == "crop":
            height, width = (side * factor for side in grid)
        elif self.fit == "whole":
            scale = max(side / length for side, length in zip(grid, size))
            height, width = (
                max(side, round(length * scale)) * factor for side, length in zip(grid, size)
            )
        else:
            scale = max(1.0, *(side * factor / length for side, length in zip(grid, size)))
            height, width = (round(length * scale) for length in size)
        rows, columns = -(-height // factor), -(-width // factor)
        if rows * columns > LARGEST_CANVAS * trained[0] * trained[1]:
            raise UserError(
                f"the image takes {rows}x{columns} tokens as a whole, more than {LARGEST_CANVAS} "
                f"times the {trained[0]}x{trained[1]} that the network was trained on; let its "
                "centre be cut out"
            )
        return height, width


@dataclass(frozen=True)
class EditInput:
    """An image, ready to be repainted.

    Attributes:
        request: what to repaint of it.
        original: RGB, to be looked at.
        image: RGB of the same size; its masked pixels have no influence.
        mask: (height, width) bool; None for a variation.
    """

    request: EditRequest
    original: Image.Image
    image: Image.Image
    mask: Tensor | None
