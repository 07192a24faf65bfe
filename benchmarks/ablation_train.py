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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sundae.codec.interface import open_codec
from sundae.common.files import make_folder, write_json, write_text
from sundae.config.run_file import RunConfig, load_config
from sundae.prior.checkpoint import open_checkpoint
from sundae.prior.run import list_checkpoints
from sundae.training.experiment import build_trainer
from sundae.training.logbook import Logbook
from sundae.training.prior import PriorExperiment
from sundae.training.run_folder import run_folder
from utils import add_common_flags, choose_device, run_cli

_BLOCK, _BLOCKS = 10, 3  # steps that are timed together, after as many that are not


def train_in_process(cfg: RunConfig, seed: int, run_dir: Path, device: torch.device) -> None:
    """Train as train.py does, without its sample grids; goes on from a checkpoint in the folder.

    Args:
        run_dir: the run folder, created where it is missing.

    Raises:
        UserError: the run file does not fit its data, or the training diverged.
        KeyboardInterrupt: a signal ended it, after a checkpoint.
    """
    torch.compiler.reset()  # what an earlier network compiled counts against a limit
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="no")
    checkpoint = open_checkpoint(run_dir, prefer_best=False) if list_checkpoints(run_dir) else None
    experiment = PriorExperiment.open(cfg, open_codec(cfg).identity, checkpoint)
    with run_folder(cfg.trainer, run_dir, checkpoint, accelerator) as run:
        trainer = build_trainer(experiment, accelerator, Logbook(run, quiet=True), seed)
        if checkpoint is not None:
            trainer.resume(checkpoint)
        write_text(make_folder(run_dir) / experiment.run_file, experiment.dump())
        trainer.train()
    if trainer.stopped_by:
        raise KeyboardInterrupt


def measure_rate(cfg: RunConfig, device: torch.device) -> float:
    """Optimiser steps a second of training alone: median of three times 10, after a warm-up."""
    torch.compiler.reset()
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="no")
    experiment = PriorExperiment.open(cfg, open_codec(cfg).identity, None)
    trainer = build_trainer(experiment, accelerator, Logbook(None, quiet=True), 0)
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
