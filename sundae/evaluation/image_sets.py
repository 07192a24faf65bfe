"""Sets of images of one size, read when they are needed: from files, tokens or memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from sundae.codec.interface import Codec
from sundae.common.errors import UserError
from sundae.common.images import (
    image_size,
    list_images,
    load_image,
    refusing_bad_images,
    resize_and_crop,
)
from sundae.data.dataset import TokenDataset

Size = tuple[int, int]

BATCH = 64
# The order in which images are used has a seed of its own, so that samples of several seeds are
# compared with the same images.
_ORDER_SEED = 0


@dataclass(frozen=True)
class ImageSet:
    """Images of one size.

    Attributes:
        title: What they are, in a few words.
        size: (height, width) in pixels.
        rows: (N,) int64, what `read` takes for each image.
        read: Rows (B,) -> images (B, 3, height, width) uint8.
        labels: (N,) names of the images' classes; None where they have none.
        names: (N,) paths below their folder without suffix; None where they are no files.
        about: Where they are from, for the protocol.
    """

    title: str
    size: Size
    rows: np.ndarray
    read: Callable[[np.ndarray], Tensor]
    labels: np.ndarray | None = None
    names: np.ndarray | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> ImageSet:
        """Some of the images, by a slice or an array of positions."""
        labels, names = (None if v is None else v[index] for v in (self.labels, self.names))
        return replace(self, rows=self.rows[index], labels=labels, names=names)

    def shuffled(self) -> ImageSet:
        """All images in an order that is drawn at random, the same for sets of the same length."""
        return self[np.random.default_rng(_ORDER_SEED).permutation(len(self))]

    def batches(self, quiet: bool = True, size: int = BATCH) -> Iterator[Tensor]:
        """Images (B, 3, height, width) uint8, with a progress bar unless `quiet`."""
        starts = range(0, len(self), size)
        for start in tqdm(starts, self.title, unit="batch", disable=True if quiet else None):
            yield self.read(self.rows[start : start + size])

    def pixels(self) -> Tensor:
        """All images, (N, 3, height, width) uint8."""
        return torch.cat(list(self.batches()))


def to_bytes(images: Tensor) -> Tensor:
    """Images (N, 3, H, W) float in [0, 1] as uint8, rounded as a PNG holds them."""
    return (images.clamp(0, 1) * 255).round().byte()


def images_in_memory(images: Tensor, title: str, **details: Any) -> ImageSet:
    """Images (N, 3, H, W) uint8."""
    size = (images.shape[2], images.shape[3])
    return ImageSet(title, size, np.arange(len(images)), lambda rows: images[rows], **details)


def images_of_folder(
    root: Path, size: Size | None, title: str, paths: Sequence[Path] | None = None
) -> ImageSet:
    """The images below a folder; where each is in a sub-folder, these are the classes.

    Args:
        size: (height, width) that images are scaled to cover and cropped to; None takes theirs.
        paths: Those of the images to take; all unless given.

    Raises:
        UserError: There is no image, or without `size` they have several; an image that cannot be
            read raises it when it is.
    """
    paths = list_images(root) if paths is None else paths
    height, width = size or _common_size(paths)

    def read(rows: np.ndarray) -> Tensor:
        with refusing_bad_images():
            images = [
                np.asarray(resize_and_crop(load_image(paths[row]), (height, width))) for row in rows
            ]
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()

    relative = [path.relative_to(root) for path in paths]
    in_classes = all(len(path.parts) > 1 for path in relative)
    sources = [(path.as_posix(), _num_bytes(root / path)) for path in relative]
    return ImageSet(
        title,
        (height, width),
        np.arange(len(paths)),
        read,
        labels=np.array([path.parts[0] for path in relative]) if in_classes else None,
        names=np.array([path.with_suffix("").as_posix() for path in relative]),
        about={
            "folder": str(root),
            "images in all": len(paths),
            "file formats": sorted({path.suffix.lower() for path in paths}),
            "resize": "none where an image has the size, else Lanczos to cover it, centre crop",
            "identity": _identity(repr(sources).encode()),
        },
    )


def images_of_tokens(data: TokenDataset, codec: Codec, title: str) -> ImageSet:
    """The images that token grids of a data set decode to."""
    latents = data.latents
    height, width = (side * codec.factor for side in latents.latent_shape)

    def read(rows: np.ndarray) -> Tensor:
        tokens = torch.from_numpy(latents.tokens[rows].astype(np.int64))
        return to_bytes(codec.decode(tokens)).cpu()

    labels = None
    if latents.labels is not None and latents.classes is not None:
        labels = np.array(latents.classes)[latents.labels[latents.images[data.rows]]]
    return ImageSet(
        title,
        (height, width),
        data.rows,
        read,
        labels=labels,
        about={
            "folder": str(latents.root),
            "images in all": len(data.rows),
            "codec": latents.codec_identity,
            "identity": _identity(np.ascontiguousarray(latents.tokens[data.rows]).tobytes()),
        },
    )


def _common_size(paths: Sequence[Path]) -> Size:
    """(height, width) of images that are all equally large."""
    with refusing_bad_images():
        first = image_size(paths[0])
        for path in paths[1:]:
            if (size := image_size(path)) != first:
                raise UserError(
                    f"{path} has {size[0]}x{size[1]} pixels, {paths[0]} {first[0]}x{first[1]}; "
                    "pass --size, to which all are scaled and cropped"
                )
    return first


def _num_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:  # a link that leads nowhere
        raise UserError(f"cannot read {path}: {error.strerror}; repair or remove it") from error


def _identity(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()
