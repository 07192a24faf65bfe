"""The log of a run: a CSV, a plot of its curves, images and, optionally, wandb."""

from __future__ import annotations

import csv
import importlib.util
import uuid
from pathlib import Path
from typing import Any

from torch import Tensor

from sundae.common.errors import UserError
from sundae.common.files import atomic_path, make_folder, write_text
from sundae.common.images import save_image, to_pil
from sundae.config.sections import WandbConfig
from sundae.training.curves import draw_curves
from sundae.training.metrics import Row


class Logbook:
    """Everything a run writes beside its checkpoints.

    Attributes:
        run: the run folder, or None where nothing is saved.
        wandb_run: see `start_wandb`.
        rows: the metrics of every evaluation, as in RUN/curves.csv and RUN/curves.png.
    """

    def __init__(self, run: Path | None, wandb_run: Any = None, *, quiet: bool = False) -> None:
        self.run, self.wandb_run, self.quiet = run, wandb_run, quiet
        self.rows: list[Row] = []

    def rewind(self, step: int) -> None:
        """Read the rows of an earlier part of the run, without those after `step`."""
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
            _write_csv(self.rows, self.run / "curves.csv")
            draw_curves(self.rows, self.run / "curves.png")
        if self.wandb_run is not None:
            self.wandb_run.log(row, step=int(row["step"]))

    def log_image(self, name: str, image: Tensor, step: int) -> None:
        """Save an image (3, H, W) in [0, 1] as RUN/NAME/step-NNNNNNN.png; send it to wandb."""
        if self.run is not None:
            save_image(image, make_folder(self.run / name) / f"step-{step:07d}.png")
        if self.wandb_run is not None:
            import wandb

            self.wandb_run.log({name: wandb.Image(to_pil(image))}, step=step)

    def close(self) -> None:
        """Finish the wandb run."""
        if self.wandb_run is not None:
            self.wandb_run.finish()


def _write_csv(rows: list[Row], path: Path) -> None:
    """All rows, with the union of their names as columns."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with atomic_path(path) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def check_wandb(saves: bool) -> None:
    """UserError where --wandb cannot work; does not spend a second on importing wandb."""
    if not saves:
        raise UserError("--wandb keeps its log in the run folder: leave out --no-save")
    if importlib.util.find_spec("wandb") is None:
        raise UserError("--wandb needs wandb: pip install -r requirements-wandb.txt")


def start_wandb(cfg: WandbConfig, run: Path, values: dict[str, Any]) -> Any:
    """Begin or resume the wandb run that belongs to a run folder.

    Raises:
        UserError: wandb is not installed, or refuses the login.
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
            mode=None if cfg.mode == "online" else cfg.mode,  # None: WANDB_MODE decides
            dir=run,
            config=values,
        )
    except wandb.errors.Error as error:
        raise UserError(
            f"wandb: {error}; log in with `wandb login`, or set wandb.mode=offline"
        ) from error


def _wandb_id(run: Path) -> str:
    """The id in a run folder: resuming the run resumes its wandb run."""
    path = run / "wandb-id.txt"
    if not path.exists():
        write_text(path, uuid.uuid4().hex + "\n")
    return path.read_text(encoding="utf-8").strip()
