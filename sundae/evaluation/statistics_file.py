"""Features of sets of images, and a file of them that stands in for the images of a reference."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sundae.common.errors import UserError
from sundae.common.files import atomic_path
from sundae.evaluation.image_sets import ImageSet, Size
from sundae.evaluation.real_images import RealImages
from sundae.features.interface import FeatureNetwork, ImageFeatures

_KEY = "sundae-statistics"
_VERSION = 1
_PARTS = ("pooled", "layout", "logits")


@dataclass(frozen=True)
class FeatureSet:
    """Features of a set of images.

    Attributes:
        title, size, labels, about: As of the `ImageSet`.
    """

    title: str
    size: Size
    features: ImageFeatures
    labels: np.ndarray | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, images: ImageSet, network: FeatureNetwork, *, quiet: bool = True) -> FeatureSet:
        """Compute the features, batch by batch, with a progress bar unless `quiet`."""
        parts = [network(batch.float() / 255) for batch in images.batches(quiet)]
        pooled, layout, logits = (
            None if values[0] is None else np.concatenate(values)
            for values in zip(*((part.pooled, part.layout, part.logits) for part in parts))
        )
        assert pooled is not None and layout is not None
        features = ImageFeatures(pooled, layout, logits)
        return cls(images.title, images.size, features, images.labels, images.about)

    def __len__(self) -> int:
        return len(self.features.pooled)

    def __getitem__(self, part: slice) -> FeatureSet:
        seen = self.features
        logits = None if seen.logits is None else seen.logits[part]
        some = ImageFeatures(seen.pooled[part], seen.layout[part], logits)
        labels = None if self.labels is None else self.labels[part]
        return FeatureSet(self.title, self.size, some, labels, self.about)


@dataclass(frozen=True)
class RealFeatures:
    """Features of the two sets of `RealImages`, in their order, and how the sets were divided."""

    reference: FeatureSet
    training: FeatureSet | None
    split: str

    @classmethod
    def of(
        cls, real: RealImages, network: FeatureNetwork, *, pool: int, quiet: bool = True
    ) -> RealFeatures:
        """Compute the features of all reference images and of at most `pool` training images."""
        reference = FeatureSet.of(real.reference, network, quiet=quiet)
        learned = None
        if real.training is not None:
            learned = FeatureSet.of(real.training[:pool], network, quiet=quiet)
        return cls(reference, learned, real.split)


def is_statistics(path: Path) -> bool:
    """Whether a file was written by `save_statistics`."""
    return _header(path) is not None


def save_statistics(path: Path, real: RealFeatures, network: FeatureNetwork) -> None:
    """Write features of real images, and with what they were computed.

    Raises:
        UserError: The file cannot be written.
    """
    sets = {"reference": real.reference, "training": real.training}
    arrays: dict[str, np.ndarray] = {}
    described: dict[str, Any] = {}
    for name, features in sets.items():
        if features is None:
            continue
        values = {part: getattr(features.features, part) for part in _PARTS}
        arrays |= {f"{name}.{part}": v for part, v in values.items() if v is not None}
        labels = None if features.labels is None else features.labels.tolist()
        described[name] = {"title": features.title, "size": features.size, "labels": labels,
                           "about": dict(features.about)}  # fmt: skip
    header = {"version": _VERSION, "features": network.name, "protocol": network.protocol,
              "split": real.split, "sets": described}  # fmt: skip
    with atomic_path(path) as partial:
        save_file(arrays, partial, metadata={_KEY: json.dumps(header)})


def load_statistics(path: Path, network: FeatureNetwork) -> RealFeatures:
    """Read what `save_statistics` wrote.

    Raises:
        UserError: It cannot be read, or holds the features of another network or protocol.
    """
    header = _header(path)
    if header is None or header.get("version") != _VERSION:
        raise UserError(f"{path} holds no statistics of this version; save them again")
    if header["features"] != network.name:
        raise UserError(
            f"{path} holds features of {header['features']}, expected {network.name}: pass "
            f"--features {header['features']}, or save the statistics again"
        )
    if header["protocol"] != json.loads(json.dumps(network.protocol)):
        raise UserError(
            f"{path} was made with another protocol of {network.name} ({header['protocol']}, now "
            f"{network.protocol}); save the statistics again"
        )
    with safe_open(path, "numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    sets = {}
    for name, about in header["sets"].items():
        pooled, layout = (arrays[f"{name}.{part}"] for part in ("pooled", "layout"))
        features = ImageFeatures(pooled, layout, arrays.get(f"{name}.logits"))
        labels = None if about["labels"] is None else np.array(about["labels"])
        origin = about["about"] | {"statistics": str(path)}
        sets[name] = FeatureSet(about["title"], tuple(about["size"]), features, labels, origin)
    return RealFeatures(sets["reference"], sets.get("training"), header["split"])


def _header(path: Path) -> dict[str, Any] | None:
    """The description in a statistics file; None for any other file."""
    try:
        with safe_open(path, "numpy") as file:
            text = (file.metadata() or {}).get(_KEY)
        return None if text is None else json.loads(text)
    except (OSError, SafetensorError, ValueError):
        return None
