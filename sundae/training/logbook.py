"""What a run writes down about itself: a CSV, a picture of its curves and, when asked, wandb."""

from __future__ import annotations

import csv
import importlib.util
import re
import uuid
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from sundae.common.errors import UserError
from sundae.common.files import atomic_path, write_text
from sundae.common.images import to_pil
from sundae.config.run_file import WandbConfig
from sundae.training.metrics import Row

_PANELS_A_ROW = 4


class Logbook:
    """Rows of metrics, one an evaluation, kept in RUN/curves.csv and drawn in RUN/curves.png."""

    def __init__(self, run: Path | None, wandb_run: Any = None) -> None:
        """run: the run folder, or None to keep nothing on disk. wandb_run: of `start_wandb`."""
        self.run, self.wandb_run = run, wandb_run
        self.rows: list[Row] = []

    def rewind(self, step: int) -> None:
        """Take up the rows of an earlier part of the run, forgetting what came after `step`."""
        path = self.run / "curves.csv" if self.run else None
        if path is not None and path.exists():
            try:
                with path.open(newline="") as file:
                    rows = [{k: float(v) for k, v in r.items() if v} for r in csv.DictReader(file)]
                self.rows = [row for row in rows if row["step"] <= step]
            except (OSError, KeyError, TypeError, ValueError) as error:
                raise UserError(f"{path} is damaged ({error}); delete it to go on") from error

    def log(self, row: Row) -> None:
        """Add one evaluation; `row` has a "step" and names such as "train/loss", "eval/loss"."""
        self.rows.append(row)
        if self.run is not None:
            write_csv(self.rows, self.run / "curves.csv")
            draw_curves(self.rows, self.run / "curves.png")
        if self.wandb_run is not None:
            self.wandb_run.log(row, step=int(row["step"]))

    def log_picture(self, name: str, image: Tensor, step: int) -> None:
        """Send a picture, (3, H, W) in [0, 1], to wandb; on disk it is the caller's business."""
        if self.wandb_run is not None:
            import wandb

            self.wandb_run.log({name: wandb.Image(to_pil(image))}, step=step)

    def close(self) -> None:
        """Finish the wandb run, if there is one."""
        if self.wandb_run is not None:
            self.wandb_run.finish()


def check_wandb(saves: bool) -> None:
    """UserError where --wandb cannot be honoured; without the second that importing wandb takes.

    Args:
        saves: whether there will be a run folder to keep its log in.
    """
    if not saves:
        raise UserError("--wandb keeps its log in the run folder: leave out --no-save")
    if importlib.util.find_spec("wandb") is None:
        raise UserError("--wandb needs wandb: pip install -r requirements-wandb.txt")


def start_wandb(cfg: WandbConfig, run: Path, values: dict[str, Any]) -> Any:
    """Begin, or take up again, the wandb run that belongs to a run folder.

    Raises:
        UserError: wandb is not installed, or does not let us in.
    """
    check_wandb(saves=True)
    import wandb

    name = run.resolve().name
    try:
        return wandb.init(
            project=cfg.project,
            entity=cfg.entity,
            name=cfg.name or name,
            id=_wandb_id(run),
            resume="allow",
            mode=None if cfg.mode == "online" else cfg.mode,  # None: WANDB_MODE has its say
            dir=run,
            config=values,
        )
    except wandb.errors.Error as error:
        raise UserError(
            f"wandb: {error}; log in with `wandb login`, or set wandb.mode=offline"
        ) from error


def _wandb_id(run: Path) -> str:
    """The id that a run folder keeps: going on with the folder goes on with its wandb run."""
    path = run / "wandb-id.txt"
    if not path.exists():
        write_text(path, uuid.uuid4().hex + "\n")
    return path.read_text(encoding="utf-8").strip()


def write_csv(rows: list[Row], path: Path) -> None:
    """All rows, with the union of their names as columns."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with atomic_path(path) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def draw_curves(rows: list[Row], path: Path) -> None:
    """One panel a quantity, training and held-out data in it; unroll steps as thin lines."""
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
