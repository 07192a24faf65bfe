"""A sweep as a table and as a plot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from sundae.common.errors import UserError
from sundae.common.files import atomic_path
from sundae.evaluation.evaluation import Settings, class_labels, default_count, open_instrument
from sundae.evaluation.protocol import shared_protocol
from sundae.evaluation.report import aligned, figure_title
from sundae.evaluation.subject import Real, Subject
from sundae.evaluation.sweep import SWEEP_NAME, Row, Sweep, mean_and_spread, run_sweep
from sundae.features.interface import FeatureNetwork

# Figures of a sweep unless others are named: those that change with the settings and cost little.
SWEPT = ("distance", "classes")

_TABLE = ("frechet_distance", "kernel_distance", "precision", "recall", "density", "coverage",
          "inception_score", "diversity", "class_accuracy", "near_copies")  # fmt: skip
_PLOTTED = ("frechet_distance", "class_accuracy")
_COSTS = {"evaluations": "network evaluations a sample", "seconds": "seconds a sample"}


def sweep_figures(
    axes: Sequence[str],
    seeds: Sequence[int],
    subject: Subject,
    real: Real,
    network: FeatureNetwork,
    settings: Settings,
    folder: Path,
    *,
    command: str,
    overwrite: bool,
) -> list[str]:
    """Run a sweep, see `Sweep.parse` and `run_sweep`; draw FOLDER/sweep.png.

    Args:
        command: That made it, for the protocol.
        overwrite: Drop the rows of another sweep in the folder.

    Returns:
        The lines of its table.

    Raises:
        UserError: There is nothing to sample, or a text, key or value is wrong.
    """
    if subject.sampler is None:
        raise UserError(f"--sweep is for a prior, and {subject.path} is none")
    sweep = Sweep.parse(axes, seeds, subject.sampler)
    settings = replace(settings, num_samples=settings.num_samples or default_count(real))
    instrument = open_instrument(real, network, settings)
    about = shared_protocol(subject, instrument, network, settings, command=command)
    if overwrite:
        (folder / SWEEP_NAME).unlink(missing_ok=True)
    labels = class_labels(subject, real, settings)
    rows = run_sweep(sweep, subject, instrument, settings, labels, about, folder)
    floor = instrument.floor().figures
    plot_sweep(sweep, rows, floor, network, folder / "sweep.png")
    return sweep_table(sweep, rows, floor, network)


def sweep_table(
    sweep: Sweep, rows: list[Row], floor: Mapping[str, float], network: FeatureNetwork
) -> list[str]:
    """A line for each point: mean and, behind ±, standard deviation over seeds; the floor last."""
    names = [name for name in _TABLE if name in rows[0]["figures"]]
    titles = [figure_title(name, network) for name in names]
    lines = [[*sweep.keys, "evaluations", "s a sample", *titles]]
    for point, group in _groups(sweep, rows):
        costs = [_cell([row[cost] for row in group]) for cost in _COSTS]
        figures = [_cell([row["figures"][name] for row in group]) for name in names]
        lines.append([*(str(point[key]) for key in sweep.keys), *costs, *figures])
    if floor:
        blank = [""] * (len(sweep.keys) + len(_COSTS) - 1)
        cells = [f"{floor[name]:.4g}" if name in floor else "" for name in names]
        lines.append(["floor", *blank, *cells])
    return aligned(lines)


def plot_sweep(
    sweep: Sweep, rows: list[Row], floor: Mapping[str, float], network: FeatureNetwork, path: Path
) -> None:
    """Draw figures against both costs: a line for each combination of the keys but steps.

    Those of `_PLOTTED`, or the first of the table where the sweep has none of them; no file where
    it has no figure.

    Raises:
        UserError: The file cannot be written.
    """
    from matplotlib.figure import Figure

    found = [name for name in _TABLE if name in rows[0]["figures"]]
    names = [name for name in _PLOTTED if name in found] or found[:2]
    if not names:
        return
    others = [key for key in sweep.keys if key != "steps"]
    size = (5 * len(_COSTS), 3.6 * len(names))
    plot = Figure(figsize=size, layout="constrained")
    axes = plot.subplots(len(names), len(_COSTS), squeeze=False)
    for (row, name), (column, cost) in _pairs(names):
        ax = axes[row][column]
        for label, line in _lines(sweep, rows, others).items():
            xs = [mean_and_spread([r[cost] for r in group])[0] for group in line]
            points = [mean_and_spread([r["figures"][name] for r in group]) for group in line]
            ys, errors = zip(*points)
            ax.errorbar(xs, ys, errors, marker="o", markersize=4, capsize=3, label=label or None)
        if name in floor:
            title = "floor" if name == "frechet_distance" else "held-out images"
            ax.axhline(floor[name], color="grey", linestyle="--", linewidth=1, label=title)
        ax.set(xlabel=_COSTS[cost], ylabel=figure_title(name, network))
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter("{x:.3g}")
        ax.grid(alpha=0.3)
        if row == column == 0:
            ax.legend(fontsize="small")
    with atomic_path(path) as partial:
        plot.savefig(partial, dpi=120)


def _pairs(names: list[str]) -> Iterator[tuple[tuple[int, str], tuple[int, str]]]:
    for place in enumerate(names):
        for cost in enumerate(_COSTS):
            yield place, cost


def _groups(sweep: Sweep, rows: list[Row]) -> Iterator[tuple[dict[str, object], list[Row]]]:
    """The rows of each point."""
    for point in sweep.points:
        yield point, [row for row in rows if row["point"] == point]


def _lines(sweep: Sweep, rows: list[Row], others: list[str]) -> dict[str, list[list[Row]]]:
    """Label -> the rows of its points."""
    lines: dict[str, list[list[Row]]] = {}
    for point, group in _groups(sweep, rows):
        words = [f"{point[key]}" if key == "strategy" else f"{key} {point[key]}" for key in others]
        lines.setdefault(", ".join(words), []).append(group)
    return lines


def _cell(values: list[float]) -> str:
    mean, spread = mean_and_spread(values)
    return f"{mean:.4g}" + (f" ±{spread:.2g}" if len(values) > 1 and spread else "")
