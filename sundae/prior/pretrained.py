"""The bundled model: a codec of 3D emoji and a prior on its tokens."""

from __future__ import annotations

from pathlib import Path

from sundae.common.errors import UserError
from sundae.prior.checkpoint import Checkpoint, open_checkpoint

BUNDLED = Path(__file__).parents[2] / "pretrained" / "emoji"


def checkpoint_or_bundled(path: Path | None) -> Checkpoint:
    """The checkpoint at a path, or without one the bundled model.

    Raises:
        UserError: see `open_checkpoint`; or the bundled model is missing.
    """
    if path is not None:
        return open_checkpoint(path)
    if not BUNDLED.is_dir():
        raise UserError(
            f"the weights that come with the project are missing from {BUNDLED}: restore them with "
            "git checkout, or give --resume RUN, the folder that train.py wrote"
        )
    return open_checkpoint(BUNDLED)
