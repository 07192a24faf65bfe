"""Run folders: which one a run is kept in, and who may write to it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from sundae.common.errors import UserError
from sundae.common.files import make_folder, write_text
from sundae.common.locking import output_folder
from sundae.config.run_file import (
    RunConfig,
    dump_toml,
)
from sundae.prior.checkpoint import Checkpoint, list_checkpoints, run_containing
from sundae.training.trainer import RunSettings


def choose_run_folder(run: Path | None, checkpoint: Checkpoint | None) -> Path | None:
    """Where a run is kept, None for a folder of its own; writes nothing.

    Args:
        run: where to, as the user asked. Otherwise a run that goes on stays where it is.
        checkpoint: what to go on from.

    Raises:
        UserError: there is another run already, or the run has gone on from the checkpoint.
    """
    if checkpoint is not None and (run is None or _holds(run, checkpoint)):
        run = run_of(checkpoint)
        found = [folder.name for folder in list_checkpoints(run)]
        here = checkpoint.folder.resolve().name
        if here not in found:
            raise UserError(
                f"{checkpoint.folder} is not named as a checkpoint of a run is, such as "
                "step-0001000: rename it back, or choose a --run-dir for what follows"
            )
        if here != found[-1]:
            raise UserError(
                f"{run} has gone on to {found[-1]}: resume from there with --resume {run}, or "
                f"choose a --run-dir for another way on from {here}"
            )
        return run
    if run is not None and list_checkpoints(run):
        raise UserError(
            f"{run} holds a run already; go on with --resume {run}, or choose another --run-dir"
        )
    return run


def check_run_folder(cfg: RunSettings, run: Path | None, checkpoint: Checkpoint | None) -> None:
    """UserError where a run cannot be kept, as `run_folder` would raise; writes nothing."""
    if cfg.trainer.save_outputs:
        choose_run_folder(run, checkpoint)


@contextmanager
def run_folder(
    cfg: RunSettings, run: Path | None, checkpoint: Checkpoint | None, accelerator: Accelerator
) -> Iterator[Path | None]:
    """The folder of a run, which no other process fills meanwhile, the same in all processes.

    A run that has no folder yet gets EXP_DIR/EXP_NAME_<date and time>. It is None where nothing is
    saved.

    Args:
        run, checkpoint: see `choose_run_folder`.

    Raises:
        UserError: see `choose_run_folder`; or another process fills the folder, or it cannot be
            written to.
        SystemExit: with 2, in all processes but the main one, which says what is wrong.
    """
    if not cfg.trainer.save_outputs:
        yield None
        return
    with ExitStack() as stack:
        folder, error = None, None
        if accelerator.is_main_process:
            try:
                folder = stack.enter_context(_locked_run_folder(cfg, run, checkpoint))
            except UserError as refusal:
                error = refusal
        folder, failed = agreed(folder, error is not None)
        if error is not None:
            raise error
        if failed:
            sys.exit(2)
        yield folder


@contextmanager
def _locked_run_folder(
    cfg: RunSettings, run: Path | None, checkpoint: Checkpoint | None
) -> Iterator[Path]:
    chosen = choose_run_folder(run, checkpoint)
    parent = Path(cfg.trainer.exp_dir)
    with output_folder(chosen, parent, cfg.trainer.exp_name) as folder:
        choose_run_folder(run, checkpoint)  # another process may have ended a run there just now
        yield folder


def keep_run_file(cfg: RunConfig, run: Path) -> None:
    """Create the folder of a run, if need be, and put the resolved run file into it.

    Raises:
        UserError: it cannot be written.
    """
    write_text(make_folder(run) / "config.toml", dump_toml(cfg))


def agreed(*values: Any) -> list[Any]:
    """The main process's values, in every process."""
    return broadcast_object_list(list(values))


def _holds(run: Path, checkpoint: Checkpoint) -> bool:
    return checkpoint.folder.resolve().parent == (run / "checkpoints").resolve()


def run_of(checkpoint: Checkpoint) -> Path:
    """The run folder that a checkpoint lies in, to go on there.

    Raises:
        UserError: it was moved out of its run folder.
    """
    run = run_containing(checkpoint.folder)
    if run is None:
        raise UserError(
            f"{checkpoint.folder.resolve()} does not lie in a run's checkpoints folder; "
            "choose a --run-dir for what follows"
        )
    return run
