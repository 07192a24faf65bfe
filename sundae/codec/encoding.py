"""A folder of pictures turned into packed latents by a codec."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sundae.codec.interface import Codec
from sundae.common.errors import UserError
from sundae.common.images import BadImage, list_images, load_image, resize_and_crop
from sundae.common.naming import natural_key
from sundae.data.format import Manifest
from sundae.data.resumable_writer import SKIPPED_NAME, ResumableWriter, Settings


@dataclass(frozen=True)
class PictureFolder:
    """Pictures to encode.

    Attributes:
        root: the folder.
        sources: paths relative to it, in natural order.
        classes: names of its sub-folders in natural order, or None.
        labels: class index of each source, or None.
    """

    root: Path
    sources: tuple[str, ...]
    classes: tuple[str, ...] | None
    labels: tuple[int, ...] | None


@dataclass(frozen=True)
class EncodingReport:
    """What generate_latents did.

    Attributes:
        pictures: pictures found.
        rows: token grids written, mirror images included.
        skipped: reason by path, of the pictures that could not be read.
        already_done: pictures that an earlier, interrupted run had dealt with.
    """

    pictures: int
    rows: int
    skipped: dict[str, str]
    already_done: int


def generate_latents(
    codec: Codec,
    dataset_in: Path,
    latents_out: Path,
    *,
    size: tuple[int, int] | None = None,
    batch_size: int = 32,
    nb_workers: int = 0,
    mirror: bool = True,
    use_class: bool = False,
    strict: bool = False,
    overwrite: bool = False,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> EncodingReport:
    """Encodes every picture below a folder; killed and called again, it goes on.

    Args:
        codec: on `device` already.
        dataset_in: pictures, flat or in folders.
        latents_out: folder to create.
        size: (height, width) in pixels that pictures are scaled to cover and centre cropped to;
            None takes the resolution that the codec was trained for, where it knows that.
        batch_size: pictures encoded at once.
        nb_workers: processes that read pictures; 0 reads in this one.
        mirror: follow each picture's row by the row of its mirror image.
        use_class: take the sub-folders of dataset_in as classes.
        strict: stop at a picture that cannot be read instead of skipping it.
        overwrite: drop what latents_out holds.
        device: where to encode.
        progress: called with (pictures done, pictures in all) first, and after every batch.

    Raises:
        UserError: no pictures, an empty class, an impossible size, or latents_out is finished, was
            begun with other settings, or cannot be written to.
    """
    folder = list_pictures(dataset_in, use_class)
    height, width = _checked_size(codec, size)
    if batch_size < 1:
        raise UserError(f"--batch-size is {batch_size}, expected at least 1")
    if nb_workers < 0:
        raise UserError(f"--nb-workers is {nb_workers}, expected at least 0")
    settings = _settings(codec, folder, (height, width), batch_size, mirror)
    with ResumableWriter(latents_out, settings, overwrite=overwrite) as writer:
        already_done = writer.pictures_done
        progress(already_done, len(folder.sources))
        for batch in _read_batches(folder, (height, width), batch_size, nb_workers, already_done):
            if strict:
                _refuse_unreadable(folder, batch.skipped)
            tokens = _encode(codec, batch.images.to(device), mirror)
            writer.append(tokens, batch.pictures, batch.skipped)
            progress(writer.pictures_done, len(folder.sources))
        return _finish(writer, folder, codec, (height, width), mirror, already_done)


def list_pictures(root: Path, use_class: bool) -> PictureFolder:
    """Lists the pictures below a folder in natural order.

    Raises:
        UserError: there are none; with use_class also an empty class or a picture of no class.
    """
    sources = tuple(path.relative_to(root).as_posix() for path in list_images(root))
    if not use_class:
        return PictureFolder(root, sources, None, None)
    outside = [source for source in sources if "/" not in source]
    if outside:
        raise UserError(f"{root / outside[0]} belongs to no class: put it into a sub-folder")
    folders = [p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")]
    classes = tuple(sorted(folders, key=natural_key))
    label = {name: index for index, name in enumerate(classes)}
    labels = tuple(label[source.split("/")[0]] for source in sources)
    empty = set(range(len(classes))) - set(labels)
    if empty:
        name = classes[min(empty)]
        raise UserError(f"class '{name}' has no pictures: add some to {root / name} or remove it")
    return PictureFolder(root, sources, classes, labels)


def _checked_size(codec: Codec, size: tuple[int, int] | None) -> tuple[int, int]:
    if size is None:
        resolution = getattr(codec, "resolution", None)
        if resolution is None:
            raise UserError(
                "the codec does not say its resolution; pass --size, such as --size 256"
            )
        size = (resolution, resolution)
    if any(side < 1 or side % codec.factor for side in size):
        height, width = size
        raise UserError(
            f"--size is {height}x{width}, expected multiples of {codec.factor}, the codec's factor"
        )
    return size


def _settings(
    codec: Codec, folder: PictureFolder, size: tuple[int, int], batch_size: int, mirror: bool
) -> Settings:
    """What decides the bytes that come out; an interrupted run only goes on with the same."""
    return {
        "codec": codec.identity,
        "precision": getattr(codec, "precision", None),
        "codebook_size": codec.codebook_size,
        "latent_shape": [side // codec.factor for side in size],
        "size": size,
        "batch_size": batch_size,  # rounding inside a codec may depend on it
        "mirrored": mirror,
        "classes": folder.classes,
        "list_of_pictures": _digest(folder.sources),
    }


def _digest(sources: Sequence[str]) -> str:
    joined = "\n".join(sources).encode("utf-8", "surrogateescape")
    return hashlib.blake2b(joined, digest_size=16).hexdigest()


class _Batch(NamedTuple):
    images: Tensor  # (readable, 3, H, W) uint8
    pictures: int
    skipped: dict[int, str]


class _Pictures(Dataset[tuple[int, Tensor | str]]):
    """index -> (index, picture (3, H, W) uint8, or why it cannot be read)."""

    def __init__(self, folder: PictureFolder, size: tuple[int, int]) -> None:
        self.folder = folder
        self.size = size

    def __getitem__(self, index: int) -> tuple[int, Tensor | str]:
        try:
            image = load_image(self.folder.root / self.folder.sources[index])
        except BadImage as error:
            return index, error.reason
        pixels = np.array(resize_and_crop(image, self.size))
        return index, torch.from_numpy(pixels).permute(2, 0, 1)


def _collate(items: list[tuple[int, Tensor | str]]) -> _Batch:
    images = [image for _, image in items if isinstance(image, Tensor)]
    skipped = {index: reason for index, reason in items if isinstance(reason, str)}
    return _Batch(torch.stack(images) if images else torch.empty(0), len(items), skipped)


def _read_batches(
    folder: PictureFolder, size: tuple[int, int], batch_size: int, nb_workers: int, start: int
) -> Iterable[_Batch]:
    """The batches from picture `start` on, cut at the same places wherever a run starts."""
    total = len(folder.sources)
    batches = [list(range(i, min(i + batch_size, total))) for i in range(start, total, batch_size)]
    return DataLoader(
        _Pictures(folder, size), batch_sampler=batches, num_workers=nb_workers, collate_fn=_collate
    )


def _refuse_unreadable(folder: PictureFolder, skipped: dict[int, str]) -> None:
    for index, reason in skipped.items():
        raise UserError(
            f"cannot read {folder.root / folder.sources[index]}: {reason}; "
            "repair it, or leave out --strict to skip it, and run again"
        )


def _encode(codec: Codec, pixels: Tensor, mirror: bool) -> np.ndarray:
    """pixels: (B, 3, H, W) uint8 -> rows (B or 2B, h, w), mirror images after their pictures."""
    if not len(pixels):
        return np.empty((0, 0, 0))
    images = pixels.float() / 255
    views = [images, images.flip(-1)] if mirror else [images]
    tokens = torch.stack([codec.encode(view) for view in views], dim=1)
    return tokens.flatten(0, 1).cpu().numpy()


def _finish(
    writer: ResumableWriter,
    folder: PictureFolder,
    codec: Codec,
    size: tuple[int, int],
    mirror: bool,
    already_done: int,
) -> EncodingReport:
    skipped = {folder.sources[index]: reason for index, reason in writer.skipped.items()}
    report = "".join(f"{source}\t{reason}\n" for source, reason in skipped.items())
    if not writer.rows:
        writer.give_up(report)
        listed = writer.root / SKIPPED_NAME
        raise UserError(f"none of the pictures in {folder.root} could be read; see {listed}")
    kept = [index for index in range(len(folder.sources)) if index not in writer.skipped]
    manifest = Manifest(
        codec=codec.identity,
        codebook_size=codec.codebook_size,
        latent_shape=(size[0] // codec.factor, size[1] // codec.factor),
        mirrored=mirror,
        classes=folder.classes,
        sources=tuple(folder.sources[index] for index in kept),
        labels=folder.labels and tuple(folder.labels[index] for index in kept),
        origin=f"pictures scaled and centre cropped to {size[0]}x{size[1]}",
    )
    writer.finish(manifest, report)
    return EncodingReport(len(folder.sources), manifest.rows, skipped, already_done)
