"""Trainings of an ablation within a process, and how fast a run file trains.

`python benchmarks/ablation_train.py OUT.json --cfg-path FILE [--set KEY=VALUE ...]` measures the
speed in a process of its own.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from graph_trainer import GraphTask, GraphTrainer

from sundae.codec.interface import open_codec
from sundae.common.files import make_folder, write_json, write_text
from sundae.config.run_file import RunConfig, dump_toml, load_config, update_config
from sundae.prior.checkpoint import Checkpoint, open_checkpoint
from sundae.prior.run import RUN_FILE, list_checkpoints
from sundae.training.experiment import build_trainer
from sundae.training.logbook import Logbook
from sundae.training.prior import PriorExperiment
from sundae.training.run_folder import run_folder
from sundae.training.trainer import Trainer
from utils import add_common_flags, choose_device, run_cli

_BLOCK, _BLOCKS = 10, 3  # steps that are timed together, after as many that are not


def train_in_process(cfg: RunConfig, seed: int, run_dir: Path, device: torch.device) -> None:
    """Train as train.py does, without its sample grids; goes on from a checkpoint in the folder.

    On CUDA a training from its start, by whole batches, replays a CUDA graph, see `GraphTrainer`.

    Args:
        run_dir: the run folder, created where it is missing.

    Raises:
        UserError: the run file does not fit its data, or the training diverged.
        KeyboardInterrupt: a signal ended it, after a checkpoint.
    """
    torch.compiler.reset()  # what an earlier network compiled counts against a limit
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="no")
    checkpoint = open_checkpoint(run_dir, prefer_best=False) if list_checkpoints(run_dir) else None
    with run_folder(cfg.trainer, run_dir, checkpoint, accelerator) as run:
        trainer = _trainer(cfg, accelerator, Logbook(run, quiet=True), seed, checkpoint)
        if checkpoint is not None:
            trainer.resume(checkpoint)
        write_text(make_folder(run_dir) / RUN_FILE, dump_toml(cfg))
        trainer.train()
    if trainer.stopped_by:
        raise KeyboardInterrupt


def measure_rate(cfg: RunConfig, device: torch.device) -> float:
    """Optimiser steps a second of training alone: median of three times 10, after a warm-up."""
    torch.compiler.reset()
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="no")
    trainer = _trainer(cfg, accelerator, Logbook(None, quiet=True), 0, None)
    batches = trainer.batches.training(0)
    seconds = []
    for _ in range(_BLOCKS + 1):
        _wait(device)
        begin = time.perf_counter()
        for _ in range(_BLOCK):
            trainer._update(batches)
        _wait(device)
        seconds.append(time.perf_counter() - begin)
    return _BLOCK / statistics.median(seconds[1:])


class _GraphExperiment(PriorExperiment):
    def build(self, device: torch.device, accumulate: int) -> tuple[nn.Module, GraphTask]:
        net, _ = super().build(device, accumulate)
        return net, GraphTask(self.cfg)


def _trainer(
    cfg: RunConfig,
    accelerator: Accelerator,
    book: Logbook,
    seed: int,
    checkpoint: Checkpoint | None,
) -> Trainer:
    whole = cfg.trainer.mini_batch_size in (None, cfg.trainer.batch_size)
    graph = accelerator.device.type == "cuda" and checkpoint is None and whole
    if graph:
        cfg = update_config(cfg, {"trainer.compile": False})
    experiment = _GraphExperiment if graph else PriorExperiment
    return build_trainer(
        experiment.open(cfg, open_codec(cfg).identity, checkpoint),
        accelerator,
        book,
        seed,
        GraphTrainer if graph else Trainer,
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Writes {"steps_per_second": N} to a file."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("out", type=Path, metavar="OUT.json")
    add_common_flags(parser, "--cfg-path", "--set", "--no-cuda", "--quiet")
    args = parser.parse_args()
    cfg = load_config(args.cfg_path, args.overrides)
    rate = measure_rate(cfg, choose_device(args.no_cuda, args.quiet))
    write_json(args.out, {"steps_per_second": rate})


if __name__ == "__main__":
    run_cli(main)
