"""The trained pair that comes with the project: a codec of 3D emoji and a prior on its tokens."""

from __future__ import annotations

from pathlib import Path

from sundae.common.errors import UserError
from sundae.prior.checkpoint import Checkpoint, open_checkpoint

SHIPPED = Path(__file__).parents[2] / "pretrained" / "emoji"


def checkpoint_or_shipped(path: Path | None) -> Checkpoint:
    """What --resume names, or the shipped pair when it names nothing.

    Raises:
        UserError: see `open_checkpoint`; or the shipped pair is not there.
    """
    if path is not None:
        return open_checkpoint(path)
    if not SHIPPED.is_dir():
        raise UserError(
            f"the weights that come with the project are missing from {SHIPPED}: restore them with "
            "git checkout, or give --resume RUN, the folder that train.py wrote"
        )
    return open_checkpoint(SHIPPED)
