"""What is evaluated, and the real images that it is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sundae.codec.interface import Codec, PixelCodec
from sundae.common.errors import UserError
from sundae.evaluation.image_sets import ImageSet, Size, images_of_folder
from sundae.evaluation.real_images import (
    RealImages,
    Side,
    data_of_run,
    open_grey_levels,
    open_images,
)
from sundae.evaluation.sides import Kind, kind_of
from sundae.evaluation.statistics_file import FeatureSet, RealFeatures, load_statistics
from sundae.features.interface import FeatureNetwork
from sundae.sampling.sampler import BaseSampler

Real = RealImages | RealFeatures


@dataclass(frozen=True)
class Subject:
    """What is evaluated: a prior, a codec, or images that something made.

    Attributes:
        size: (height, width) of its images; None where those of the reference decide.
        sampler: Of a prior.
        codec: Of a prior on the tokens of a VQ-GAN, or the codec itself.
        images: Samples that are there already, also as saved features.
        split_sizes: How its training divided a folder of images; None where nothing says so.
    """

    kind: Kind
    path: Path
    size: Size | None = None
    sampler: BaseSampler | None = None
    codec: Codec | None = None
    images: ImageSet | FeatureSet | None = None
    split_sizes: Sequence[int] | Sequence[float] | None = None

    @classmethod
    def of_prior(cls, path: Path, sampler: BaseSampler) -> Subject:
        codec = sampler.codec.codec
        height, width = (side * codec.factor for side in sampler.grid)
        return cls(
            "prior",
            path,
            (height, width),
            sampler,
            None if isinstance(codec, PixelCodec) else codec,
            split_sizes=sampler.cfg.data.split_sizes,
        )

    @classmethod
    def of_codec(
        cls, path: Path, codec: Codec, split_sizes: Sequence[float] | None, size: Size | None
    ) -> Subject:
        """Without `size`, images have the resolution that the codec was trained for.

        Raises:
            UserError: There is no such resolution, or the size cannot be cut into patches.
        """
        resolution: int | None = getattr(codec, "resolution", None)
        if size is None:
            if resolution is None:
                raise UserError(f"{path} names no resolution of its own; pass --size, as in --size "
                                "256")  # fmt: skip
            size = (resolution, resolution)
        if any(side % codec.factor for side in size):
            raise UserError(
                f"--size {size[0]}x{size[1]}: expected multiples of {codec.factor}, the codec's "
                "pixels a token"
            )
        return cls("codec", path, size, codec=codec, split_sizes=split_sizes)

    @classmethod
    def of_images(cls, path: Path, size: Size | None, network: FeatureNetwork) -> Subject:
        """A folder of images or of grey levels, or saved statistics."""
        kind = kind_of(path)
        images: ImageSet | FeatureSet
        if kind == "statistics":
            images = load_statistics(path, network).reference
        elif kind == "tokens":
            images = open_grey_levels(path).reference
        else:
            images = images_of_folder(path, size, "samples").shuffled()
        return cls(kind, path, images.size, images=images)


def open_reference(
    path: Path | None,
    subject: Subject,
    network: FeatureNetwork,
    *,
    side: Side = "held-out",
    split_sizes: Sequence[float] | None = None,
    training: Path | None = None,
) -> Real:
    """The real images of a path; without one, the data that a run on grey levels was trained on.

    Args:
        split_sizes: Instead of those of the subject.

    Raises:
        UserError: There are none, they cannot stand beside the subject, or nothing says which.
    """
    if path is None:
        if subject.sampler is None or subject.codec is not None:
            raise UserError(
                f"{subject.path} is to be compared with real images: give their folder as "
                "REFERENCE, as in `python evaluate.py SAMPLES data/images`"
            )
        return data_of_run(subject.sampler.cfg, side=side)
    kind = kind_of(path)
    if kind in ("prior", "codec"):
        raise UserError(f"{path} is a {kind}; expected real images or saved statistics")
    if kind == "statistics":
        if subject.kind == "codec":
            raise UserError(f"{path}: a codec needs the images themselves, give their folder")
        return load_statistics(path, network)
    if kind == "tokens":
        return open_grey_levels(path, side=side)
    sizes = split_sizes or subject.split_sizes
    return open_images(path, subject.size, split_sizes=sizes, training=training, side=side)
