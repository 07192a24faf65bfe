"""What classifiers of real images read off samples and reconstructions: classes and attributes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sundae.evaluation.attributes import (
    MIN_SUPPORT,
    Combination,
    combinations,
    readable,
    share_known,
    share_preserved,
)
from sundae.evaluation.image_sets import ImageSet
from sundae.evaluation.label_reader import LabelledImages, LabelReader, fitted_reader
from sundae.evaluation.label_table import Labels, class_labels, labels_of, read_attributes
from sundae.evaluation.real_images import RealImages

_ATTRIBUTES = "attributes.json"
_MOST_BYTES = 2**31  # of images that a classifier is fitted on or measured with

Figures = dict[str, float]  # by name


@dataclass(frozen=True)
class Recognition:
    """Classifiers that were fitted on the training images and measured on the reference.

    Attributes:
        classes, attributes: None where the images have none, or they are not wanted.
        known: Combinations of attributes among the training images.
        reference: Images that the classifiers were measured on.
    """

    classes: LabelReader | None
    attributes: LabelReader | None
    known: frozenset[Combination]
    reference: ImageSet

    @classmethod
    def of(
        cls, real: RealImages, wanted: Collection[str], *, device: torch.device, quiet: bool = True
    ) -> Recognition:
        """Fit the classifiers, or read those that were fitted on the same images before.

        Args:
            wanted: "classes" and "attributes", or one of them.

        Raises:
            UserError: An image cannot be read, or the cache of classifiers not be written.
        """
        assert real.training is not None
        training, reference = (_affordable(side) for side in (real.training, real.reference))
        classes = attributes = None
        known: frozenset[Combination] = frozenset()
        if "classes" in wanted and training.labels is not None and reference.labels is not None:
            data = [_with_classes(side, side.labels) for side in (training, reference)]
            if len(set(training.labels)) > 1:
                classes = fitted_reader(*data, device=device, quiet=quiet)
        if "attributes" in wanted and has_attributes(real):
            data = [_with_attributes(side) for side in (training, reference)]
            attributes = fitted_reader(*data, min_support=MIN_SUPPORT, device=device, quiet=quiet)
            known = frozenset(_combinations(attributes, training))
        return cls(classes, attributes, known, reference)

    def samples(self, images: ImageSet) -> Figures:
        """Share of samples read as their class; share of combinations that training images have."""
        figures: Figures = {}
        if self.classes is not None and images.labels is not None:
            labelled = _with_classes(images, images.labels)
            figures["class_accuracy"] = self.classes.share_right(labelled)
        return figures | self._known(images)

    def floor(self) -> Figures:
        """The same of the reference images."""
        found = {} if self.classes is None else {"class_accuracy": self.classes.accuracy["class"]}
        return found | self._known(self.reference)

    def reconstructions(self, originals: ImageSet, decoded: ImageSet) -> tuple[Figures, Figures]:
        """Shares of classes and attributes read right: of reconstructions, of their originals."""
        after: Figures = {}
        before: Figures = {}
        if self.classes is not None and originals.labels is not None:
            for figures, images in ((before, originals), (after, decoded)):
                labelled = _with_classes(images, originals.labels)
                figures["class_accuracy"] = self.classes.share_right(labelled)
        if self.attributes is not None and readable(self.attributes):
            labelled = _with_attributes(originals)
            shares = share_preserved(self.attributes, labelled, decoded.pixels())
            before["attribute_accuracy"], after["attribute_accuracy"] = shares
        return after, before

    def about(self) -> dict[str, object]:
        """The classifiers, for the protocol."""
        found: dict[str, object] = {}
        for name, reader in (("classes", self.classes), ("attributes", self.attributes)):
            if reader is not None:
                found[name] = {
                    "fitted on": reader.num_images,
                    "measured on": reader.num_held_out,
                    "held-out accuracy": reader.accuracy,
                    "identity": reader.identity,
                }
        if self.attributes is not None:
            names = set(readable(self.attributes))
            found["unreadable attributes"] = sorted(set(self.attributes.accuracy) - names)
        return found

    def _known(self, images: ImageSet) -> Figures:
        if self.attributes is None or not readable(self.attributes):
            return {}
        if (images.labels is None) != (self.reference.labels is None):
            return {}  # which attributes an image has depends on its class
        found = _combinations(self.attributes, images)
        return {"known_combinations": share_known(found, list(self.known))}


def has_attributes(real: RealImages) -> bool:
    """Whether attributes lie beside the images of both sides."""
    sides = (real.reference, real.training)
    return all(side is not None and _attributes_file(side) is not None for side in sides)


def _attributes_file(images: ImageSet) -> Path | None:
    path = Path(images.about.get("folder", "")) / _ATTRIBUTES
    return path if images.names is not None and path.is_file() else None


def _with_classes(images: ImageSet, labels: np.ndarray | None) -> LabelledImages:
    return LabelledImages(images.pixels(), class_labels([] if labels is None else labels))


def _combinations(reader: LabelReader, images: ImageSet) -> list[Combination]:
    classes = None if images.labels is None else images.labels.tolist()
    return combinations(reader, images.pixels(), classes)


def _with_attributes(images: ImageSet) -> LabelledImages:
    path = _attributes_file(images)
    assert path is not None and images.names is not None
    labels: list[Labels] = labels_of(images.names, read_attributes(path))
    return LabelledImages(images.pixels(), labels)


def _affordable(images: ImageSet) -> ImageSet:
    """The first of the images, as many as fit into memory."""
    return images[: max(2, _MOST_BYTES // int(np.prod((3, *images.size))))]
