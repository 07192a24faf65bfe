"""Everything that has to be known to repeat an evaluation, as plain values for JSON."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sundae.config.values import plain
from sundae.evaluation.evaluation import Evaluation, Settings
from sundae.evaluation.instrument import Instrument
from sundae.evaluation.statistics_file import FeatureSet
from sundae.evaluation.subject import Subject
from sundae.features.interface import FeatureNetwork
from sundae.sampling.sampler import BaseSampler

_PACKAGES = ("torch", "torchvision", "numpy", "pillow", "scipy", "torchmetrics", "torch-fidelity")


def protocol(
    subject: Subject,
    evaluation: Evaluation,
    network: FeatureNetwork,
    settings: Settings,
    *,
    command: str,
    notes: Mapping[str, str],
) -> dict[str, Any]:
    """The protocol of an evaluation.

    Args:
        command: That made it.
        notes: Figures that were left out, and why.
    """
    found = _subject(subject, evaluation, settings)
    shared = shared_protocol(subject, evaluation.instrument, network, settings, command=command)
    return shared | {"subject": shared["subject"] | found, "left out": dict(notes)}


def shared_protocol(
    subject: Subject,
    instrument: Instrument,
    network: FeatureNetwork,
    settings: Settings,
    *,
    command: str,
) -> dict[str, Any]:
    """What all points of a sweep share; see `protocol`."""
    real = instrument.real
    sides = {"reference": real.reference, "training": real.training}
    about: dict[str, Any] = {"kind": subject.kind, "path": str(subject.path)}
    if subject.sampler is not None:
        about |= sampling_protocol(subject.sampler) | {"images": settings.num_samples}
    if subject.codec is not None:
        about["codec"] = subject.codec.identity
    return {
        "command": command,
        "date": date.today().isoformat(),
        "subject": about,
        **{name: _described(side) for name, side in sides.items() if side is not None},
        "split": real.split,
        "images on each side of a distance": instrument.count,
        "features": {"name": network.name, "title": network.title, **network.protocol},
        "figures": METHODS,
        "classifiers": instrument.recognition.about() if instrument.recognition else {},
        "versions": versions(),
    }


METHODS = {
    "frechet_distance": "squared, unbiased covariances, float64",
    "kernel_distance": "polynomial kernel of degree 3, 100 subsets of min(1000, n / 2), mean and "
    "standard deviation over subsets",
    "precision, recall": "k = 3",
    "density, coverage": "k = 5",
    "inception_score": "min(10, n / 100) parts",
    "diversity": "mean LPIPS (AlexNet) of at most 100 pairs a class, mean over classes",
    "near_copies": "cosine of features to the nearest training image, at least the 99th percentile "
    "of that of the reference images",
}


def versions() -> dict[str, str]:
    """Versions of what computes, and the commit of this project where it is a checkout."""
    found = {"python": platform.python_version(), "sundae": _commit()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def sampling_protocol(sampler: BaseSampler) -> dict[str, Any]:
    """How a sampler draws."""
    sampling = sampler.cfg.sampling
    return {
        "step": sampler.step,
        "strategy": sampling.resolved_strategy,
        "precision": "bf16" if sampler.bf16 else "fp32",
        "device": str(sampler.device),
        "[sampling]": plain(sampling),
    }


def _subject(subject: Subject, evaluation: Evaluation, settings: Settings) -> dict[str, Any]:
    found = dict(evaluation.about)
    if evaluation.shown is not None:
        found |= {"images": len(evaluation.shown), "size": list(evaluation.shown.size)}
    if subject.sampler is not None:
        found |= {"seed": settings.seed, "file format": "none: rounded to 8 bits in memory"}
    elif subject.images is not None:
        found |= dict(subject.images.about)
    return found


def _described(features: FeatureSet) -> dict[str, Any]:
    return {
        "images": features.title,
        "features of": len(features),
        "size": list(features.size),
        **features.about,
    }


def _commit() -> str:
    folder = Path(__file__).parents[2]
    if not (folder / ".git").exists():  # a repository around an unpacked archive is another one
        return "unknown"
    command = ["git", "describe", "--always", "--dirty"]
    try:
        found = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return found.stdout.strip() or "unknown"
