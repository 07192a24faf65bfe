"""Which prior a tool works with: one that the user names."""

from __future__ import annotations

from pathlib import Path

from sundae.checkpoint import Checkpoint, open_checkpoint
from sundae.errors import UserError


def checkpoint_or_shipped(path: Path | None) -> Checkpoint:
    """Open the checkpoint that --resume names.

    Raises:
        UserError: none is named, or it cannot be opened; see `open_checkpoint`.
    """
    if path is None:
        raise UserError("nothing to sample from: give --resume RUN, the folder that train.py wrote")
    return open_checkpoint(path)
