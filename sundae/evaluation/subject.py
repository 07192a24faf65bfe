"""What is evaluated, and the real images that it is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from sundae.evaluation.sides import Kind, kind_of, open_codec_side
from sundae.evaluation.statistics_file import FeatureSet, RealFeatures, load_statistics
from sundae.features.interface import FeatureNetwork
from sundae.sampling.sampler import BaseSampler

Real = RealImages | RealFeatures


@dataclass(frozen=True)
class Subject:
    """What is evaluated: a prior, a codec, or images that something made.

    Attributes:
        size: (height, width) of its images.
        sampler: Of a prior.
        codec: Of a prior on the tokens of a VQ-GAN, or the codec itself.
        images: Samples that are there already, also as saved features.
        split_sizes: How its training divided a folder of images; None where nothing says so.
    """

    kind: Kind
    path: Path
    size: Size
    sampler: BaseSampler | None = None
    codec: Codec | None = None
    images: ImageSet | FeatureSet | None = None
    split_sizes: Sequence[int] | Sequence[float] | None = None

    @classmethod
    def open(
        cls,
        path: Path,
        network: FeatureNetwork,
        *,
        prior: Mapping[str, Any],
        codec: Mapping[str, Any],
        size: Size | None = None,
    ) -> Subject:
        """Open what a path is.

        Args:
            network: Whose features saved statistics have to hold.
            prior: Arguments of `BaseSampler.from_pretrained` for a prior.
            codec: Arguments of `open_codec_side` for a codec.
            size: (height, width) in pixels of images of a folder, or of those that a codec is
                given; by default that of the images or of the codec's training.

        Raises:
            UserError: It does not exist, cannot be loaded, or has no use for a setting.
        """
        kind = kind_of(path)
        given = [key for key, value in prior.get("flags", {}).items() if value is not None]
        given = [key for key in given if key != "sampling.nb_samples"]
        if given and kind != "prior":
            raise UserError(f"{given[0]} is how a prior is sampled, and {path} is none")
        if size and kind not in ("images", "codec"):
            raise UserError(f"--size is for a folder of images or a codec, and {path} is none")
        if kind == "prior":
            return cls.of_prior(path, BaseSampler.from_pretrained(**prior))
        if kind == "codec":
            return cls._of_codec(path, *open_codec_side(path, **codec), size)
        images: ImageSet | FeatureSet
        if kind == "statistics":
            images = load_statistics(path, network).reference
        elif kind == "tokens":
            images = open_grey_levels(path).reference
        else:
            images = images_of_folder(path, size, "samples").shuffled()
        return cls(kind, path, images.size, images=images)

    @classmethod
    def of_prior(cls, path: Path, sampler: BaseSampler) -> Subject:
        """A prior that is loaded already, from a path."""
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
    def _of_codec(
        cls, path: Path, codec: Codec, split_sizes: Sequence[float] | None, size: Size | None
    ) -> Subject:
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


def open_reference(
    path: Path | None,
    subject: Subject,
    network: FeatureNetwork,
    *,
    side: Side = "held-out",
    eval_fraction: float | None = None,
    training: Path | None = None,
) -> Real:
    """The real images of a path; without one, the data that a run on grey levels was trained on.

    Args:
        eval_fraction: Share of a folder that is held out; by default as in the subject's training.
        training: Another folder, of the training images.

    Raises:
        UserError: There are none, they cannot stand beside the subject, or nothing says which.
    """
    divided = {"--eval-fraction": eval_fraction, "--training": training}
    given = [flag for flag, value in divided.items() if value is not None]
    if len(given) > 1:
        raise UserError("--eval-fraction divides one folder, --training names another; give one")
    if given and (path is None or kind_of(path) != "images"):
        what = path or "the data of the run"
        raise UserError(f"{given[0]} is for a folder of images, and {what} is divided already")
    if path is None:
        if subject.sampler is None or subject.codec is not None:
            raise UserError(
                f"{subject.path} is to be compared with real images: give their folder as "
                "REFERENCE, as in `python evaluate.py SAMPLES data/images`"
            )
        return data_of_run(subject.sampler.cfg, side=side)
    kind = kind_of(path)
    if kind in ("prior", "codec"):
        damaged = ", or a damaged file" if kind == "codec" and path.is_file() else ""
        raise UserError(f"{path} is a {kind}{damaged}; expected real images or saved statistics")
    if kind in ("statistics", "tokens"):
        if subject.kind == "codec":
            raise UserError(f"{path}: a codec needs the images themselves; give their folder")
        real = (
            load_statistics(path, network)
            if kind == "statistics"
            else open_grey_levels(path, side=side)
        )
        if real.reference.size != subject.size:
            raise UserError(f"{path} is of images of {_pixels(real.reference.size)}, expected "
                            f"{_pixels(subject.size)} as {subject.path} has")  # fmt: skip
        return real
    sizes = subject.split_sizes
    if eval_fraction is not None:
        if not 0 < eval_fraction < 1:
            raise UserError(f"--eval-fraction is {eval_fraction:g}, expected between 0 and 1")
        sizes = [1 - eval_fraction, eval_fraction]
    return open_images(path, subject.size, split_sizes=sizes, training=training, side=side)


def _pixels(size: Size) -> str:
    return f"{size[0]}x{size[1]} pixels"
