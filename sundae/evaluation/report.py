"""An evaluation as a table, as JSON and as images."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sundae.common.files import write_json
from sundae.common.images import save_grid
from sundae.evaluation.evaluation import Evaluation
from sundae.evaluation.image_sets import ImageSet
from sundae.evaluation.recognition import Figures
from sundae.features.interface import FeatureNetwork

JSON_NAME, NEAREST_NAME = "evaluation.json", "nearest.png"
_SHOWN, _PAIRS, _PAIR_COLUMNS = 100, 24, 8

# Figures in the order of the table: their titles, and how they are written.
_ROWS = {
    "psnr": ("PSNR (dB)", ".2f"),
    "ssim": ("SSIM", ".4f"),
    "lpips": ("LPIPS (AlexNet)", ".4f"),
    "reconstruction_distance": ("r{frechet}", ".4g"),
    "codes_used": ("codes used", ".1%"),
    "perplexity": ("perplexity of the codes", ".1f"),
    "frechet_distance": ("{frechet}", ".4g"),
    "kernel_distance": ("{kernel}", ".3g"),
    "precision": ("precision", ".3f"),
    "recall": ("recall", ".3f"),
    "density": ("density", ".3f"),
    "coverage": ("coverage", ".3f"),
    "inception_score": ("Inception score ({network})", ".2f"),
    "diversity": ("LPIPS within a class", ".3f"),
    "class_accuracy": ("class accuracy", ".3f"),
    "attribute_accuracy": ("attributes read right", ".3f"),
    "known_combinations": ("combinations of training images", ".1%"),
    "near_copies": ("near-copies of training images", ".1%"),
    "exact_copies": ("copies of training images", ".1%"),
    "nearest_similarity": ("similarity to the nearest, median", ".3f"),
}


def table(evaluation: Evaluation, network: FeatureNetwork) -> list[str]:
    """A line for each figure, a column for each set of images."""
    columns = evaluation.columns
    lines = [["", *columns]]
    for name, (_, form) in _ROWS.items():
        cells = [_cell(column.figures, name, form) for column in columns.values()]
        if any(cells):
            lines.append([figure_title(name, network), *cells])
    return aligned(lines)


def figure_title(name: str, network: FeatureNetwork | type[FeatureNetwork]) -> str:
    """What tables and plots call a figure: a distance by its features."""
    frechet = network.distance_name
    kernel = "KID" if frechet == "FID" else frechet.replace("FD", "KD", 1)
    return _ROWS[name][0].format(frechet=frechet, kernel=kernel, network=network.title)


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Cells as columns: the first one left, the others right."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    return [
        "  ".join([first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells, widths[1:]))])
        for first, *cells in lines
    ]


def _cell(figures: Figures, name: str, form: str) -> str:
    value, spread = figures.get(name), figures.get(f"{name}_std")
    if value is None or math.isnan(value):
        return ""
    return f"{value:{form}}" + ("" if spread is None else f" ±{spread:.2g}")


def legend(evaluation: Evaluation) -> list[str]:
    """What the columns of the table are, in a few lines."""
    instrument, lines = evaluation.instrument, []
    reference, training = instrument.real.reference, instrument.real.training
    where = reference.about.get("folder") or reference.about.get("statistics", "")
    lines.append(
        f"distances: {instrument.count} images on each side; reference: {reference.title} of "
        f"{where} ({instrument.real.split})"
    )
    if training is None:
        lines.append("no floor: nothing says which images were trained on (--eval-fraction, "
                     "--training)")  # fmt: skip
        return lines
    if "codec" in evaluation.columns:
        lines.append(f"codec: as many {training.title}, encoded and decoded; for classes the "
                     "reference")  # fmt: skip
    lines.append(
        f"floor: as many {training.title} in the place of samples; for classes and copies the "
        "reference"
    )
    return lines


# Groups of figures: one that each has, and what it needs.
_NEEDS = {
    "distance": ("frechet_distance", "2 images on each side"),
    "manifold": ("precision", "more than 5 images on each side"),
    "inception": ("inception_score", "features with classes, of --features"),
    "diversity": ("diversity", "images of the subject, two of a class"),
    "classes": ("class_accuracy", "sub-folders as classes of all images, and training images"),
    "attributes": ("known_combinations", "attributes.json beside the images, and training images"),
    "nearest": ("near_copies", "training images (--eval-fraction, --training)"),
}
_OF_CODECS = {"diversity": "lpips", "attributes": "attribute_accuracy"}


def left_out(evaluation: Evaluation, figures: Collection[str]) -> dict[str, str]:
    """Groups of figures, among those given, that no column has, and what they need."""
    found = {name for column in evaluation.columns.values() for name in column.figures}
    return {
        group: f"needs {_NEEDS[group][1]}"
        for group in figures
        if not found & {_NEEDS[group][0], _OF_CODECS.get(group)}
    }


def write_report(evaluation: Evaluation, protocol: Mapping[str, Any], folder: Path) -> None:
    """Write evaluation.json, and where there are images nearest.png and a grid of them.

    Raises:
        UserError: The folder cannot be written to.
    """
    shown, instrument = evaluation.shown, evaluation.instrument
    images = instrument.images
    if shown is not None and "samples" in evaluation.columns:
        _save(shown[:_SHOWN], folder / "samples.png")
        neighbours = evaluation.columns["samples"].neighbours
        if neighbours is not None and images is not None and images.training is not None:
            nearest = images.training[neighbours.index[:_PAIRS]]
            _save_pairs(shown[:_PAIRS], nearest, folder / NEAREST_NAME)
    elif shown is not None and images is not None:
        _save_pairs(images.reference[:_PAIRS], shown[:_PAIRS], folder / "reconstructions.png")
    figures = {name: column.figures for name, column in evaluation.columns.items()}
    write_json(folder / JSON_NAME, {"figures": figures, "protocol": protocol})


def _save(images: ImageSet, path: Path) -> None:
    save_grid(images.pixels().float() / 255, path)


def _save_pairs(left: ImageSet, right: ImageSet, path: Path) -> None:
    """A grid in which each image stands left of its counterpart."""
    pairs = [torch.stack(pair) for pair in zip(left.pixels(), right.pixels())]
    save_grid(torch.cat(pairs).float() / 255, path, columns=_PAIR_COLUMNS)
