"""A prior and its codec as one folder to give away; release.py says which files it holds.

Of the run file everything is in it but what says where and who its author is: of data folders and
exp_dir that lead out of the project only the last component is left, exp_name becomes one component
of a path, and project, entity and name of [wandb] are left out.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path, PureWindowsPath
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from sundae.codec.vqgan import VQGANCodec, load_vqgan
from sundae.codec.vqgan.convert import rounded, save_codec
from sundae.common.errors import UserError
from sundae.common.files import write_text
from sundae.common.finite import first_non_finite
from sundae.common.folders import atomic_folder, restore_folder
from sundae.common.locking import target_lock
from sundae.common.naming import path_component
from sundae.config.run_file import update_config
from sundae.prior.checkpoint import CODEC, FORMAT, Checkpoint, CheckpointInfo, open_checkpoint

_CARD = "README.md"
_FILES = {_CARD, CODEC, "vqgan.json", "model.safetensors", "checkpoint.json"}
_DATA_FOLDERS = ("root", "train_root", "eval_root")


def release(run: Path, out: Path, *, overwrite: bool = False) -> Path:
    """Write a folder that sample.py can --resume without any other file.

    Args:
        run: run folder (its best checkpoint) or checkpoint of a prior on VQ-GAN tokens.
        out: folder to create. A README.md in it survives when it is replaced.
        overwrite: replace `out`, in which there may be nothing but files of a release.

    Raises:
        UserError: `out` exists, holds anything else, or is being written by another process; a
            link leads to a file outside of `run`; a weight is NaN, infinite or beyond float16; or
            the tokens were made by a codec that float16 changes.
    """
    restore_folder(out)
    _check_replaceable(out, overwrite)
    checkpoint = open_checkpoint(run)
    _check_inside(checkpoint, run)
    codec = _codec_of(checkpoint)
    net = checkpoint.load_network()
    weights = {name: tensor.half().contiguous() for name, tensor in net.state_dict().items()}
    beyond = first_non_finite(weights)
    if beyond is not None:
        raise UserError(f"{checkpoint.folder}: {beyond} is beyond the range of float16")
    info = replace(checkpoint.info, config=_self_contained(checkpoint))
    with target_lock(out):
        _check_replaceable(out, overwrite)  # another process may have written it meanwhile
        _write(out, codec, weights, info)
    return out


def _write(out: Path, codec: VQGANCodec, weights: dict[str, Tensor], info: CheckpointInfo) -> None:
    card = (out / _CARD).read_bytes() if (out / _CARD).exists() else None
    with atomic_folder(out) as folder:
        save_codec(codec, folder / CODEC, half=True)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        write_text(
            folder / "checkpoint.json",
            json.dumps({"format": FORMAT, **asdict(info)}, indent=2) + "\n",
        )
        for path in folder.glob("*.safetensors"):  # which only their owner can read
            shutil.copymode(folder / "checkpoint.json", path)
        if card is not None:
            (folder / _CARD).write_bytes(card)


def _check_replaceable(out: Path, overwrite: bool) -> None:
    """UserError unless `out` is free, or may be replaced and holds files of a release only."""
    if out.is_symlink():
        raise UserError(f"{out} is a link; give the folder that it leads to as OUT")
    if out.exists() and not overwrite:
        raise UserError(f"{out} exists; choose another OUT or pass --overwrite")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is no folder; choose another OUT")
    for path in sorted(out.iterdir()) if out.exists() else []:
        if path.name not in _FILES:
            raise UserError(f"{out} holds {path.name}, no part of a release; choose another OUT")
        if path.is_symlink() or not path.is_file():  # what a link leads to may be private
            raise UserError(f"{path} is no plain file, as all of a release are; remove it")


def _check_inside(checkpoint: Checkpoint, run: Path) -> None:
    """UserError where a link leads from the folder that was named to a file outside of it."""
    root = (run.parent if run.is_file() else run).resolve()
    for path in checkpoint.files:
        if not path.resolve().is_relative_to(root):
            raise UserError(
                f"{path} leads out of {root} to {path.resolve()}; put the file itself there, or "
                "name the folder that it lies in as RUN"
            )


def _codec_of(checkpoint: Checkpoint) -> VQGANCodec:
    """The codec that the run's tokens were made by, if float16 holds it exactly."""
    vqgan = checkpoint.config.vqgan
    if vqgan is None:
        raise UserError(f"{checkpoint.folder} was trained on pixels: there is no codec to release")
    codec = load_vqgan(
        vqgan.checkpoint, vqgan.config, input_range=vqgan.input_range, distance=vqgan.distance
    )
    if codec.identity != checkpoint.info.codec:
        raise UserError(
            f"{vqgan.checkpoint} is not the codec that {checkpoint.folder} was trained with"
        )
    if rounded(codec).identity != codec.identity:
        raise UserError(
            f"{vqgan.checkpoint} has weights that float16 cannot hold: write it with `python "
            "convert-vqgan.py --half`, make the latents with that, and train on them"
        )
    return codec


def _self_contained(checkpoint: Checkpoint) -> dict[str, Any]:
    """The run file, naming the codec that lies beside it and nothing of its author's machine."""
    source = str(checkpoint.folder)
    values = update_config(checkpoint.config, {"vqgan.checkpoint": CODEC}, source).to_dict()
    left_out = {
        "vqgan": ("config", "input_range", "distance"),
        "wandb": ("project", "entity", "name"),
    }
    for section, keys in left_out.items():
        values[section] = {k: v for k, v in values[section].items() if k not in keys}
    values["trainer"]["exp_name"] = path_component(values["trainer"]["exp_name"])
    for section, key in (("trainer", "exp_dir"), *(("data", key) for key in _DATA_FOLDERS)):
        if key in values[section]:  # loading needs [data] to name some folder, but does not open it
            values[section][key] = _portable(values[section][key])
    return values


def _portable(path: str) -> str:
    """A relative path as it is; of one that leads elsewhere the last component."""
    pure = PureWindowsPath(path)  # which knows the separators of all systems
    leads_out = pure.drive or pure.root or ".." in pure.parts or path.startswith("~")
    return path_component(pure.name) if leads_out else path
