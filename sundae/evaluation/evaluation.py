"""One evaluation from its sides to its figures."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sundae.common.errors import UserError
from sundae.evaluation.codec_figures import Distance
from sundae.evaluation.image_sets import ImageSet
from sundae.evaluation.instrument import FIGURES, Column, Instrument
from sundae.evaluation.sides import draw_samples
from sundae.evaluation.statistics_file import FeatureSet
from sundae.evaluation.subject import Real, Subject
from sundae.features.interface import FeatureNetwork
from sundae.features.lpips_weights import load_lpips

ClassOrder = Literal["reference", "turn"]

_MOST = 1000  # images on a side unless a number is given


@dataclass(frozen=True)
class Settings:
    """How samples are drawn and what is computed.

    Attributes:
        num_samples: Images of the subject; None takes all that are there, or draws as many as the
            reference has, at most 1,000.
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


def open_lpips(
    figures: Collection[str] | None, device: torch.device, *, quiet: bool = False
) -> tuple[Distance | None, dict[str, str]]:
    """LPIPS with AlexNet, from and to the CPU.

    Args:
        figures: That the user named; None where all are computed that can be.
        quiet: No progress bar while its weights are downloaded.

    Returns:
        The distance, and why it is left out where it was not named and its weights are missing.

    Raises:
        UserError: It was named, and its weights are missing.
    """
    if figures is not None and "diversity" not in figures:
        return None, {}
    try:
        lpips = load_lpips("alexnet", device, quiet=quiet)
    except UserError as error:
        if figures is not None:
            raise
        return None, {"LPIPS": str(error)}

    @torch.inference_mode()
    def distance(a: Tensor, b: Tensor) -> Tensor:
        found: Tensor = lpips(a.to(device), b.to(device))
        return found.cpu()

    return distance, {}


def evaluate(
    subject: Subject, real: Real, network: FeatureNetwork, settings: Settings
) -> Evaluation:
    """Compute the figures of a subject beside real images.

    Raises:
        UserError: Fewer than 2 images on a side, an image or class that does not fit, or a package
            that is missing.
    """
    images = subject.images
    count = settings.num_samples or (default_count(real) if images is None else len(images))
    if images is not None and count > len(images):
        raise UserError(f"--nb-samples {count}: {subject.path} has {len(images)} images")
    instrument = open_instrument(real, network, replace(settings, num_samples=count))
    if subject.kind == "codec":
        assert subject.codec is not None
        after, before, decoded = instrument.reconstructions(subject.codec)
        disjoint, floor = instrument.codec(subject.codec), instrument.floor()
        pairs = {"codec": (disjoint, after), "floor": (floor, before)}
        columns = {name: Column(a.figures | b.figures) for name, (a, b) in pairs.items()}
        columns = {name: column for name, column in columns.items() if column.figures}
        return Evaluation(columns, instrument, decoded)
    about: dict[str, Any] = {}
    if subject.sampler is None:
        assert subject.images is not None
        samples: ImageSet | FeatureSet = subject.images[:count]
    else:
        labels = class_labels(subject, real, settings)
        subject.sampler.compile_for(count, settings.batch_size)
        samples = draw_samples(
            subject.sampler, count, seed=settings.seed, labels=labels,
            batch_size=settings.batch_size, quiet=settings.quiet,
        )  # fmt: skip
        in_turn = "all in turn" if subject.sampler.class_names else "none"
        about["classes"] = in_turn if labels is None else "those of the reference images"
    columns = {"samples": instrument.samples(samples)}
    if subject.codec is not None:
        share = instrument.codec(subject.codec).figures | instrument.recognised(subject.codec)
        columns["codec"] = Column(share)
    columns["floor"] = instrument.floor()
    columns = {name: column for name, column in columns.items() if column.figures}
    return Evaluation(
        columns, instrument, samples if isinstance(samples, ImageSet) else None, about
    )


def default_count(real: Real) -> int:
    """Images on each side unless a number is given."""
    return min(_MOST, len(real.reference))


def open_instrument(real: Real, network: FeatureNetwork, settings: Settings) -> Instrument:
    """An instrument for num_samples images on each side; UserError for less than 2."""
    sides = [side for side in (real.reference, real.training) if side is not None]
    count = settings.num_samples or default_count(real)
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
