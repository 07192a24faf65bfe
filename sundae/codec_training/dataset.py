"""A folder of images as batches to train a codec on: scaled images, or crops and whole images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from sundae.codec_training.config import TrainingConfig
from sundae.common.errors import UserError
from sundae.common.fitting import fit_image
from sundae.common.images import (
    image_size,
    list_images,
    load_image,
    refusing_bad_images,
    resize_and_crop,
)
from sundae.data.dataset import Batch
from sundae.data.splits import EVAL, TRAIN, split_names


class ImageDataset(Dataset[Batch]):
    """Images, scaled and cropped to a square; nothing is random, see `augment` for that."""

    def __init__(self, paths: Sequence[Path], size: int, *, cache: bool = False) -> None:
        """Read nothing yet.

        Args:
            size: side in pixels.
            cache: hold decoded images in memory, 3 bytes a pixel, in every worker process.
        """
        self.paths, self.size = list(paths), size
        self.cache: dict[int, np.ndarray] | None = {} if cache else None

    @property
    def resolution(self) -> int:
        """Side of the images in pixels."""
        return self.size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """-> images (B, 3, size, size) float32 in [0, 1], channels last in memory.

        Raises:
            UserError: an image cannot be decoded.
        """
        return _as_batch([self._pixels(int(index)) for index in indices])

    def _pixels(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8, what is cached."""
        if self.cache is not None and index in self.cache:
            return self.cache[index]
        with refusing_bad_images():
            pixels = np.asarray(self._prepare(load_image(self.paths[index])))
        if self.cache is not None:
            self.cache[index] = pixels
        return pixels

    def _prepare(self, image: Image.Image) -> Image.Image:
        return resize_and_crop(image, self.size)


class CropDataset(ImageDataset):
    """Random crops of images, whose pixels are those of the files: nothing is scaled.

    Decoding a PNG of a megapixel takes some 20 ms, so several crops may be cut from an image that
    is decoded once.
    """

    counts_visits = True

    def __init__(
        self, paths: Sequence[Path], size: int, *, crops: int = 1, cache: bool = False
    ) -> None:
        """Read nothing yet.

        Args:
            size: side of the crops in pixels, at most the shortest side of an image.
            crops: number of crops of each image in a batch.
            cache: hold whole images in memory, 3 bytes a pixel, in every worker process.
        """
        super().__init__(paths, size, cache=cache)
        self.crops = crops

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """-> images (B * crops, 3, size, size) float32 in [0, 1], channels last in memory.

        Args:
            indices: (B,) visits, see `sundae.training.batches.BatchedData`. The places of the crops
                depend on the visit alone: a resumed run cuts what an unbroken one does.

        Raises:
            UserError: an image cannot be decoded.
        """
        return _as_batch([crop for visit in indices for crop in self._cut(int(visit))])

    def _cut(self, visit: int) -> Iterator[np.ndarray]:
        pixels, random = self._pixels(visit % len(self)), np.random.default_rng(visit)
        for _ in range(self.crops):
            top, left = (random.integers(side - self.size + 1) for side in pixels.shape[:2])
            yield pixels[top : top + self.size, left : left + self.size]

    def _prepare(self, image: Image.Image) -> Image.Image:
        return image


class WholeImages(Dataset[Batch]):
    """Images as they are, one in a batch, because their sizes may differ."""

    max_batch_size = 1

    def __init__(self, paths: Sequence[Path], factor: int, size: int | None = None) -> None:
        """Read nothing yet.

        Args:
            factor: pixels per token along each side; less than that is cut off at the borders.
            size: side in pixels of squares to scale and crop to; None scales nothing.
        """
        self.paths, self.factor, self.size = list(paths), factor, size

    def __len__(self) -> int:
        return len(self.paths)

    @cached_property
    def resolution(self) -> int | None:
        """Side of the images in pixels, None where they are not squares of one size."""
        if self.size is not None:
            return self.size
        sizes = {image_size(path) for path in self.paths}
        height, width = sizes.pop()
        return None if sizes or height != width else height // self.factor * self.factor

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """-> images (1, 3, H, W) float32 in [0, 1]; one index at a time.

        Raises:
            UserError: the image cannot be decoded.
        """
        (index,) = indices
        with refusing_bad_images():
            image = fit_image(load_image(self.paths[index]), self.factor, self.size, "crop")
        return {"images": image.pixels[None]}


def _as_batch(pixels: Sequence[np.ndarray]) -> Batch:
    """(H, W, 3) uint8 each."""
    return {"images": torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float().div_(255)}


def augment(
    images: Tensor, size: int, *, mirror: bool, generator: torch.Generator | None
) -> Tensor:
    """Crop each image at random and mirror every other one -> (B, 3, size, size).

    Args:
        images: (B, 3, H, W), sides at least `size`.
        mirror: whether an image may be flipped left to right.
        generator: on the device of the images; None crops the centre and flips nothing.
    """
    images = _crop(images, size, generator)
    if mirror and generator is not None:
        flipped = torch.rand(len(images), generator=generator, device=images.device) < 0.5
        images = torch.where(flipped[:, None, None, None], images.flip(3), images)
    return images


def recolour(images: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Shuffle the colour channels of a share of the images.

    Most sets of images vary from warm to cold and hardly from green to magenta. A network learns
    the directions of colour in the order of their variance; here they have the same.

    Args:
        images: (B, 3, H, W), as is what is returned.
        share: probability of each image, in [0, 1].
        generator: on the device of the images.
    """
    draws = torch.rand(len(images), 4, generator=generator, device=images.device)
    order = draws[:, :3].argsort(dim=1)
    unchanged = torch.arange(3, device=images.device)
    order = torch.where(draws[:, 3:] < share, order, unchanged)
    return images.gather(1, order[:, :, None, None].expand_as(images))


def _crop(images: Tensor, size: int, generator: torch.Generator | None) -> Tensor:
    count, channels, *sides = images.shape
    if all(side == size for side in sides):
        return images
    spare = [side - size for side in sides]  # numbers: a tensor of them would keep a GPU waiting
    if generator is None:
        corners = [torch.full((count,), pixels // 2, device=images.device) for pixels in spare]
    else:
        draws = torch.rand(count, 2, generator=generator, device=images.device).unbind(1)
        corners = [(draw * (pixels + 1)).long() for draw, pixels in zip(draws, spare)]
    reach = torch.arange(size, device=images.device)
    rows, columns = (corner[:, None] + reach for corner in corners)
    image = torch.arange(count, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[:, None, None]
    return images[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def open_images(
    root: Path, cfg: TrainingConfig, factor: int
) -> tuple[ImageDataset, ImageDataset | WholeImages]:
    """(training, held-out) images of a folder and its subfolders.

    Args:
        factor: pixels per token along each side.

    Raises:
        UserError: see `split_images`; and with full_resolution, an image smaller than a crop.
    """
    train, held_out = split_images(root, cfg.eval_fraction)
    if not cfg.full_resolution:
        scaled = ImageDataset(held_out, cfg.size, cache=cfg.cache)
        return ImageDataset(train, cfg.load_size, cache=cfg.cache), scaled
    for path in (*train, *held_out):
        _check_size(path, cfg.size)
    crops = CropDataset(train, cfg.size, crops=cfg.crops, cache=cfg.cache)
    return crops, WholeImages(held_out, factor, cfg.eval_size)


def split_images(root: Path, eval_fraction: float) -> tuple[list[Path], list[Path]]:
    """(training, held-out) images of a folder and its subfolders.

    The held-out images are those of token data made from the folder with `split_sizes`
    [1 - eval_fraction, eval_fraction]: the prior is evaluated on images its codec has not seen.

    Raises:
        UserError: no folder, no images, or too few for both sides.
    """
    paths = list_images(root)
    names = [path.relative_to(root).as_posix() for path in paths]
    sides = split_names(names, (1 - eval_fraction, eval_fraction))
    train, held_out = (
        [path for path, at in zip(paths, sides, strict=True) if at == side]
        for side in (TRAIN, EVAL)
    )
    if not train or not held_out:
        raise UserError(
            f"{root}: of {len(paths)} images {len(train)} are left to train and {len(held_out)} to "
            "evaluate; add images or change training.eval_fraction"
        )
    return train, held_out


def _check_size(path: Path, size: int) -> None:
    with refusing_bad_images():
        height, width = image_size(path)
    if min(height, width) < size:
        raise UserError(
            f"{path} has {height}x{width} pixels, less than a crop of training.size = {size}; "
            "remove the image or make training.size smaller"
        )
