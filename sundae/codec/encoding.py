"""A folder of images turned into packed latents by a codec."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sundae.codec.interface import Codec
from sundae.common import memory
from sundae.common.errors import UserError
from sundae.common.images import BadImage, list_images, load_image, resize_and_crop
from sundae.common.locking import folder_lock
from sundae.common.naming import natural_key
from sundae.data.format import SKIPPED_NAME, Manifest, token_dtype
from sundae.data.writer import Settings, ShardWriter

Batch = tuple[Tensor, dict[int, str]]


@dataclass(frozen=True)
class EncodingReport:
    """What generate_latents has done.

    Attributes:
        rows: token grids written, mirror images included.
        skipped: reason by path, of the images that could not be read.
        already_done: images that an earlier, interrupted run had dealt with.
    """

    num_images: int
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
    num_workers: int = 0,
    mirror: bool = True,
    use_class: bool = False,
    strict: bool = False,
    overwrite: bool = False,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> EncodingReport:
    """Encodes every image below a folder; killed and called again, it goes on.

    Args:
        codec: on `device` already.
        size: (height, width) in pixels that images are scaled to cover and centre cropped to;
            None takes the resolution that the codec was trained for, where it has one.
        num_workers: processes that read images; 0 reads in this one.
        mirror: follow each image's row by the row of its mirror image.
        use_class: take the sub-folders of dataset_in as classes.
        strict: stop at an image that cannot be read instead of skipping it.
        overwrite: drop the contents of latents_out.
        progress: called with (images done, images in all) first, and after every batch.

    Raises:
        UserError: no images, an empty class, an impossible size, or latents_out is finished, was
            begun with other settings, is being written by another process, or cannot be written to.
    """
    size = _checked_size(codec, size)
    if batch_size < 1:
        raise UserError(f"--batch-size is {batch_size}, expected at least 1")
    if num_workers < 0:
        raise UserError(f"--nb-workers is {num_workers}, expected at least 0")
    planned = _plan(codec, dataset_in, size, mirror, use_class)
    total = len(planned.sources)
    settings = _settings(planned, getattr(codec, "precision", None), size, batch_size)
    with folder_lock(latents_out):
        writer = ShardWriter(latents_out, settings, overwrite=overwrite)
        already_done = min(total, writer.num_shards * batch_size)
        progress(already_done, total)
        batches = _ImageBatches(dataset_in, planned.sources, size, batch_size)
        rest = range(writer.num_shards, len(batches))
        for images, skipped in DataLoader(
            batches, batch_size=None, sampler=rest, num_workers=num_workers
        ):
            if strict and skipped:
                index, reason = next(iter(skipped.items()))
                raise UserError(
                    f"cannot read {dataset_in / planned.sources[index]}: {reason}; "
                    "repair it, or leave out --strict to skip it, and run again"
                )
            writer.append(_encode(codec, images.to(device), mirror), skipped)
            progress(min(total, writer.num_shards * batch_size), total)
        rows, skipped = _finish(writer, planned, dataset_in)
    return EncodingReport(total, rows, skipped, already_done)


def _plan(
    codec: Codec, root: Path, size: tuple[int, int], mirror: bool, use_class: bool
) -> Manifest:
    """What the latents of a folder are if every image can be read."""
    sources = tuple(path.relative_to(root).as_posix() for path in list_images(root))
    classes, labels = _classes_of(sources, root) if use_class else (None, None)
    return Manifest(
        codec=codec.identity,
        codebook_size=codec.codebook_size,
        latent_shape=(size[0] // codec.factor, size[1] // codec.factor),
        mirrored=mirror,
        classes=classes,
        sources=sources,
        labels=labels,
        origin=f"images scaled and centre cropped to {size[0]}x{size[1]}",
    )


def _classes_of(sources: tuple[str, ...], root: Path) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names of the sub-folders in natural order, and the index of each image's."""
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
        raise UserError(f"class '{name}' has no images: add some to {root / name} or remove it")
    return classes, labels


def _checked_size(codec: Codec, size: tuple[int, int] | None) -> tuple[int, int]:
    if size is None:
        resolution = getattr(codec, "resolution", None)
        if resolution is None:
            raise UserError("the codec has no resolution of its own; pass --size, as in --size 256")
        size = (resolution, resolution)
    if any(side < 1 or side % codec.factor for side in size):
        height, width = size
        raise UserError(
            f"--size is {height}x{width}, expected multiples of {codec.factor}, the codec's factor"
        )
    return size


def _settings(
    planned: Manifest, precision: str | None, size: tuple[int, int], batch_size: int
) -> Settings:
    """All that decides the bytes of the result; an interrupted run goes on with the same only."""
    sources = "\n".join(planned.sources).encode("utf-8", "surrogateescape")
    return {
        "codec": planned.codec,
        "precision": precision,
        "size": size,
        "batch_size": batch_size,  # rounding inside a codec may depend on it
        "mirrored": planned.mirrored,
        "classes": planned.classes,
        "list_of_images": hashlib.blake2b(sources, digest_size=16).hexdigest(),
    }


class _ImageBatches(Dataset[Batch]):
    """batch index -> (readable images (n, 3, H, W) uint8, reason by index of unreadable ones)."""

    def __init__(
        self, root: Path, sources: tuple[str, ...], size: tuple[int, int], batch_size: int
    ) -> None:
        self.root, self.sources, self.size, self.batch_size = root, sources, size, batch_size

    def __len__(self) -> int:
        return -(-len(self.sources) // self.batch_size)

    def __getitem__(self, batch: int) -> Batch:
        images, skipped = [np.empty((0, *self.size, 3), np.uint8)], {}
        start = batch * self.batch_size
        for index, source in enumerate(self.sources[start : start + self.batch_size], start):
            try:
                image = load_image(self.root / source)
                images.append(np.array(resize_and_crop(image, self.size))[None])
            except BadImage as error:
                skipped[index] = error.reason
        return torch.from_numpy(np.concatenate(images)).permute(0, 3, 1, 2), skipped


def _encode(codec: Codec, images: Tensor, mirror: bool) -> np.ndarray:
    """(B, 3, H, W) uint8 -> rows (B or 2B, h, w), mirror images after their images."""
    if not len(images):
        return np.empty((0, 0, 0), np.uint8)
    pixels = images.float() / 255
    views = [pixels, pixels.flip(-1)] if mirror else [pixels]
    size = max(1, memory.ENCODED_PIXELS // pixels[0, 0].numel())
    tokens = torch.stack(
        [torch.cat([codec.encode(part) for part in view.split(size)]) for view in views], dim=1
    )
    return tokens.flatten(0, 1).cpu().numpy().astype(token_dtype(codec.codebook_size))


def _finish(writer: ShardWriter, planned: Manifest, root: Path) -> tuple[int, dict[str, str]]:
    """Joins the shards; returns the rows, and the reason of each image that could not be read."""
    by_index = writer.skipped()
    skipped = {planned.sources[index]: reason for index, reason in by_index.items()}
    report = "".join(f"{source}\t{reason}\n" for source, reason in skipped.items())
    readable = [index for index in range(len(planned.sources)) if index not in by_index]
    if not readable:
        writer.finish(None, report)
        listed = writer.root / SKIPPED_NAME
        raise UserError(f"none of the images in {root} could be read; see {listed}")
    manifest = replace(
        planned,
        sources=tuple(planned.sources[index] for index in readable),
        labels=planned.labels and tuple(planned.labels[index] for index in readable),
    )
    writer.finish(manifest, report)
    return manifest.rows, skipped
