"""Repaint pictures: holes, what lies beyond their borders, or a fraction of their tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sundae.codec.interface import Codec
from sundae.common.errors import UserError
from sundae.common.images import crop_box, resize_and_crop, to_pil, to_tensor
from sundae.config.sections import SamplingConfig
from sundae.editing.compositing import composite as composited
from sundae.editing.compositing import fill_masked as fill_hidden
from sundae.editing.masks import resize_mask, token_mask
from sundae.prior.categorical import seeded_uniforms
from sundae.sampling.canvas import Shape
from sundae.sampling.loop import Refinement
from sundae.sampling.prior import Prior
from sundae.sampling.state import starting_tokens

# A stream of noise that no refinement step uses: steps count up from 0.
_RENOISE = -1


@dataclass(frozen=True)
class _Laid:
    """A picture laid on whole patches.

    Attributes:
        image: (3, H, W) float in [0, 1].
        hidden: (H, W) bool.
        border: (left, right, top, bottom), pixels that complete the patches at its edges.
        feather: of the composite; None leaves answers as they are decoded.
    """

    image: Tensor
    hidden: Tensor
    border: tuple[int, int, int, int]
    feather: int | None = None

    @classmethod
    def on_patches(cls, image: Tensor, hidden: Tensor, factor: int, grid: Shape) -> _Laid:
        """Raises UserError when the picture has fewer pixels in a direction than the grid."""
        if image.shape[1:] != hidden.shape:
            raise ValueError(f"a mask of {tuple(hidden.shape)} for a picture {tuple(image.shape)}")
        height, width = hidden.shape
        pixels = (grid[0] * factor, grid[1] * factor)
        if height < pixels[0] or width < pixels[1]:
            raise UserError(
                f"a picture of {height}x{width} pixels is smaller than the {pixels[0]}x{pixels[1]} "
                "that the network was trained on; scale it up first"
            )
        # A picture of the trained size fills the grid. Any other lies such that its known part
        # begins with a whole patch, or else outpainting would lose a row of known tokens.
        known = (~hidden).nonzero()
        top, left = known.amin(dim=0).tolist() if len(known) else (0, 0)
        if (height, width) == pixels:
            top, left = 0, 0
        top, left = -top % factor, -left % factor
        border = (left, -(left + width) % factor, top, -(top + height) % factor)
        return cls(image, hidden, border)

    def hidden_tokens(self, factor: int) -> Tensor:
        """(h, w) bool: the tokens with a hidden pixel, or one outside the picture."""
        return token_mask(F.pad(self.hidden, self.border, value=True), factor)

    def context(self) -> Tensor:
        """(3, h * factor, w * factor): the known pixels, continued to where there is none."""
        outer = F.pad(self.hidden, self.border, value=True)
        return fill_hidden(F.pad(self.image, self.border), outer)

    def cut_out(self, images: Tensor) -> Tensor:
        """Decoded pictures (N, 3, h * factor, w * factor) -> answers (N, 3, H, W)."""
        left, _, top, _ = self.border
        height, width = self.hidden.shape
        images = images[..., top : top + height, left : left + width]
        if self.feather is None:
            return images
        return composited(images, self.image, self.hidden, self.feather)


@dataclass(frozen=True)
class Answers:
    """All answers to one picture after a step. Decoding is left to whoever wants to see them.

    Attributes:
        refinement: the tokens, which step this is, and how many answers are not done yet.
    """

    refinement: Refinement
    _prior: Prior
    _codec: Codec
    _laid: _Laid

    @property
    def step(self) -> int:
        """How many steps have been done; 0 is the start."""
        return self.refinement.step

    @property
    def running(self) -> int:
        """How many answers are not done yet."""
        return self.refinement.num_running

    def images(self) -> Tensor:
        """Decode: (N, 3, H, W) float32 in [0, 1] on the CPU, of the size of the picture."""
        decoded = self._codec.decode(self._prior.grids(self.refinement.tokens))
        return self._laid.cut_out(decoded.cpu())


def inpaint(
    prior: Prior,
    codec: Codec,
    image: Tensor,
    hidden: Tensor,
    *,
    seeds: Tensor,
    classes: Tensor | None,
    schedule: SamplingConfig,
    composite: bool = True,
    feather: int | None = None,
) -> Iterator[Answers]:
    """Answers to what a hole in a picture may hold, one a seed, all refined together.

    A token with any hidden pixel is drawn anew, the others are frozen. They are encoded from the
    picture with its hole filled by `fill_hidden`, so nothing that is hidden has any influence.
    Answer i depends on the picture, the mask, seeds[i] and classes[i] alone. Where everything is
    hidden, the answers are fresh samples.

    A picture larger than what the network was trained on is repainted on a canvas of its size; see
    `canvas`. There, or where its sides are no multiples of the codec's factor, it is laid on
    the patches such that the known part begins with whole ones.

    Args:
        prior: the network; its own canvas has no influence.
        codec: that the network was trained with, on any device.
        image: (3, H, W) float in [0, 1], on the CPU as the mask and the answers are; at least the
            trained grid's pixels in both directions.
        hidden: (H, W) bool, true where to repaint.
        seeds: (N,) int64.
        classes: (N,) int64 for a conditional network, else None.
        schedule: how to refine.
        composite: put the known pixels back into the answers; else they are as decoded.
        feather: pixels within the hole over which the answers' tone is made to meet the picture's;
            half a patch unless given.

    Returns:
        an iterator of Answers after 0, 1, 2 .. steps.

    Raises:
        UserError: nothing is hidden, or the picture is too small.
        ValueError: picture and mask differ in size.
    """
    if not hidden.any():
        raise UserError("nothing to repaint: the mask hides no pixel of the picture; paint some")
    laid = _Laid.on_patches(image, hidden, codec.factor, prior.trained_grid)
    if composite:
        laid = replace(laid, feather=codec.factor // 2 if feather is None else feather)
    redrawn = laid.hidden_tokens(codec.factor)[None].expand(len(seeds), -1, -1)
    return _repaint(prior, codec, laid, redrawn, seeds, classes, schedule)


def image_to_image(
    prior: Prior,
    codec: Codec,
    image: Tensor,
    *,
    strength: float,
    seeds: Tensor,
    classes: Tensor | None,
    schedule: SamplingConfig,
) -> Iterator[Answers]:
    """Variations of a picture, one a seed: a random fraction of its tokens is drawn anew.

    The other tokens are frozen, so that a strength means the same however many steps follow it. A
    picture larger than what the network was trained on is varied on a canvas of its size.

    Args:
        prior: the network; its own canvas has no influence.
        codec: that the network was trained with, on any device.
        image: (3, H, W) float in [0, 1], on the CPU as the mask and the answers are; at least the
            trained grid's pixels in both directions.
        strength: fraction of tokens that start from noise, in [0, 1]. With 0 the answers are what
            the codec makes of the picture, without a step; with 1 they are fresh samples.
        seeds: (N,) int64.
        classes: (N,) int64 for a conditional network, else None.
        schedule: how to refine.

    Returns:
        an iterator of Answers after 0, 1, 2 .. steps.

    Raises:
        UserError: the picture is too small, or a strength outside [0, 1].
    """
    if not 0 <= strength <= 1:
        raise UserError(f"strength is {strength:g}, expected a fraction of the tokens, 0 to 1")
    nothing = torch.zeros(image.shape[1:], dtype=torch.bool)
    laid = _Laid.on_patches(image, nothing, codec.factor, prior.trained_grid)
    outside = laid.hidden_tokens(codec.factor)
    order = seeded_uniforms(seeds.cpu(), _RENOISE, outside.numel()).argsort(dim=1).argsort(dim=1)
    redrawn = outside | (order < round(strength * outside.numel())).unflatten(1, outside.shape)
    running = _repaint(prior, codec, laid, redrawn, seeds, classes, schedule)
    return running if redrawn.any() else islice(running, 1)


def outpaint_canvas(
    image: Tensor, *, left: int = 0, right: int = 0, top: int = 0, bottom: int = 0
) -> tuple[Tensor, Tensor]:
    """Surround a picture by hidden pixels, for `inpaint` to paint.

    Args:
        image: (3, H, W) float in [0, 1].
        left, right, top, bottom: pixels to add at each side, at least 0.

    Returns:
        image: (3, top + H + bottom, left + W + right), black where hidden.
        hidden: (top + H + bottom, left + W + right) bool.

    Raises:
        UserError: a side is below 0, or all are 0.
    """
    sides = {"left": left, "right": right, "top": top, "bottom": bottom}
    for name, pixels in sides.items():
        if pixels < 0:
            raise UserError(f"outpainting adds pixels: {name} is {pixels}, expected at least 0")
    if not any(sides.values()):
        raise UserError("outpainting adds pixels: at least one side must be above 0")
    border = (left, right, top, bottom)
    known = torch.zeros(image.shape[1:], dtype=torch.bool)
    return F.pad(image, border), F.pad(known, border, value=True)


def fit_picture(image: Image.Image, size: Shape, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Bring a picture and its mask to a size together, as `resize_and_crop` does.

    The filter that scales a picture mixes neighbouring pixels. So that nothing hidden gets into
    what is known, hidden pixels are replaced by a continuation of the known ones before.

    Args:
        image: RGB.
        size: (height, width) in pixels.
        hidden: (H, W) bool, of the size of the picture.

    Returns:
        image: (3, height, width) float32 in [0, 1].
        hidden: (height, width) bool: every pixel that a hidden one touches.
    """
    if not hidden.any():
        return to_tensor(resize_and_crop(image, size)), torch.zeros(size, dtype=torch.bool)
    filled = to_pil(fill_hidden(to_tensor(image), hidden))
    box = crop_box((image.height, image.width), size)
    return to_tensor(resize_and_crop(filled, size)), resize_mask(hidden, size, box)


def _repaint(
    prior: Prior,
    codec: Codec,
    laid: _Laid,
    redrawn: Tensor,
    seeds: Tensor,
    classes: Tensor | None,
    schedule: SamplingConfig,
) -> Iterator[Answers]:
    """redrawn: (N, h, w) bool, which tokens start from noise; the others are encoded and frozen."""
    prior = prior.on_canvas((redrawn.shape[1], redrawn.shape[2]))
    context = codec.encode(laid.context()[None]).flatten().cpu()
    redrawn = redrawn.flatten(1)
    noise = starting_tokens(seeds.cpu(), len(context), codec.codebook_size)
    running = prior.refine(
        seeds,
        classes,
        schedule,
        tokens=torch.where(redrawn, noise, context),
        frozen=~redrawn,
    )
    return (Answers(state, prior, codec, laid) for state in running)
