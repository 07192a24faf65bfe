"""The front door: sampling, and repainting of images."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sundae.common.errors import UserError
from sundae.common.images import to_rgb
from sundae.editing.alignment import AlignedImage
from sundae.editing.masks import MaskKind, mask_from_image
from sundae.editing.request import EditInput, EditRequest, Margins
from sundae.prior.categorical import seeded_uniforms
from sundae.sampling.sampler import (
    BATCH_SIZE,
    SEEDS,
    BaseSampler,
    Classes,
    SampleBatch,
    sample_seeds,
)
from sundae.sampling.state import VARY, starting_tokens

# White in an image and true in an array: repaint.
Mask = Image.Image | NDArray[np.bool_] | Tensor | MaskKind


class Sampler(BaseSampler):
    """A trained network with its codec: samples images and repaints given ones.

    `inpaint`, `outpaint` and `vary` take and return PIL images. An image of another size than the
    network was trained on is scaled until it just covers the trained size, and its centre is cut
    out; `fit` and `canvas` select more of it. Sample i depends on the image, the request, the seed
    and its class alone, not on the number of samples or how they are batched.

    Their options are the attributes of `EditRequest` (composite, feather, fit, canvas) and those of
    `refine_edit` (seed, classes, batch_size and the keys of [sampling]):

        sampler = Sampler.from_pretrained()
        images = sampler.inpaint(photo, mask, n=4, fit="whole", steps=40, seed=7)
    """

    def inpaint(
        self, image: Image.Image, mask: Mask, n: int = 4, **options: Any
    ) -> list[Image.Image]:
        """Repaints what a mask covers.

        A token with any masked pixel is drawn anew, the others are frozen. They are encoded from
        the image with the hole filled from its surroundings, so masked pixels have no influence.

        Args:
            image: any mode and size.
            mask: an image that is white where to repaint, or a (height, width) bool array or
                tensor; stretched to the image. Or a kind of mask, such as `BlockMask(top=0.5)`.
            n: number of samples.

        Raises:
            UserError: nothing is masked, or an option makes no sense.
        """
        if isinstance(mask, Image.Image):
            mask = mask_from_image(mask)
        elif isinstance(mask, np.ndarray):
            mask = torch.from_numpy(np.ascontiguousarray(mask, dtype=bool))
        return self.edit(image, n, mask=mask, **options)

    def outpaint(
        self,
        image: Image.Image,
        n: int = 4,
        *,
        left: int = 0,
        right: int = 0,
        top: int = 0,
        bottom: int = 0,
        **options: Any,
    ) -> list[Image.Image]:
        """Paints what lies beyond an image's borders.

        Args:
            image: any mode and size.
            n: number of samples.
            left, right, top, bottom: pixels to add at each side of the scaled image.

        Raises:
            UserError: no pixels to add, or an option makes no sense.
        """
        margins = Margins(left=left, right=right, top=top, bottom=bottom)
        return self.edit(image, n, outpaint=margins, **options)

    def vary(
        self, image: Image.Image, strength: float, n: int = 4, **options: Any
    ) -> list[Image.Image]:
        """Variations of an image: a random fraction of its tokens is drawn anew, others are frozen.

        Args:
            image: any mode and size.
            strength: fraction of tokens that start from noise. With 0 the samples are what the
                codec makes of the image; with 1 they are fresh samples.
            n: number of samples.

        Raises:
            UserError: a strength outside [0, 1], or an option makes no sense.
        """
        return self.edit(image, n, strength=strength, **options)

    def edit(
        self, image: Image.Image, n: int = 4, *, seed: int | None = None, **options: Any
    ) -> list[Image.Image]:
        """Samples of any edit: `prepare_edit` and `refine_edit` to the end.

        A mask that is drawn depends on the seed alone, not on `first`.
        """
        seed = secrets.randbelow(SEEDS) if seed is None else seed
        names = [field.name for field in fields(EditRequest) if field.name in options]
        request = EditRequest(**{name: options.pop(name) for name in names})
        edit = self.prepare_edit(image, request, seed)
        states = self.refine_edit(edit, n, seed=seed, **options)
        return [sample for state in states if state.is_final for sample in state.images()]

    def prepare_edit(
        self, image: Image.Image, request: EditRequest, seed: int, *, first: int = 0
    ) -> EditInput:
        """An image at the size that a request brings it to, with its mask.

        Args:
            image: any mode and size.
            request: what to repaint.
            seed, first: of the samples; they fix a mask that is drawn.

        Raises:
            UserError: too large an image, or nothing is masked within the part that is cut out.
        """
        generator = torch.Generator().manual_seed(int(sample_seeds(seed, 1, first)))
        return request.prepare(
            to_rgb(image), generator, trained=self.grid, factor=self.codec.factor
        )

    def refine_edit(
        self,
        edit: EditInput,
        num_samples: int = 4,
        *,
        classes: Classes = None,
        seed: int | None = None,
        first: int = 0,
        batch_size: int = BATCH_SIZE,
        **settings: Any,
    ) -> Iterator[SampleBatch]:
        """Repaint an image, batch after batch, step by step.

        Args:
            edit: see `prepare_edit`.
            classes: names or numbers of classes, which samples take in turn; the null class by
                default, or all classes where the network has none.
            seed: 0 to 2**32 - 1; a new one by default.
            first: number of the first sample among those of the seed.
            batch_size: samples that are refined together at most.
            settings: keys of [sampling], such as steps=40.

        Returns:
            an iterator of the state of each batch after 0, 1, 2 .. steps, whose images have the
            size of the edited one. A variation of strength 0 takes no step.

        Raises:
            UserError: a setting or a class that does not exist, or an image of the wrong size.
        """
        if settings.get("nb_samples", num_samples) != num_samples:
            raise UserError("nb_samples is no setting of an edit; its number of samples is n")
        sampling = self.settings(**settings)
        seeds = sample_seeds(secrets.randbelow(SEEDS) if seed is None else seed, num_samples, first)
        rows = self.class_rows(classes, num_samples, null_default=True, guided=sampling.is_guided)
        aligned = AlignedImage.of(edit, self.codec.factor, self.grid)
        redrawn = aligned.unknown_tokens().expand(num_samples, -1, -1)
        if edit.request.strength is not None:
            redrawn = redrawn | _random_tokens(seeds, redrawn[0], edit.request.strength)
        context = self.codec.encode(aligned.context()[None]).cpu()
        noise = starting_tokens(seeds, context.numel(), self.codec.codebook_size)
        states = self.refine_tokens(
            seeds,
            rows,
            sampling,
            tokens=torch.where(redrawn, noise.view_as(redrawn), context),
            frozen=~redrawn,
            batch_size=batch_size,
            finish=aligned.crop,
        )
        if redrawn.any():
            return states
        return (replace(state, num_running=0, is_final=True) for state in states if not state.step)


def _random_tokens(seeds: Tensor, grid: Tensor, strength: float) -> Tensor:
    """(N, h, w) bool: a fraction of the tokens of a grid (h, w), other ones for each seed."""
    noise = seeded_uniforms(seeds, VARY, grid.numel())
    order = noise.argsort(dim=1).argsort(dim=1)
    return (order < round(strength * grid.numel())).unflatten(1, grid.shape)
