"""A training from start to end: lock the run folder, seed, build, resume, train."""

from __future__ import annotations

import secrets
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

from sundae.common.compiling import compile_modules
from sundae.common.files import make_folder, write_text
from sundae.common.naming import printable
from sundae.config.sections import TrainerConfig, WandbConfig
from sundae.prior.checkpoint import Checkpoint, CheckpointInfo
from sundae.training.batches import DataPair, split_batch
from sundae.training.logbook import Logbook, check_wandb, start_wandb
from sundae.training.processes import broadcast_from_main
from sundae.training.run_folder import choose_run_folder, run_folder
from sundae.training.trainer import Hook, Task, Trainer


class RunSettings(Protocol):
    """The part of a run file that every training reads."""

    @property
    def trainer(self) -> TrainerConfig: ...
    @property
    def wandb(self) -> WandbConfig: ...
    def to_dict(self) -> dict[str, Any]: ...


class Experiment(ABC):
    """What a script trains: run file, data, and how network and losses are built.

    Attributes:
        kind, codec, classes: see `CheckpointInfo`.
        run_file: name of the resolved run file in the run folder.
        data: training and held-out rows.
    """

    kind: ClassVar[str]
    run_file: ClassVar[str]
    codec: str = ""
    classes: list[str] | None = None

    def __init__(self, cfg: RunSettings, data: DataPair) -> None:
        self.cfg, self.data = cfg, data

    @abstractmethod
    def build(self, device: torch.device, accumulate: int) -> tuple[nn.Module, Task]:
        """Network and task; `accumulate` mini-batches make an optimiser step of one process."""

    @abstractmethod
    def compilable(self, net: nn.Module) -> list[nn.Module]:
        """The modules that `trainer.compile` compiles."""

    def not_compiled_on_cuda(self, net: nn.Module) -> str:
        """Why a network is never compiled for a GPU; empty if it may be."""
        return ""

    @abstractmethod
    def dump(self) -> str:
        """The text of the resolved run file."""

    @abstractmethod
    def describe(self, net: nn.Module) -> str:
        """Sizes of network and data, for one line at the start."""


def run_training(
    experiment: Experiment,
    *,
    device: torch.device,
    run_dir: Path | None = None,
    checkpoint: Checkpoint | None = None,
    seed: int | None = None,
    wandb: bool = False,
    quiet: bool = False,
    on_evaluation: Sequence[Hook] = (),
    on_save: Sequence[Hook] = (),
) -> Trainer:
    """Train from a checkpoint or from the start, and print how it ended.

    Args:
        device: a CPU, or CUDA, of which each process takes its own device.
        run_dir: see `sundae.training.run_folder.choose_run_folder`.
        seed: of all randomness; None takes the checkpoint's, or draws one.
        on_evaluation, on_save: see `Trainer`.

    Raises:
        UserError: the run folder, checkpoint or data cannot be used, or the training diverged.
    """
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="no")
    quiet = quiet or not accelerator.is_main_process
    if seed is None:
        seed = checkpoint.info.seed if checkpoint else secrets.randbelow(2**32)
    with run_folder(experiment.cfg.trainer, run_dir, checkpoint, accelerator) as run:
        trainer = build_trainer(experiment, accelerator, Logbook(run, quiet=quiet), seed)
        if checkpoint is not None:
            trainer.resume(checkpoint)
        if run is not None and accelerator.is_main_process:  # nothing is written before this
            write_text(make_folder(run) / experiment.run_file, experiment.dump())
            if wandb:
                trainer.logbook.wandb_run = start_wandb(
                    experiment.cfg.wandb, run, trainer.info.config
                )
        trainer.on_evaluation += on_evaluation
        trainer.on_save += on_save
        if not quiet:
            place = f"into {run}" if run else "not saved"
            about = experiment.describe(trainer.state.bare_net)
            line = f"{about}, seed {trainer.info.seed}, on {trainer.device}, {place}"
            print(printable(line), flush=True)
        trainer.train()
        accelerator.end_training()  # threads of a process group left open can abort what exits
        if accelerator.is_main_process:
            how = "stopped" if trainer.stopped_by else "done"
            print(printable(f"{how} at step {trainer.step}: {run or 'not saved'}"), flush=True)
    return trainer


def check_run(
    cfg: TrainerConfig, run_dir: Path | None, checkpoint: Checkpoint | None, *, wandb: bool
) -> None:
    """UserError where a run cannot be saved or logged, before any work; writes nothing."""
    if wandb:
        check_wandb(cfg.save_outputs)
    if cfg.save_outputs:
        choose_run_folder(run_dir, checkpoint)


def build_trainer(
    experiment: Experiment,
    accelerator: Accelerator,
    logbook: Logbook,
    seed: int,
    kind: type[Trainer] = Trainer,
) -> Trainer:
    """Seed everything with the main process's seed, and build all that is trained."""
    (seed,) = broadcast_from_main(seed)
    set_seed(seed)
    settings, device = experiment.cfg.trainer, accelerator.device
    _, accumulate = split_batch(settings, accelerator.num_processes)
    net, task = experiment.build(device, accumulate)
    info = CheckpointInfo(
        step=0,
        config=experiment.cfg.to_dict(),
        codec=experiment.codec,
        classes=experiment.classes,
        seed=seed,
        kind=experiment.kind,
    )
    trainer = kind(
        settings, task, net, experiment.data, accelerator=accelerator, logbook=logbook, info=info
    )
    if should_compile(experiment, net, device, quiet=logbook.quiet):
        compile_modules(*experiment.compilable(net), quiet=logbook.quiet)
    return trainer


def should_compile(
    experiment: Experiment, net: nn.Module, device: torch.device, *, quiet: bool
) -> bool:
    """Whether to compile: as `trainer.compile` says, which is said to be in vain unless quiet, or
    on CUDA by default.
    """
    setting, cuda = experiment.cfg.trainer.compile, device.type == "cuda"
    reason = experiment.not_compiled_on_cuda(net) if cuda else ""
    if reason and setting and not quiet:
        print(f"trainer.compile has no effect on a GPU here: {reason}", file=sys.stderr)
    return not reason and (cuda if setting is None else setting)
