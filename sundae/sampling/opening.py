"""What a script samples from: checkpoint, run file, codec and classes, which agree."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sundae.codec.interface import Codec, open_codec
from sundae.common.errors import UserError
from sundae.config.flags import values_of
from sundae.config.run_file import (
    RunConfig,
    SamplingConfig,
    load_config,
    parse_config,
    update_config,
)
from sundae.prior.checkpoint import Checkpoint
from sundae.prior.compatibility import check_same_codec, check_same_network
from sundae.prior.pretrained import checkpoint_or_bundled


def open_to_sample(args: Namespace) -> tuple[Checkpoint, RunConfig, Codec]:
    """What a script samples from: --resume or the shipped pair, its run file with all flags in it,
    and its codec.

    Raises:
        UserError: something is missing, wrong, or does not belong together.
    """
    checkpoint = checkpoint_or_bundled(args.resume)
    cfg = config_to_sample(checkpoint, args.cfg_path, args.overrides)
    cfg = update_config(cfg, values_of(args, SamplingConfig), str(checkpoint.folder))
    codec = open_codec(cfg)
    check_same_codec(codec.identity, checkpoint)
    return checkpoint, cfg, codec


def config_to_sample(
    checkpoint: Checkpoint, run_file: Path | None, overrides: Sequence[str]
) -> RunConfig:
    """What a checkpoint is sampled with: a run file, or without one what it was trained with.

    Args:
        overrides: "section.key=value", applied last.

    Raises:
        UserError: nonsense in it, or it describes another network than the checkpoint's.
    """
    if run_file is not None:
        cfg = load_config(run_file, overrides)
    else:
        cfg = parse_config(checkpoint.info.config, str(checkpoint.folder), overrides)
    check_same_network(cfg, checkpoint)
    return cfg


def chosen_classes(
    names: Sequence[str] | None,
    checkpoint: Checkpoint,
    count: int,
    offset: int = 0,
    *,
    any_unless_named: bool = False,
    guided: bool = False,
) -> Tensor | None:
    """(count,) int64: the classes of samples offset .. offset+count-1, in turn.

    Args:
        names: of classes, or their numbers; all classes unless given.
        any_unless_named: without names take the class that means any, if the network has learned
            one, instead of all classes.
        guided: whether guidance is asked for, which any class gives no direction.

    Returns:
        None for an unconditional network.

    Raises:
        UserError: there is no such class, or there are none at all.
    """
    if not checkpoint.config.net.conditional:
        if names:
            raise UserError(
                f"--class: {checkpoint.folder} was trained without classes; leave it out"
            )
        return None
    null = checkpoint.config.net.null_class
    if any_unless_named and not names and null is not None:
        if guided:
            raise UserError("--guidance leads towards a class: name one with --class")
        return torch.full((count,), null)
    known = checkpoint.info.classes or []
    if not known:
        raise UserError(
            f"{checkpoint.folder} names no classes; it is damaged, use another checkpoint"
        )
    wanted = torch.tensor([class_number(name, known) for name in names or known])
    return wanted[torch.arange(offset, offset + count) % len(wanted)]


def class_number(name: str, names: list[str], *, named: str = "--class") -> int:
    """The index of a class given by name, or by number where no class has that name.

    Args:
        named: how an error calls what asked for a class.

    Raises:
        UserError: there is no such class.
    """
    if name in names:
        return names.index(name)
    if name.isdecimal() and int(name) < len(names):
        return int(name)
    raise UserError(f"{named} {name}: expected one of {', '.join(names)}, or 0 to {len(names) - 1}")
