"""Checkpoints: what is saved of a training, and a network rebuilt from it; files: see `run`.

A released checkpoint (`release`) has one set of weights, no optimiser, and its codec beside
it: vqgan.safetensors and vqgan.json.

A checkpoint with weights that are NaN or infinite, raw or averaged, is never loaded, and one with
such moments is not trained on: the error names the last good checkpoint of the run.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from pydantic.dataclasses import dataclass
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hourglass_transformer import HourglassTransformer
from sundae.common.errors import UserError
from sundae.common.files import write_text
from sundae.common.finite import NonFiniteError, check_finite, named_tensors
from sundae.common.folders import atomic_folder
from sundae.config.run_file import RunConfig, parse_config
from sundae.prior.network import build_network
from sundae.prior.run import (
    EMA,
    INFO,
    MODEL,
    TRAINING,
    checkpoint_path,
    find_checkpoint,
    list_checkpoints,
    read_json,
    run_containing,
)

# Weights, averaged weights if there are any, and the optimiser's state with the counters.
TrainingTensors = tuple[dict[str, Tensor], dict[str, Tensor] | None, dict[str, Any]]

FORMAT = 1
CODEC = "vqgan.safetensors"  # where it lies in a checkpoint's folder, it is that run's codec
_INSTEAD = "use another checkpoint"


@dataclass(frozen=True, config={"strict": True, "extra": "forbid"})
class CheckpointInfo:
    """The readable part of a checkpoint.

    Attributes:
        step: optimiser steps done.
        config: the resolved run file as plain values.
        codec: identity of the codec of the tokens.
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


class Checkpoint:
    """A checkpoint on disk; its readable part `info` is checked, its weights are not read yet."""

    def __init__(self, folder: Path, info: CheckpointInfo) -> None:
        self.folder, self.info = folder, info

    @property
    def files(self) -> list[Path]:
        """The files that sampling reads: readable part, weights, and a codec beside them."""
        names = (INFO, MODEL, EMA, CODEC, Path(CODEC).with_suffix(".json").name)
        return [self.folder / name for name in names if (self.folder / name).exists()]

    @cached_property
    def config(self) -> RunConfig:
        """The run file that a prior was trained with; UserError where it is invalid."""
        return parse_config(self.info.config, source=str(self.folder / INFO))

    def load_network(self, *, ema: bool = True) -> HourglassTransformer:
        """The network with its averaged (or raw) weights, in evaluation mode, on the CPU.

        Raises:
            UserError: the weights are damaged, not finite, or of another network.
        """
        try:
            weights = self._read_weights(ema)
        except NonFiniteError as error:
            run = run_containing(self.folder)
            good = _last_good(
                list_checkpoints(run) if run else [],
                lambda folder: open_checkpoint(folder)._read_weights(ema),
            )
            remedy = f"the last good checkpoint of the run is {good} (--resume {good})"
            raise UserError(f"{error}; {remedy if good else _INSTEAD}") from error
        with torch.device("meta"):
            net = build_network(self.config)
        weights = {n: t.float() if t.is_floating_point() else t for n, t in weights.items()}
        load_into(net, weights, self.folder)
        net.reset_tables()
        return net.eval()

    def load_training(self) -> TrainingTensors:
        """What training resumes from, on the CPU.

        Raises:
            UserError: it is missing, damaged or not finite.
        """
        try:
            return self._read_training()
        except NonFiniteError as error:
            run = run_containing(self.folder)
            remedy = way_back(self.info.kind, run) if run else _INSTEAD
            raise UserError(f"{error}; {remedy}") from error

    def _read_weights(self, ema: bool) -> dict[str, Tensor]:
        """The averaged or the raw weights; both are checked."""
        averaged = load_weights(self.folder / EMA) if (self.folder / EMA).exists() else None
        raw = load_weights(self.folder / MODEL)
        return averaged if ema and averaged is not None else raw

    def _read_training(self) -> TrainingTensors:
        path = self.folder / TRAINING
        if not path.exists():
            raise UserError(
                f"{path} is missing: this checkpoint can be sampled from, not trained on"
            )
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises half a dozen types for a damaged file
            raise _unreadable(path, error) from error
        optimizer = state.get("optimizer") if isinstance(state, dict) else None
        check_finite(named_tensors(optimizer, "optimizer"), path)
        average = load_weights(self.folder / EMA) if (self.folder / EMA).exists() else None
        return load_weights(self.folder / MODEL), average, state


def open_checkpoint(path: Path, *, kind: str = "prior", prefer_best: bool = True) -> Checkpoint:
    """Open a checkpoint of a kind, see `CheckpointInfo` and `sundae.prior.run.find_checkpoint`.

    Raises:
        UserError: there is none, or it is damaged, of another kind, or of a later version.
    """
    folder = find_checkpoint(path, prefer_best=prefer_best)
    info = _read_info(folder / INFO)
    if info.kind != kind:
        raise UserError(f"{folder} is a checkpoint of a {info.kind}, expected one of a {kind}")
    if (folder / CODEC).exists():
        info.config["vqgan"] = {**info.config.get("vqgan", {}), "checkpoint": str(folder / CODEC)}
    checkpoint = Checkpoint(folder, info)
    if kind == "prior":
        _ = checkpoint.config  # an invalid one is reported before any work
    return checkpoint


def _read_info(path: Path) -> CheckpointInfo:
    values = read_json(path, _INSTEAD)
    if values.pop("format", None) != FORMAT:
        raise UserError(f"{path}: not a checkpoint of format {FORMAT}; update the toolkit")
    try:
        return CheckpointInfo(**values)
    except ValidationError as error:
        details = error.errors()[0]
        name = details["loc"][0]
        problem = f"{name} is {values[name]!r}" if name in values else f"{name} is missing"
        raise UserError(f"{path}: damaged ({problem}); {_INSTEAD}") from error


def write_info(folder: Path, info: CheckpointInfo) -> None:
    """Write the readable part of a checkpoint into its folder."""
    write_text(folder / INFO, json.dumps({"format": FORMAT, **asdict(info)}, indent=2) + "\n")


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
    target = checkpoint_path(run, info.step)
    networks = {MODEL: net} | ({} if ema is None else {EMA: ema})
    with atomic_folder(target) as folder:
        try:
            torch.save(training, folder / TRAINING)
            for name, network in networks.items():
                state = network.state_dict().items()
                save_file({n: t.detach().cpu().contiguous() for n, t in state}, folder / name)
                # safetensors lets only the owner read; the umask decides, as for the other files.
                shutil.copymode(folder / TRAINING, folder / name)
        except (RuntimeError, SafetensorError) as error:  # what a full disk is to them
            raise UserError(
                f"cannot write to {target} ({_first_line(error)}); is the disk full?"
            ) from error
        write_info(folder, info)
    return target


def way_back(
    kind: str, run: Path | None, origin: Path | None = None, change: str | None = None
) -> str:
    """The remedy for a training that has diverged: part of an error's line.

    Args:
        kind: what is trained, see `CheckpointInfo`.
        run: its run folder, or None where nothing is saved.
        origin: the checkpoint it was resumed from, which may lie in another run.
        change: what to change in the settings, where they are known.
    """
    section = "trainer" if kind == "prior" else "training"
    change = change or f"lower {section}.learning_rate, set {section}.clip_grad or add --no-amp"
    found = list_checkpoints(run) if run else []
    earlier = [origin] if origin and origin not in found else []
    good = _last_good(
        [*earlier, *found], lambda folder: open_checkpoint(folder, kind=kind)._read_training()
    )
    if good is None:
        return f"the run has no good checkpoint: {change}, and train from the start"
    # A run is resumed in place from its last checkpoint only.
    flags = f"--resume {run}" if good in found[-1:] else f"--resume {good} --run-dir NEW"
    return f"the last good checkpoint is {good}: {change}, and go on with {flags}"


def _last_good(folders: list[Path], read: Callable[[Path], object]) -> Path | None:
    """The last of some checkpoints that `read` raises no UserError for."""
    for folder in reversed(folders):
        with suppress(UserError):
            read(folder)
            return folder
    return None


def load_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, on the CPU; UserError where it is missing or damaged.

    Raises:
        NonFiniteError: one holds NaN or an infinite value.
    """
    try:
        weights: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from error
    check_finite(weights, path)
    return weights


def load_into(net: nn.Module, weights: dict[str, Tensor], source: Path) -> None:
    """Load weights into a network; UserError where they belong to another one."""
    try:
        net.load_state_dict(weights, assign=any(p.is_meta for p in net.parameters()))
    except RuntimeError as error:
        # The first line is a heading, the second the first particular.
        detail = [*filter(None, map(str.strip, str(error).splitlines()))][:2][-1]
        raise UserError(
            f"{source}: the weights do not fit the network of the config: {detail}"
        ) from error


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} cannot be read ({_first_line(error)}); {_INSTEAD}")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
