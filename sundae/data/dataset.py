"""Packed token data, read for training."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sundae.common.errors import UserError
from sundae.data.format import MANIFEST_NAME, SHARDS_NAME, TOKENS_NAME, load_array, read_manifest

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Latents:
    """Token grids of one data set. Pickles by path when they are memory-mapped, not by value.

    Attributes:
        root: the folder they came from.
        tokens: (rows, h, w) unsigned integers, memory-mapped.
        images: (rows,) int64 index of the image that each row shows; mirror images share it.
        sources: one relative path per image, in natural order.
        labels: (images,) int64 class index per image, or None.
        classes: class names, indexed by label, or None.
        codebook_size: tokens are in [0, codebook_size).
        codec_identity: identity of the codec whose tokens these are.
    """

    root: Path
    tokens: np.ndarray
    images: np.ndarray
    sources: tuple[str, ...]
    labels: np.ndarray | None
    classes: tuple[str, ...] | None
    codebook_size: int
    codec_identity: str

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.tokens)

    @property
    def latent_shape(self) -> tuple[int, int]:
        """(h, w) of one token grid."""
        return self.tokens.shape[1], self.tokens.shape[2]

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if isinstance(self.tokens, np.memmap):
            state["tokens"] = self.tokens.filename
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if not isinstance(state["tokens"], np.ndarray):
            state["tokens"] = load_array(Path(state["tokens"]))
        self.__dict__.update(state)


class TokenDataset(Dataset[Batch]):
    """Some rows of a data set. Give it to a DataLoader together with `collate_batched`."""

    def __init__(self, latents: Latents, rows: np.ndarray | None = None) -> None:
        """rows: (n,) int64 indices into latents.tokens; None takes all of them."""
        self.latents = latents
        self.rows = np.arange(len(latents)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Batch:
        """-> tokens (h*w,) int64 in raster order and, if there are classes, classes () int64."""
        batch = self.__getitems__([index])
        return {name: values[0] for name, values in batch.items()}

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """As __getitem__ for many at once: tokens (B, h*w) int64 and classes (B,) int64."""
        rows = self.rows[np.asarray(indices)]
        tokens = self.latents.tokens[rows].reshape(len(rows), -1).astype(np.int64)
        batch = {"tokens": torch.from_numpy(tokens)}
        if self.latents.labels is not None:
            labels = self.latents.labels[self.latents.images[rows]]
            batch["classes"] = torch.from_numpy(labels)
        return batch


def collate_batched(batch: Any) -> Batch:
    """A DataLoader's collate_fn for data that `__getitems__` has already batched."""
    return batch


def open_latents(root: Path) -> Latents:
    """Opens the packed latents of a folder.

    Raises:
        UserError: the folder is missing, unfinished, contradicts itself, or holds something else.
    """
    if not root.is_dir():
        raise UserError(f"the data folder {root} does not exist; correct the path or generate it")
    if not (root / MANIFEST_NAME).exists():
        raise UserError(_without_manifest(root))
    manifest, path = read_manifest(root), root / TOKENS_NAME
    try:
        tokens = load_array(path)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read ({error}); generate the data again") from error
    expected = (manifest.rows, *manifest.latent_shape)
    if tokens.shape != expected or tokens.dtype.kind != "u":
        found = f"{tokens.dtype} {tokens.shape}"
        raise UserError(f"{path} is {found}, {MANIFEST_NAME} says {expected}; generate it again")
    if not len(tokens):
        raise UserError(f"{root} holds no images; generate the data again")
    return Latents(
        root=root,
        tokens=tokens,
        images=np.arange(manifest.rows) // (2 if manifest.mirrored else 1),
        sources=manifest.sources,
        labels=None if manifest.labels is None else np.array(manifest.labels, dtype=np.int64),
        classes=manifest.classes,
        codebook_size=manifest.codebook_size,
        codec_identity=manifest.codec,
    )


def _without_manifest(root: Path) -> str:
    """Why a folder cannot be opened that has no latents.json."""
    if (root / TOKENS_NAME).exists() or (root / SHARDS_NAME).exists():
        return f"{root} is unfinished: run the command that makes it again to go on"
    packed = sorted(path.parent.name for path in root.glob(f"*/{MANIFEST_NAME}"))
    if packed:
        return f"{root} holds the data sets {' and '.join(packed)}: name one as the data folder"
    if any(root.glob("*.npy")) or any(root.glob("*/*.npy")):
        return (
            f"{root} holds one .npy per image, which is no longer read: encode the images again "
            "with generate-latents.py"
        )
    return f"{root} holds no latents: encode a folder of images with generate-latents.py"


def check_agreement(
    latents: Latents,
    *,
    vocab_size: int,
    latent_shape: tuple[int, int],
    num_classes: int | None,
    codec_identity: str | None = None,
) -> None:
    """Checks that a data set is what a run expects, before any work.

    Args:
        latent_shape: (h, w) that the network is built for.
        num_classes: classes that the network knows; None when it is unconditional.
        codec_identity: of the codec that decodes samples; None leaves it unchecked.

    Raises:
        UserError: naming both values and the key to change.
    """
    root, classes = latents.root, latents.classes and len(latents.classes)
    if latents.latent_shape != latent_shape:
        found, expected = list(latents.latent_shape), list(latent_shape)
        keys = f"set the latent_shape to {found} and data.sequence_length to their product"
        raise UserError(f"{root} has latent shape {found}, the run file says {expected}: {keys}")
    if latents.codebook_size != vocab_size:
        raise UserError(
            f"{root} has a codebook of {latents.codebook_size}, data.vocab_size is {vocab_size}: "
            f"set data.vocab_size = {latents.codebook_size}"
        )
    if np.iinfo(latents.tokens.dtype).max >= vocab_size <= (largest := int(latents.tokens.max())):
        raise UserError(
            f"{root} holds token {largest}, data.vocab_size is {vocab_size}: "
            "generate the data again"
        )
    if num_classes is not None and classes != num_classes:
        remedy = "net.conditional = false" if classes is None else f"net.num_classes = {classes}"
        raise UserError(
            f"{root} has {classes or 'no'} classes, net.num_classes is {num_classes}: set {remedy}"
        )
    if codec_identity and latents.codec_identity != codec_identity:
        raise UserError(
            f"{root} was encoded by codec {latents.codec_identity}, vqgan.checkpoint is codec "
            f"{codec_identity}: set vqgan.checkpoint to the one that made the data"
        )
