"""What has to agree before a run starts: data, codec, network, run folder, checkpoint."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from sundae.checkpoint import Checkpoint, list_checkpoints, run_containing
from sundae.codecs import Codec, open_codec
from sundae.config import RunConfig, dump_toml, load_config, parse_config, with_sampling_flags
from sundae.errors import UserError
from sundae.files import make_folder, write_text
from sundae.latents import Latents, TokenDataset, check_agreement, open_latents
from sundae.locking import output_folder
from sundae.prior import null_class
from sundae.shipped import checkpoint_or_shipped
from sundae.splits import split_rows
from sundae.trainer import RunSettings


def open_to_sample(args: Namespace) -> tuple[Checkpoint, RunConfig, Codec]:
    """What a script samples from: --resume or the shipped pair, its run file with all flags in it,
    and its codec.

    Raises:
        UserError: something is missing, wrong, or does not belong together.
    """
    checkpoint = checkpoint_or_shipped(args.resume)
    cfg = config_to_sample(checkpoint, args.cfg_path, args.overrides)
    cfg = with_sampling_flags(cfg, args, str(checkpoint.folder))
    codec = open_codec(cfg)
    check_same_codec(codec.identity, checkpoint)
    return checkpoint, cfg, codec


def open_datasets(cfg: RunConfig, codec_identity: str) -> tuple[TokenDataset, TokenDataset]:
    """(training, held-out) rows of a run's data, checked against the network and the codec.

    Raises:
        UserError: data that is missing or does not belong to this run; see `check_agreement`.
    """
    if cfg.data.root is not None:
        latents = _open_checked(cfg, cfg.data.root, codec_identity)
        assert cfg.data.split_sizes is not None
        train, held_out = split_rows(latents, cfg.data.split_sizes)
        return _complete(cfg, TokenDataset(latents, train)), TokenDataset(latents, held_out)
    assert cfg.data.train_root is not None and cfg.data.eval_root is not None
    sides = [
        _open_checked(cfg, root, codec_identity)
        for root in (cfg.data.train_root, cfg.data.eval_root)
    ]
    if cfg.net.conditional and sides[0].classes != sides[1].classes:
        raise UserError(
            f"{cfg.data.train_root} and {cfg.data.eval_root} have different classes; "
            "generate both from folders of the same names"
        )
    return _complete(cfg, TokenDataset(sides[0])), TokenDataset(sides[1])


def _complete(cfg: RunConfig, data: TokenDataset) -> TokenDataset:
    """The data itself; UserError when the network is to learn a class that has no picture."""
    latents = data.latents
    if cfg.net.conditional and latents.labels is not None and latents.classes is not None:
        present = set(latents.labels[latents.pictures[data.rows]].tolist())
        for number, name in enumerate(latents.classes):
            if number not in present:
                raise UserError(
                    f"{latents.root}: class '{name}' has no pictures to train on; add some or "
                    "generate the data again without it"
                )
    return data


def _open_checked(cfg: RunConfig, root: Path, codec_identity: str) -> Latents:
    latents = open_latents(root, cfg.grid_shape)
    check_agreement(
        latents,
        vocab_size=cfg.data.vocab_size,
        latent_shape=cfg.grid_shape,
        num_classes=cfg.net.num_classes if cfg.net.conditional else None,
        codec_identity=codec_identity,
    )
    return latents


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


def check_same_network(cfg: RunConfig, checkpoint: Checkpoint) -> None:
    """Make sure that a checkpoint belongs to the network a run file describes.

    Raises:
        UserError: naming the first key that differs and both its values.
    """
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
    shape = dict(vars(net))
    return shape | {"class_dropout": net.class_dropout > 0}


def check_same_codec(identity: str, checkpoint: Checkpoint) -> None:
    """Make sure that tokens mean to the codec what they meant in training.

    Raises:
        UserError: naming both.
    """
    if identity != checkpoint.info.codec:
        raise UserError(
            f"{checkpoint.folder} was trained on tokens of codec {checkpoint.info.codec}, "
            f"vqgan.checkpoint is codec {identity}: set vqgan.checkpoint to the one of the training"
        )


def check_same_classes(classes: Sequence[str] | None, checkpoint: Checkpoint) -> None:
    """Make sure that class numbers mean in the data what they meant in training.

    Raises:
        UserError: naming both.
    """
    before, now = checkpoint.info.classes or [], list(classes or [])
    if before != now:
        raise UserError(
            f"{checkpoint.folder} was trained on the classes {', '.join(before)}, the data has "
            f"{', '.join(now)}: generate the data again from folders of the old names"
        )


def learned_classes(cfg: RunConfig, data: TokenDataset) -> list[str] | None:
    """Names of the classes that a network learns; None for an unconditional one."""
    return list(data.latents.classes or ()) if cfg.net.conditional else None


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
    null = null_class(checkpoint.config.net)
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
