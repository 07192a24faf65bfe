"""Reading labels off images with a classifier that is fitted once and kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sundae.common.files import atomic_path, make_folder
from sundae.evaluation.classifier import ImageClassifier, fit_classifier, fitting_size, scaled
from sundae.evaluation.image_sets import ImageSet
from sundae.evaluation.label_table import Labels, LabelTable, class_labels
from sundae.features.weights import cache_folder

_RECIPE = 2  # of fitting; another one makes kept classifiers void


class LabelledImages(NamedTuple):
    """Images (N, C, H, W) uint8, grey or RGB, and the N images' labels."""

    images: Tensor
    labels: Sequence[Labels]

    @classmethod
    def of(cls, images: ImageSet) -> LabelledImages:
        """All images of a set, as small as a classifier reads them, with their classes."""
        assert images.labels is not None
        return cls(small_pixels(images), class_labels(images.labels))


def small_pixels(images: ImageSet, quiet: bool = True) -> Tensor:
    """(N, 3, H, W) uint8: all images of a set, as small as a classifier reads them."""
    size = fitting_size(images.size)
    return torch.cat([scaled(batch, size) for batch in images.batches(quiet)])


@dataclass(frozen=True)
class LabelReader:
    """A classifier, and how well it does on real images that it was not fitted on.

    Attributes:
        table: names of what it reads.
        accuracy: column -> share of the held-out images that it reads right, in [0, 1].
        commonest: column -> share of the held-out images that have their most frequent value.
        num_images: it was fitted on.
        num_held_out: it was measured on.
        identity: of its data and seed.
    """

    classifier: ImageClassifier
    table: LabelTable
    accuracy: dict[str, float]
    commonest: dict[str, float]
    num_images: int
    num_held_out: int
    identity: str

    def read(self, images: Tensor) -> np.ndarray:
        """(N, C, H, W) uint8 -> (N, columns) int64, places among the values of each column."""
        return self.classifier.predict(images)

    def share_right(self, data: LabelledImages, columns: Sequence[str] | None = None) -> float:
        """Share in [0, 1] of all labels that are read right, NaN where there are none.

        Args:
            columns: the columns that count; None takes all.
        """
        counted = self.table.columns if columns is None else columns
        chosen = [column in counted for column in self.table.columns]
        labels = self.table.encode(data.labels)[:, chosen]
        right = self.read(data.images)[:, chosen] == labels
        return _share(right[labels >= 0])


def fitted_reader(
    training: LabelledImages,
    held_out: LabelledImages,
    *,
    min_support: int = 1,
    seed: int = 0,
    device: torch.device | None = None,
    quiet: bool = True,
) -> LabelReader | None:
    """A reader of all labels of the training images, from the cache where it was fitted before.

    None where there is nothing to read: no label has two values with enough images.

    Args:
        min_support: see `LabelTable.of`.
        quiet: no progress bar.

    Raises:
        UserError: the cache cannot be written to.
    """
    table = LabelTable.of(training.labels, min_support)
    if not table.columns:
        return None
    places = table.encode(training.labels), table.encode(held_out.labels)
    identity = _identity(table, seed, training.images, held_out.images, *places)
    path = make_folder(cache_folder() / "classifiers") / f"{identity}.safetensors"
    if (reader := _load(path, table, device)) is not None:
        return reader
    classifier = fit_classifier(
        training.images, places[0], table.num_values, seed=seed, device=device, quiet=quiet
    )
    right = classifier.predict(held_out.images) == places[1]
    known = places[1] >= 0
    reader = LabelReader(
        classifier,
        table,
        {name: _share(right[known[:, i], i]) for i, name in enumerate(table.columns)},
        {name: _commonest(places[1][known[:, i], i]) for i, name in enumerate(table.columns)},
        len(training.images),
        len(held_out.images),
        identity,
    )
    _save(reader, path)
    return reader


def _share(right: np.ndarray) -> float:
    return float(right.mean()) if len(right) else float("nan")


def _commonest(places: np.ndarray) -> float:
    return float(np.bincount(places).max() / len(places)) if len(places) else float("nan")


def _identity(table: LabelTable, seed: int, *data: Tensor | np.ndarray) -> str:
    digest = hashlib.blake2b(f"{_RECIPE} {seed} {table}".encode(), digest_size=16)
    for values in map(np.asarray, data):
        digest.update(f"{values.shape} {values.dtype}".encode())
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


def _save(reader: LabelReader, path: Path) -> None:
    """Weights, and in the file's metadata the rest as JSON."""
    about = {
        "size": reader.classifier.size,
        "accuracy": reader.accuracy,
        "commonest": reader.commonest,
        "num_images": reader.num_images,
        "num_held_out": reader.num_held_out,
    }
    state = {name: x.cpu().contiguous() for name, x in reader.classifier.state_dict().items()}
    with atomic_path(path) as partial:
        save_file(state, partial, metadata={"classifier": json.dumps(about)})


def _load(path: Path, table: LabelTable, device: torch.device | None) -> LabelReader | None:
    """A kept reader; None where there is none, or a damaged one, which is fitted again."""
    try:
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["classifier"])
            classifier = ImageClassifier(about.pop("size"), table.num_values)
            classifier.load_state_dict(load_file(path))
        return LabelReader(classifier.to(device).eval(), table, **about, identity=path.stem)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError):
        return None
