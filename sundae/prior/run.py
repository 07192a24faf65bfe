"""Run folders: the files of a run, its checkpoints in order, and the best of them.

RUN/config.toml                       the resolved run file
RUN/checkpoints/step-0001000/         one folder a checkpoint
    checkpoint.json                   step, config, classes, codec, metrics
    model.safetensors                 the weights in training
    ema.safetensors                   their moving average, if there is one
    training.pt                       optimiser state and counters, to resume from
RUN/best.json                         which checkpoint is the best
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from sundae.common.errors import UserError
from sundae.common.files import write_text, writing_to
from sundae.common.folders import restore_folder, restore_folders

INFO, MODEL = "checkpoint.json", "model.safetensors"
EMA, TRAINING = "ema.safetensors", "training.pt"
RUN_FILE = "config.toml"
_CHECKPOINTS, _BEST = "checkpoints", "best.json"
_NAME = re.compile(r"step-[0-9]+")


def checkpoint_path(run: Path, step: int) -> Path:
    """The folder of the checkpoint of a step."""
    return run / _CHECKPOINTS / f"step-{step:07d}"


def list_checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run folder, oldest first."""
    restore_folders(run / _CHECKPOINTS)
    found = (info.parent for info in (run / _CHECKPOINTS).glob(f"step-*/{INFO}"))
    named = (folder for folder in found if _NAME.fullmatch(folder.name))
    # Beyond seven digits names no longer sort as their numbers do.
    return sorted(named, key=lambda folder: (len(folder.name), folder.name))


def find_checkpoint(path: Path, *, prefer_best: bool) -> Path:
    """The checkpoint folder that a path leads to; UserError where there is none.

    Args:
        path: a checkpoint's folder, a file in it, or a run folder.
        prefer_best: which checkpoint of a run folder: the best, or else the last.
    """
    folder = path.parent if path.is_file() else path
    restore_folder(folder)
    if (folder / INFO).exists():
        return folder
    if not folder.is_dir():
        raise UserError(f"{path} does not exist; give a run folder or a checkpoint folder")
    if found := list_checkpoints(folder):
        best = _best_name(folder) if prefer_best else None
        return next((checkpoint for checkpoint in found if checkpoint.name == best), found[-1])
    if (folder / RUN_FILE).exists():
        raise UserError(
            f"{path} was stopped before its first checkpoint; train it from the start with "
            f"--cfg-path {folder / RUN_FILE} --run-dir {folder}"
        )
    raise UserError(f"{path} holds no checkpoint; expected {INFO}, or checkpoints/step-*/{INFO}")


def run_containing(folder: Path) -> Path | None:
    """The run that a checkpoint's folder lies in, or None where it was moved out of one."""
    if folder.parent.name != _CHECKPOINTS:
        folder = folder.resolve()  # it may be "."
    return folder.parent.parent if folder.parent.name == _CHECKPOINTS else None


def mark_best(run: Path, checkpoint: Path, metric: str, value: float) -> None:
    """Record a checkpoint as the best of its run."""
    best = {"checkpoint": checkpoint.name, "metric": metric, "value": value}
    write_text(run / _BEST, json.dumps(best, indent=2) + "\n")


def _best_name(run: Path) -> str | None:
    """Name of the best checkpoint, which may have been deleted; None if none is marked."""
    path = run / _BEST
    if not path.exists():
        return None
    remedy = "delete it, and the last checkpoint counts as the best"
    name = read_json(path, remedy).get("checkpoint")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UserError(
            f"{path}: checkpoint is {name!r}, expected a name such as step-0001000; {remedy}"
        )
    return name


def delete_checkpoint(folder: Path) -> None:
    """Delete the folder of a checkpoint, which never looks complete when it is half deleted."""
    hidden = folder.with_name(f".{folder.name}.partial")
    os.replace(folder, hidden)
    shutil.rmtree(hidden)


def prune_checkpoints(run: Path, keep: int) -> None:
    """Delete all but the last `keep` checkpoints and the best; 0 deletes none.

    Folders that a killed run left half written are deleted as well.
    """
    best = _best_name(run)
    with writing_to(run):
        complete = list_checkpoints(run)
        for folder in complete[:-keep] if keep else []:
            if folder.name != best:
                delete_checkpoint(folder)
        for kind in ("partial", "replaced"):
            for leftover in (run / _CHECKPOINTS).glob(f".step-*.{kind}"):
                shutil.rmtree(leftover)


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """The object in a JSON file; UserError with the remedy where there is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} cannot be read ({reason}); {remedy}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a JSON object; {remedy}")
    return values
