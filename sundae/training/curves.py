"""Plots of a run's metrics."""

from __future__ import annotations

import re
from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sundae.common.files import atomic_path
from sundae.training.metrics import Row

_PANELS_A_ROW = 4
_COLOURS = {"train": "tab:blue", "eval": "tab:orange"}


def draw_curves(rows: list[Row], path: Path) -> None:
    """One panel a quantity, training and held-out data in it; unroll steps as dotted lines.

    The corruption rates of a quantity have a panel of their own, from dark (low) to bright.
    """
    panels: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for row in rows for name in row if "/" in name):
        panels.setdefault(_quantity(name), []).append(name)
    lines = max(1, -(-len(panels) // _PANELS_A_ROW))
    columns = max(1, -(-len(panels) // lines))
    figure = Figure(figsize=(6 * columns, 4 * lines), layout="constrained")
    places = figure.subplots(lines, columns, squeeze=False).flatten()
    for (quantity, names), axes in zip(panels.items(), places, strict=False):
        _draw_panel(axes, quantity, names, rows)
    for unused in places[len(panels) :]:
        unused.set_axis_off()
    with atomic_path(path) as partial:
        figure.savefig(partial, dpi=100)


def _draw_panel(axes: Axes, quantity: str, names: list[str], rows: list[Row]) -> None:
    by_rate = quantity.endswith("_rate")
    for number, name in enumerate(names):
        split, _, metric = name.partition("/")
        points = [(row["step"], row[name]) for row in rows if name in row]
        axes.plot(
            *zip(*points, strict=True),
            label=metric.removeprefix(f"{quantity}_") if by_rate else name,
            color=colormaps["viridis"](number / len(names)) if by_rate else _COLOURS[split],
            linewidth=2 if metric == quantity else 1.2 if by_rate else 0.7,
            linestyle="-" if metric == quantity or by_rate else ":",
            marker="o" if len(points) == 1 else None,
        )
    title = f"held-out {quantity.removesuffix('_rate')} by corruption rate" if by_rate else quantity
    axes.set(title=title, xlabel="optimiser steps")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def _quantity(name: str) -> str:
    """ "eval/loss_2" -> "loss"; "eval/loss_rate_0.2-0.4" -> "loss_rate" """
    return re.sub(r"_[0-9.-]+$", "", name.split("/")[1])
