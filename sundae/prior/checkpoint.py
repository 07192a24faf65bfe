"""Run folders and checkpoints: what is saved, how it is found again, and a network rebuilt from it.

RUN/config.toml                       the resolved run file
RUN/checkpoints/step-0001000/         one folder a checkpoint
    checkpoint.json                   what it is: step, config, classes, codec, metrics
    model.safetensors                 the weights in training
    ema.safetensors                   their moving average, if there is one
    training.pt                       optimiser state and counters, to go on from here
RUN/best.json                         which checkpoint was best

A released checkpoint (`release`) has one set of weights, no optimiser, and its codec beside
it: vqgan.safetensors and vqgan.json.

A checkpoint with weights that are NaN or infinite, raw or averaged, is never loaded, and one with
such moments is not trained on: the error names the last good checkpoint of the run. `Trainer.save`
never writes any.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hourglass_transformer import HourglassTransformer
from sundae.common.errors import UserError
from sundae.common.files import write_text, writing_to
from sundae.common.finite import NonFiniteError, check_finite, named_tensors
from sundae.common.folders import atomic_folder, restore_folder, restore_folders
from sundae.config.keys import shown
from sundae.config.run_file import RunConfig, parse_config
from sundae.prior.network import build_network

FORMAT = 1
CODEC = "vqgan.safetensors"  # where it lies in a checkpoint's folder, it is that run's codec
_NAME = re.compile(r"step-[0-9]+")
_INFO, _MODEL, _EMA, _TRAINING = (
    "checkpoint.json",
    "model.safetensors",
    "ema.safetensors",
    "training.pt",
)


@dataclass(frozen=True)
class CheckpointInfo:
    """The readable part of a checkpoint.

    Attributes:
        step: optimiser steps done.
        config: the resolved run file as plain values.
        codec: identity of the codec that the tokens mean something to.
        classes: names of the classes, or None for an unconditional network.
        seed: seed of the training run.
        metrics: of the last evaluation, "eval/loss" and so on.
        kind: what was trained: "prior", or "vqgan" for a codec.
    """

    step: int
    config: dict[str, Any]
    codec: str
    classes: list[str] | None = None
    seed: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    kind: str = "prior"


_KEY_TYPES: dict[str, tuple[type, ...]] = {
    "kind": (str,),
    "step": (int,),
    "config": (dict,),
    "codec": (str,),
    "classes": (list, type(None)),
    "seed": (int,),
    "metrics": (dict,),
}


# Weights, averaged weights if there are any, and the optimiser's state and counters.
TrainingState = tuple[dict[str, Tensor], dict[str, Tensor] | None, dict[str, Any]]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk; its readable part is parsed and checked, its weights are not read yet.

    Attributes:
        folder: where it is.
        info: its readable part.
    """

    folder: Path
    info: CheckpointInfo

    @property
    def files(self) -> list[Path]:
        """What is read to sample: the readable part, the weights, and a codec beside them."""
        names = (_INFO, _MODEL, _EMA, CODEC, Path(CODEC).with_suffix(".json").name)
        return [self.folder / name for name in names if (self.folder / name).exists()]

    @cached_property
    def config(self) -> RunConfig:
        """The run file that a prior was trained with; UserError where it says nonsense."""
        return parse_config(self.info.config, source=str(self.folder / _INFO))

    def load_network(self, *, ema: bool = True) -> HourglassTransformer:
        """The network with its averaged (or raw) weights, in evaluation mode, on the CPU.

        Raises:
            UserError: the weights are damaged, not finite, or of another network.
        """
        try:
            weights = self._read_weights(ema)
        except NonFiniteError as error:
            raise UserError(f"{error}; {self._to_sample_instead(ema)}") from error
        with torch.device("meta"):
            net = build_network(self.config)
        weights = {n: t.float() if t.is_floating_point() else t for n, t in weights.items()}
        load_into(net, weights, self.folder)
        net.reset_tables()
        return net.eval()

    def load_training(self) -> TrainingState:
        """What training goes on from, on the CPU.

        Raises:
            UserError: it is missing, damaged or not finite.
        """
        try:
            return self._read_training()
        except NonFiniteError as error:
            run = run_containing(self.folder)
            remedy = way_back(self.info.kind, run) if run else "use another checkpoint"
            raise UserError(f"{error}; {remedy}") from error

    def _read_weights(self, ema: bool) -> dict[str, Tensor]:
        """The averaged or the raw weights; the others have to be finite, too."""
        averaged = load_weights(self.folder / _EMA) if (self.folder / _EMA).exists() else None
        raw = load_weights(self.folder / _MODEL)
        return averaged if ema and averaged is not None else raw

    def _read_training(self) -> TrainingState:
        averaged = self.folder / _EMA
        path = self.folder / _TRAINING
        if not path.exists():
            raise UserError(
                f"{path} is missing: this checkpoint can be sampled from, not trained on"
            )
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises half a dozen types for a damaged file
            raise UserError(
                f"{path} cannot be read ({_first_line(error)}); use another checkpoint"
            ) from error
        optimizer = state.get("optimizer") if isinstance(state, dict) else None
        check_finite(named_tensors(optimizer, "optimizer"), path)
        ema = load_weights(averaged) if averaged.exists() else None
        return load_weights(self.folder / _MODEL), ema, state

    def _to_sample_instead(self, ema: bool) -> str:
        """The way out for whoever samples from weights that are not finite."""
        run = run_containing(self.folder)
        good = _last_good(
            list_checkpoints(run) if run else [],
            lambda folder: open_checkpoint(folder)._read_weights(ema),
        )
        if good is None:
            return "use another checkpoint"
        return f"the last good checkpoint of the run is {good} (--resume {good})"


def open_checkpoint(path: Path, *, kind: str = "prior", prefer_best: bool = True) -> Checkpoint:
    """Open a checkpoint.

    Args:
        path: a checkpoint's folder, a file in it, or a run folder.
        kind: what it has to be of, see `CheckpointInfo`.
        prefer_best: which one of a run folder: the best, or else the last.

    Raises:
        UserError: nothing there, damaged, of another kind, or written by a later version.
    """
    folder = _find(path, prefer_best)
    values = _read_json(folder / _INFO)
    if values.pop("format", None) != FORMAT:
        raise UserError(
            f"{folder / _INFO}: not a checkpoint of format {FORMAT}; update the toolkit"
        )
    try:
        info = CheckpointInfo(**values)
    except TypeError as error:
        raise UserError(f"{folder / _INFO}: damaged ({error}); use another checkpoint") from error
    for name, kinds in _KEY_TYPES.items():
        if not isinstance(getattr(info, name), kinds):
            raise UserError(
                f"{folder / _INFO}: damaged ({name} is {shown(getattr(info, name))}); "
                "use another checkpoint"
            )
    if info.kind != kind:
        raise UserError(f"{folder} is a checkpoint of a {info.kind}, expected one of a {kind}")
    if (folder / CODEC).exists():
        info.config["vqgan"] = {**info.config.get("vqgan", {}), "checkpoint": str(folder / CODEC)}
    checkpoint = Checkpoint(folder, info)
    if kind == "prior":
        _ = checkpoint.config  # nonsense in it is better found now than in the middle of work
    return checkpoint


def _find(path: Path, prefer_best: bool) -> Path:
    folder = path.parent if path.is_file() else path
    restore_folder(folder)
    if (folder / _INFO).exists():
        return folder
    if not folder.is_dir():
        raise UserError(f"{path} does not exist; give a run folder or a checkpoint folder")
    if found := list_checkpoints(folder):
        best = _best_name(folder) if prefer_best else None
        return next((checkpoint for checkpoint in found if checkpoint.name == best), found[-1])
    if (folder / "config.toml").exists():
        raise UserError(
            f"{path} was stopped before its first checkpoint; train it from the start with "
            f"--cfg-path {folder / 'config.toml'} --run-dir {folder}"
        )
    raise UserError(f"{path} holds no checkpoint; expected {_INFO}, or checkpoints/step-*/{_INFO}")


def list_checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run folder, oldest first."""
    restore_folders(run / "checkpoints")
    found = (info.parent for info in (run / "checkpoints").glob(f"step-*/{_INFO}"))
    named = (folder for folder in found if _NAME.fullmatch(folder.name))
    # Beyond seven digits names no longer sort as their numbers do.
    return sorted(named, key=lambda folder: (len(folder.name), folder.name))


def _best_name(run: Path) -> str | None:
    """Which checkpoint of the run was marked as the best; it may be gone.

    Raises:
        UserError: best.json says nothing like it.
    """
    path = run / "best.json"
    if not path.exists():
        return None
    remedy = "delete it, and the last checkpoint counts as the best"
    name = _read_json(path, remedy).get("checkpoint")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UserError(
            f"{path}: checkpoint is {shown(name)}, expected a name such as step-0001000; {remedy}"
        )
    return name


def run_containing(folder: Path) -> Path | None:
    """The run that a checkpoint's folder lies in, or None where it was moved out of one."""
    if folder.parent.name != "checkpoints":
        folder = folder.resolve()  # it may be "."
    return folder.parent.parent if folder.parent.name == "checkpoints" else None


def way_back(kind: str, run: Path | None, origin: Path | None = None) -> str:
    """What to do about a training that has become NaN or infinite: part of an error's line.

    Args:
        kind: what is trained, see `CheckpointInfo`.
        run: its run folder, or None where nothing is saved.
        origin: the checkpoint it was resumed from, which may lie in another run.
    """
    section = "trainer" if kind == "prior" else "training"
    change = f"lower {section}.learning_rate, set {section}.clip_grad or add --no-amp"
    found = list_checkpoints(run) if run else []
    earlier = [origin] if origin and origin not in found else []
    good = _last_good(
        [*earlier, *found], lambda folder: open_checkpoint(folder, kind=kind)._read_training()
    )
    if good is None:
        return f"the run has no good checkpoint: {change}, and train from the start"
    # A run does not go on in place from a checkpoint that is not its last.
    flags = f"--resume {run}" if good in found[-1:] else f"--resume {good} --run-dir NEW"
    return f"the last good checkpoint is {good}: {change}, and go on with {flags}"


def _last_good(folders: list[Path], read: Callable[[Path], object]) -> Path | None:
    """The last of some checkpoints that can be read; what cannot or is not finite is passed by."""
    for folder in reversed(folders):
        with suppress(UserError):
            read(folder)
            return folder
    return None


def save_checkpoint(
    run: Path,
    info: CheckpointInfo,
    *,
    net: nn.Module,
    ema: nn.Module | None,
    training: dict[str, Any],
) -> Path:
    """Write a checkpoint; it appears under its name only when it is complete.

    Returns:
        its folder, RUN/checkpoints/step-NNNNNNN.

    Raises:
        UserError: it cannot be written; nothing of it is left.
    """
    target = run / "checkpoints" / f"step-{info.step:07d}"
    weights = {_MODEL: _contiguous(net.state_dict())}
    if ema is not None:
        weights[_EMA] = _contiguous(ema.state_dict())
    with atomic_folder(target) as folder:
        try:
            torch.save(training, folder / _TRAINING)
            for name, tensors in weights.items():
                save_file(tensors, folder / name)
                # safetensors lets nobody but the owner read; the umask decides, as for the others.
                shutil.copymode(folder / _TRAINING, folder / name)
        except (RuntimeError, SafetensorError) as error:  # what a full disk is to them
            raise UserError(
                f"cannot write to {target} ({_first_line(error)}); is the disk full?"
            ) from error
        write_text(folder / _INFO, json.dumps({"format": FORMAT, **asdict(info)}, indent=2) + "\n")
    return target


def mark_best(run: Path, checkpoint: Path, metric: str, value: float) -> None:
    """Remember which checkpoint of the run is the best so far."""
    best = {"checkpoint": checkpoint.name, "metric": metric, "value": value}
    write_text(run / "best.json", json.dumps(best, indent=2) + "\n")


def prune_checkpoints(run: Path, keep: int) -> None:
    """Delete all but the last `keep` checkpoints and the best; 0 keeps all.

    What a killed run has left half written goes, too.
    """
    spared = _best_name(run)
    with writing_to(run):
        complete = list_checkpoints(run)
        for folder in complete[:-keep] if keep else []:
            if folder.name != spared:  # half deleted, it must not look complete
                os.replace(folder, folder.with_name(f".{folder.name}.partial"))
        for kind in ("partial", "replaced"):
            for leftover in (run / "checkpoints").glob(f".step-*.{kind}"):
                shutil.rmtree(leftover)


def load_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, on the CPU.

    Raises:
        NonFiniteError: one holds NaN or an infinite value.
        UserError: the file is missing or damaged.
    """
    try:
        weights: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path} cannot be read ({_first_line(error)}); use another checkpoint"
        ) from error
    check_finite(weights, path)
    return weights


def load_into(net: nn.Module, weights: dict[str, Tensor], source: Path) -> None:
    """Give a network its weights; UserError where they belong to another one."""
    try:
        net.load_state_dict(weights, assign=any(p.is_meta for p in net.parameters()))
    except RuntimeError as error:
        raise UserError(
            f"{source}: the weights do not fit the network of the config: {_detail(error)}"
        ) from error


def _contiguous(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}


def _read_json(path: Path, remedy: str = "use another checkpoint") -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({_first_line(error)}); {remedy}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a JSON object; {remedy}")
    return values


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _detail(error: Exception) -> str:
    """The first particular that torch names behind its heading."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[1] if len(lines) > 1 else lines[0]
