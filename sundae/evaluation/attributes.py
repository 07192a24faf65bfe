"""Figures of attributes, which a classifier reads off images: are they preserved, are they new?"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from torch import Tensor

from sundae.evaluation.label_reader import LabelledImages, LabelReader

MIN_SUPPORT = 20  # training images that a value of an attribute has

Combination = tuple[str, tuple[int, ...]]  # of a class: places among the attributes' values

_ACCURACY = 0.9  # of an attribute that counts as readable


def readable(reader: LabelReader) -> list[str]:
    """Attributes that the reader reads right in 9 of 10 held-out images.

    Of one that nearly always has the same value, it also has to avoid half of the errors of naming
    always that value.
    """
    return [
        name
        for name, accuracy in reader.accuracy.items()
        if accuracy >= max(_ACCURACY, (1 + reader.commonest[name]) / 2)
    ]


def share_preserved(
    reader: LabelReader, originals: LabelledImages, decoded: Tensor
) -> tuple[float, float]:
    """How well a codec preserves readable attributes: shares in [0, 1] of right readings.

    Args:
        originals: held-out images.
        decoded: (N, C, H, W) uint8, the same images encoded and decoded.

    Returns:
        Of the originals, and of what was decoded.
    """
    columns = readable(reader)
    return reader.share_right(originals, columns), reader.share_right(
        LabelledImages(decoded, originals.labels), columns
    )


def combinations(
    reader: LabelReader, images: Tensor, classes: Sequence[str] | None = None
) -> list[Combination]:
    """The combination of readable attributes that each image shows, as read off the image.

    Args:
        images: (N, C, H, W) uint8.
        classes: of the images; of the attributes that belong to classes, an image has those of its
            own only.
    """
    names = [""] * len(images) if classes is None else [str(name) for name in classes]
    columns = {name: _columns_of(reader, name) for name in set(names)}
    return [(name, tuple(row[columns[name]])) for name, row in zip(names, reader.read(images))]


def _columns_of(reader: LabelReader, name: str) -> list[int]:
    """Places of the readable columns of a class, and of those that belong to none."""
    known = set(readable(reader))
    of_class = {column for column in known if column.partition("/")[0] in (name, column)}
    return [place for place, column in enumerate(reader.table.columns) if column in of_class]


def share_known(images: Sequence[Combination], training: Collection[Combination]) -> float:
    """Share in [0, 1] of combinations that a training image has; compare with held-out images."""
    known = set(training)
    return float(np.mean([combination in known for combination in images]))
