"""Plots of a run's metrics."""

from __future__ import annotations

import re
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sundae.common.files import atomic_path
from sundae.training.metrics import Row

_PANELS_A_ROW = 4


def draw_curves(rows: list[Row], path: Path) -> None:
    """One panel a quantity, training and held-out data in it; unroll steps as dotted lines."""
    names = [name for name in dict.fromkeys(n for row in rows for n in row) if "/" in name]
    panels = list(dict.fromkeys(_quantity(name) for name in names))
    columns = max(1, min(_PANELS_A_ROW, len(panels)))
    lines = max(1, -(-len(panels) // columns))
    figure = Figure(figsize=(6 * columns, 4 * lines), layout="constrained")
    places = figure.subplots(lines, columns, squeeze=False).flatten()
    for panel, axes in zip(panels, places, strict=False):
        _draw_panel(axes, panel, [name for name in names if _quantity(name) == panel], rows)
    for unused in places[len(panels) :]:
        unused.set_axis_off()
    with atomic_path(path) as partial:
        figure.savefig(partial, dpi=100)


def _draw_panel(axes: Axes, title: str, names: list[str], rows: list[Row]) -> None:
    for name in names:
        split, quantity = name.split("/")
        points = [(row["step"], row[name]) for row in rows if name in row]
        axes.plot(
            *zip(*points, strict=True),
            label=name,
            color="tab:blue" if split == "train" else "tab:orange",
            linewidth=0.7 if quantity != title else 2,
            linestyle=":" if quantity != title else "-",
            marker="o" if len(points) == 1 else None,
        )
    axes.set(title=title, xlabel="optimiser steps")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def _quantity(name: str) -> str:
    """ "eval/loss_2" -> "loss" """
    return re.sub(r"_\d+$", "", name.split("/")[1])
