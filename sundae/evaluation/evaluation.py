"""One evaluation from its sides to its figures."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from sundae.common.errors import UserError
from sundae.evaluation.codec_figures import Distance
from sundae.evaluation.image_sets import ImageSet
from sundae.evaluation.instrument import FIGURES, Column, Instrument
from sundae.evaluation.real_images import RealImages
from sundae.evaluation.sides import draw_samples
from sundae.evaluation.statistics_file import FeatureSet
from sundae.evaluation.subject import Real, Subject
from sundae.features.interface import FeatureNetwork

ClassOrder = Literal["reference", "turn"]

_MOST = 1000  # images on a side unless a number is given


@dataclass(frozen=True)
class Settings:
    """How samples are drawn and what is computed.

    Attributes:
        num_samples: Images of the subject; None takes as many as the reference has, at most 1,000.
        seed: Of the samples.
        class_order: Classes of the samples: those of the reference images, or all in turn.
        pool: Training images at most among which the nearest is found.
        lpips: Distance for the diversity and for codecs, both left out without.
        whole: Compute features of all reference images, to save them.
    """

    num_samples: int | None = None
    seed: int = 0
    batch_size: int = 64
    class_order: ClassOrder = "reference"
    pool: int = 10_000
    figures: Collection[str] = FIGURES
    lpips: Distance | None = None
    whole: bool = False
    quiet: bool = True


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        columns: Figures by the name of the column: "samples", "codec", "floor".
        instrument: Which computed them.
        shown: Images that were scored, where there are images.
        about: How many images of what, and how samples were drawn, for the protocol.
    """

    columns: dict[str, Column]
    instrument: Instrument
    shown: ImageSet | None
    about: dict[str, Any] = field(default_factory=dict)


def evaluate(
    subject: Subject, real: Real, network: FeatureNetwork, settings: Settings
) -> Evaluation:
    """Compute the figures of a subject beside real images.

    Raises:
        UserError: Fewer than 2 images on a side, an image or class that does not fit, or a package
            that is missing.
    """
    available = len(subject.images) if subject.images is not None else None
    count = settings.num_samples or min(_MOST, available or len(real.reference))
    if available is not None and count > available:
        raise UserError(f"--nb-samples {count}: {subject.path} has {available} images")
    instrument = open_instrument(real, network, settings, count)
    if subject.kind == "codec":
        assert subject.codec is not None
        figures, decoded = instrument.reconstructions(subject.codec)
        disjoint = instrument.codec(subject.codec)
        column = Column(figures.figures | disjoint.figures)
        return Evaluation({"codec": column, "floor": instrument.floor()}, instrument, decoded)
    about: dict[str, Any] = {}
    if subject.sampler is None:
        assert subject.images is not None
        samples: ImageSet | FeatureSet = subject.images[:count]
    else:
        labels = class_labels(subject, real, settings)
        samples = draw_samples(
            subject.sampler, count, seed=settings.seed, labels=labels,
            batch_size=settings.batch_size, quiet=settings.quiet,
        )  # fmt: skip
        in_turn = "all in turn" if subject.sampler.class_names else "none"
        about["classes"] = in_turn if labels is None else "those of the reference images"
    columns = {"samples": instrument.samples(samples)}
    if subject.codec is not None:
        columns["codec"] = instrument.codec(subject.codec)
    columns["floor"] = instrument.floor()
    columns = {name: column for name, column in columns.items() if column.figures}
    return Evaluation(
        columns, instrument, samples if isinstance(samples, ImageSet) else None, about
    )


def open_instrument(
    real: Real, network: FeatureNetwork, settings: Settings, count: int
) -> Instrument:
    """An instrument for `count` images on each side; UserError where that leaves fewer than 2."""
    sides = [side for side in (real.reference, real.training) if side is not None]
    if min(count, *map(len, sides)) < 2:
        raise UserError("expected at least 2 images of each kind: samples, reference, training")
    return Instrument(
        real,
        network,
        count=count,
        pool=settings.pool,
        figures=settings.figures,
        lpips=settings.lpips,
        whole=settings.whole,
        quiet=settings.quiet,
    )


def class_labels(subject: Subject, real: Real, settings: Settings) -> np.ndarray | None:
    """Classes that samples take in turn: those of the reference where the network has them all."""
    labels = real.reference.labels
    assert subject.sampler is not None
    known = set(subject.sampler.class_names)
    if settings.class_order == "turn" or labels is None or not set(labels) <= known:
        return None
    return labels


def images_of(real: Real) -> RealImages | None:
    """The images of a reference that is not saved features."""
    return real if isinstance(real, RealImages) else None
