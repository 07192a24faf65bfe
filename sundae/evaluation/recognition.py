"""What classifiers of real images read off samples and reconstructions: classes and attributes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from sundae.evaluation.attributes import (
    MIN_SUPPORT,
    Combination,
    combinations,
    readable,
    share_known,
    share_preserved,
)
from sundae.evaluation.image_sets import ImageSet
from sundae.evaluation.label_reader import (
    LabelledImages,
    LabelReader,
    fitted_reader,
    small_pixels,
)
from sundae.evaluation.label_table import Labels, class_labels, labels_of, read_attributes
from sundae.evaluation.real_images import RealImages

_ATTRIBUTES = "attributes.json"
_MOST = 100_000  # images that a classifier is fitted on or measured with

Figures = dict[str, float]  # by name


@dataclass(frozen=True)
class Recognition:
    """Classifiers that were fitted on the training images and measured on the reference.

    Attributes:
        classes, attributes: None where the images have none, or they are not wanted.
        known: Combinations of attributes among the training images.
        held_out: Combinations that the reference images show.
        in_classes: Whether these have classes, on which their attributes then depend.
    """

    classes: LabelReader | None
    attributes: LabelReader | None
    known: frozenset[Combination]
    held_out: tuple[Combination, ...] = ()
    in_classes: bool = False

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
        sides = [side[:_MOST] for side in (real.training, real.reference)]
        of_classes = "classes" in wanted and all(side.labels is not None for side in sides)
        of_attributes = "attributes" in wanted and has_attributes(real)
        if not of_classes and not of_attributes:
            return cls(None, None, frozenset())
        # Every image is read once: there may be a hundred thousand large ones.
        seen = [(side, small_pixels(side, quiet)) for side in sides]
        classes = attributes = None
        if of_classes:
            data = [LabelledImages(pixels, _classes_of(side)) for side, pixels in seen]
            classes = fitted_reader(*data, device=device, quiet=quiet)
        if of_attributes:
            data = [LabelledImages(pixels, _attributes_of(side)) for side, pixels in seen]
            attributes = fitted_reader(*data, min_support=MIN_SUPPORT, device=device, quiet=quiet)
        if attributes is None:
            return cls(classes, None, frozenset())
        known, held_out = (_combinations(attributes, *side) for side in seen)
        return cls(
            classes, attributes, frozenset(known), tuple(held_out), sides[1].labels is not None
        )

    @property
    def reads(self) -> bool:
        """Whether there is a classifier."""
        return self.classes is not None or self.attributes is not None

    def samples(self, images: ImageSet) -> Figures:
        """Share of samples read as their class; share of combinations that training images have."""
        figures: Figures = {}
        # Sub-folders of samples may be anything: they are classes where all of them are known.
        known = set(self.classes.table.columns["class"]) if self.classes else set()
        if self.classes and images.labels is not None and set(images.labels) <= known:
            figures["class_accuracy"] = self.classes.share_right(LabelledImages.of(images))
        if self.attributes is None or (images.labels is not None) != self.in_classes:
            return figures
        return figures | self._known(_combinations(self.attributes, images, small_pixels(images)))

    def floor(self) -> Figures:
        """The same of the reference images."""
        found = {} if self.classes is None else {"class_accuracy": self.classes.accuracy["class"]}
        return found | self._known(self.held_out)

    def reconstructions(self, originals: ImageSet, decoded: ImageSet) -> tuple[Figures, Figures]:
        """Shares of classes and attributes read right: of reconstructions, of their originals."""
        after: Figures = {}
        before: Figures = {}
        if self.classes is not None and originals.labels is not None:
            for figures, images in ((before, originals), (after, decoded)):
                labelled = LabelledImages.of(replace(images, labels=originals.labels))
                figures["class_accuracy"] = self.classes.share_right(labelled)
        if self.attributes is not None and readable(self.attributes):
            labelled = LabelledImages(small_pixels(originals), _attributes_of(originals))
            shares = share_preserved(self.attributes, labelled, small_pixels(decoded))
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

    def _known(self, found: Sequence[Combination]) -> Figures:
        if self.attributes is None or not readable(self.attributes):
            return {}
        return {"known_combinations": share_known(found, self.known)}


def has_attributes(real: RealImages) -> bool:
    """Whether attributes lie beside the images of both sides."""
    sides = (real.reference, real.training)
    return all(side is not None and _attributes_file(side) is not None for side in sides)


def _attributes_file(images: ImageSet) -> Path | None:
    path = Path(images.about.get("folder", "")) / _ATTRIBUTES
    return path if images.names is not None and path.is_file() else None


def _combinations(reader: LabelReader, images: ImageSet, pixels: Tensor) -> list[Combination]:
    classes = None if images.labels is None else images.labels.tolist()
    return combinations(reader, pixels, classes)


def _classes_of(images: ImageSet) -> list[Labels]:
    assert images.labels is not None
    return class_labels(images.labels)


def _attributes_of(images: ImageSet) -> list[Labels]:
    path = _attributes_file(images)
    assert path is not None and images.names is not None
    return labels_of(images.names, read_attributes(path))
