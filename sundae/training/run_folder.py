"""The folder that a training writes to, and that no other process writes to meanwhile."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from accelerate import Accelerator

from sundae.common.errors import UserError
from sundae.common.locking import output_folder
from sundae.config.sections import TrainerConfig
from sundae.prior.checkpoint import Checkpoint
from sundae.prior.run import list_checkpoints, run_containing
from sundae.training.processes import broadcast_from_main


def choose_run_folder(run: Path | None, checkpoint: Checkpoint | None) -> Path | None:
    """The folder of a run, None for a new one; writes nothing.

    Args:
        run: the folder that the user named; without it a resumed run stays in its folder.
        checkpoint: what the run resumes from.

    Raises:
        UserError: the folder holds another run, or the run has gone on from the checkpoint.
    """
    if checkpoint is not None and (run is None or _holds(run, checkpoint)):
        return _folder_to_resume_in(checkpoint)
    if run is not None and list_checkpoints(run):
        raise UserError(
            f"{run} holds a run already; go on with --resume {run}, or choose another --run-dir"
        )
    return run


def _holds(run: Path, checkpoint: Checkpoint) -> bool:
    found = run_containing(checkpoint.folder)
    return found is not None and found.resolve() == run.resolve()


def _folder_to_resume_in(checkpoint: Checkpoint) -> Path:
    """The run folder of a checkpoint, of which it has to be the last one."""
    here = checkpoint.folder.resolve()
    run = run_containing(checkpoint.folder)
    if run is None:
        raise UserError(
            f"{here} does not lie in a run's checkpoints folder; "
            "choose a --run-dir for what follows"
        )
    found = [folder.name for folder in list_checkpoints(run)]
    if here.name not in found:
        raise UserError(
            f"{checkpoint.folder} is not named as a checkpoint of a run is, such as "
            "step-0001000: rename it back, or choose a --run-dir for what follows"
        )
    if here.name != found[-1]:
        raise UserError(
            f"{run} has gone on to {found[-1]}: resume from there with --resume {run}, or "
            f"choose a --run-dir for another way on from {here.name}"
        )
    return run


@contextmanager
def run_folder(
    cfg: TrainerConfig, run: Path | None, checkpoint: Checkpoint | None, accelerator: Accelerator
) -> Iterator[Path | None]:
    """The locked folder of a run, the same in all processes; None where nothing is saved.

    A new run without a folder gets EXP_DIR/EXP_NAME_<date and time>.

    Args:
        run, checkpoint: see `choose_run_folder`.

    Raises:
        UserError: see `choose_run_folder`; or another process fills the folder, or it cannot be
            written to.
        SystemExit: with 2, in all processes but the main one, which raises the UserError.
    """
    if not cfg.save_outputs:
        yield None
        return
    with ExitStack() as stack:
        folder, error = None, None
        if accelerator.is_main_process:
            try:
                chosen = choose_run_folder(run, checkpoint)
                folder = stack.enter_context(output_folder(chosen, Path(cfg.exp_dir), cfg.exp_name))
                choose_run_folder(run, checkpoint)  # another process may have ended a run there
            except UserError as refusal:
                error = refusal
        folder, failed = broadcast_from_main(folder, error is not None)
        if error is not None:
            raise error
        if failed:
            sys.exit(2)
        yield folder
