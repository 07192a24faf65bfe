"""What a checkpoint and a run file, a codec and classes have to agree on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sundae.common.errors import UserError
from sundae.config.run_file import RunConfig
from sundae.prior.checkpoint import Checkpoint


def check_same_network(cfg: RunConfig, checkpoint: Checkpoint) -> None:
    """UserError where a checkpoint is of another network than the run file's, naming a key."""
    theirs = checkpoint.config
    pairs = {
        "data.vocab_size": (cfg.data.vocab_size, theirs.data.vocab_size),
        "data.sequence_length": (cfg.data.sequence_length, theirs.data.sequence_length),
        "latent_shape": (cfg.grid_shape, theirs.grid_shape),
    }
    shape, their_shape = _without_dropout(cfg), _without_dropout(theirs)
    pairs |= {f"net.{key}": (value, their_shape.get(key)) for key, value in shape.items()}
    for key, (here, there) in pairs.items():
        if here != there:
            raise UserError(
                f"{checkpoint.folder} was trained with {key} = {there}, the run file says {here}; "
                "use the run file of the checkpoint (or none), or another checkpoint"
            )


def _without_dropout(cfg: RunConfig) -> dict[str, object]:
    net = replace(cfg.net, emb_dropout=0.0, attn_dropout=0.0, ff_dropout=0.0)
    return vars(net) | {"class_dropout": net.class_dropout > 0}


def check_same_codec(identity: str, checkpoint: Checkpoint) -> None:
    """UserError where the tokens of a codec are not those of the training."""
    if identity != checkpoint.info.codec:
        raise UserError(
            f"{checkpoint.folder} was trained on tokens of codec {checkpoint.info.codec}, "
            f"vqgan.checkpoint is codec {identity}: set vqgan.checkpoint to the one of the training"
        )


def check_same_classes(classes: Sequence[str] | None, checkpoint: Checkpoint) -> None:
    """UserError where the classes of the data are not those of the training."""
    before, now = checkpoint.info.classes or [], list(classes or [])
    if before != now:
        raise UserError(
            f"{checkpoint.folder} was trained on the classes {', '.join(before)}, the data has "
            f"{', '.join(now)}: generate the data again from folders of the old names"
        )
