"""Labels of images by name, as columns of numbers: the class, or attributes of what is shown."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sundae.common.errors import UserError

OTHER = "other values"  # what rare values are grouped under

Labels = Mapping[str, str]  # column -> value, of one image


@dataclass(frozen=True)
class LabelTable:
    """Columns of labels and their values, each of which enough images have.

    Attributes:
        columns: name -> values; the last one is `OTHER` where there are rare ones.
    """

    columns: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, images: Sequence[Labels], min_support: int = 1) -> LabelTable:
        """All columns with at least two values.

        Args:
            min_support: images that a value has; rarer ones count as one, if together they have as
                many.
        """
        counts: dict[str, Counter[str]] = {}
        for labels in images:
            for column, value in labels.items():
                counts.setdefault(column, Counter())[value] += 1
        columns = {name: _frequent(counts[name], min_support) for name in sorted(counts)}
        return cls({name: values for name, values in columns.items() if len(values) > 1})

    @property
    def num_values(self) -> list[int]:
        """Number of values of each column."""
        return [len(values) for values in self.columns.values()]

    def encode(self, images: Sequence[Labels]) -> np.ndarray:
        """(N, columns) int64: places among the values, -1 where an image has none of them."""
        places = [
            (name, {value: place for place, value in enumerate(values)})
            for name, values in self.columns.items()
        ]
        rows = [
            [known.get(labels[name], known.get(OTHER, -1)) if name in labels else -1
             for name, known in places]
            for labels in images
        ]  # fmt: skip
        return np.array(rows, dtype=np.int64).reshape(len(images), len(places))


def _frequent(counts: Counter[str], min_support: int) -> tuple[str, ...]:
    values = sorted(value for value, count in counts.items() if count >= min_support)
    num_rare = sum(counts.values()) - sum(counts[value] for value in values)
    return (*values, OTHER) if num_rare >= min_support else tuple(values)


def class_labels(classes: Iterable[str]) -> list[Labels]:
    """The class of each image as its only label."""
    return [{"class": str(name)} for name in classes]


def read_attributes(path: Path) -> dict[str, Labels]:
    """Attributes of images, by their path without suffix, from the file that get-images.py writes.

    In sub-folders, which are classes, a column belongs to one class: "CLASS/eyes" for the eyes.

    Args:
        path: JSON, {"attributes": {"CLASS/NAME": {"eyes": "round", ...}, ...}}.

    Raises:
        UserError: the file is missing or something else.
    """
    try:
        attributes = json.loads(path.read_text(encoding="utf-8"))["attributes"]
        return {
            name: {_column(name, key): str(value) for key, value in labels.items()}
            for name, labels in attributes.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} holds no attributes of images ({type(error).__name__}: {error}); make the "
            "images again with get-images.py"
        ) from error


def labels_of(names: Iterable[str], attributes: Mapping[str, Labels]) -> list[Labels]:
    """The labels of each image, by its name; UserError for an image that is not among them."""
    names = [str(name) for name in names]
    if missing := [name for name in names if name not in attributes]:
        raise UserError(
            f"{len(missing)} of {len(names)} images have no attributes, {missing[0]} for one; make "
            "the images again with get-images.py"
        )
    return [attributes[name] for name in names]


def _column(name: str, key: str) -> str:
    folder, slash, _ = name.partition("/")
    return folder + slash + key if slash else key
