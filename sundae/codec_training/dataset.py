"""A folder of images as batches to train a codec on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sundae.common.errors import UserError
from sundae.common.images import BadImage, list_images, load_image, resize_and_crop
from sundae.common.naming import image_name
from sundae.data.dataset import Batch
from sundae.data.splits import EVAL, split_by_fraction


class ImageDataset(Dataset[Batch]):
    """Images, scaled and cropped to a square; nothing is random, see `augment` for that."""

    def __init__(self, paths: Sequence[Path], size: int, *, cache: bool = False) -> None:
        """Read nothing yet.

        Args:
            size: side in pixels.
            cache: hold decoded images in memory, 3 * size**2 bytes each, in every worker process.
        """
        self.paths, self.size = list(paths), size
        self.cache: dict[int, np.ndarray] | None = {} if cache else None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """-> images (B, 3, size, size) float32 in [0, 1], channels last in memory.

        Raises:
            UserError: an image cannot be decoded.
        """
        pixels = torch.from_numpy(np.stack([self._pixels(int(index)) for index in indices]))
        return {"images": pixels.permute(0, 3, 1, 2).float().div_(255)}

    def _pixels(self, index: int) -> np.ndarray:
        """(size, size, 3) uint8."""
        if self.cache is not None and index in self.cache:
            return self.cache[index]
        try:
            pixels = np.asarray(resize_and_crop(load_image(self.paths[index]), self.size))
        except BadImage as error:
            raise UserError(f"cannot read {error}; repair or remove it") from error
        if self.cache is not None:
            self.cache[index] = pixels
        return pixels


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
    root: Path, *, size: int, load_size: int, eval_fraction: float, cache: bool
) -> tuple[ImageDataset, ImageDataset]:
    """(training, held-out) images of a folder and its subfolders.

    The held-out images are those of token data made from the folder with `split_sizes`
    [1 - eval_fraction, eval_fraction]: the prior is evaluated on images its codec has not seen.

    Args:
        size: side in pixels of the held-out images.
        load_size: of the training images, before they are cropped.

    Raises:
        UserError: no folder, no images, or too few for both sides.
    """
    paths = list_images(root)
    names = [image_name(path.relative_to(root).as_posix()) for path in paths]
    held_out = split_by_fraction(names, 1 - eval_fraction, eval_fraction) == EVAL
    train = [path for path, out in zip(paths, held_out, strict=True) if not out]
    evaluation = [path for path, out in zip(paths, held_out, strict=True) if out]
    if not train or not evaluation:
        raise UserError(
            f"{root}: of {len(paths)} images {len(train)} are left to train and "
            f"{len(evaluation)} to evaluate; add images or change training.eval_fraction"
        )
    return (
        ImageDataset(train, load_size, cache=cache),
        ImageDataset(evaluation, size, cache=cache),
    )
