"""Compares networks at equal training: what each makes of the same data, steps and seeds.

    python benchmarks/networks.py --json networks-digits.json
    python benchmarks/networks.py config/emoji/64.toml config/emoji/64-fast.toml --seeds 0 \\
        --max-steps 400 --set vqgan.checkpoint=pretrained/emoji/vqgan.safetensors

The first run file is what the others are held against. All are trained as train.py does, for as
many optimiser steps, on the same batches with the same noise; the learning rate's schedule is
stretched over these steps, its warm-up at most a quarter of them. With --equal-flops each further
network is also trained for as many FLOPs as the first: its steps times the ratio of the GFLOP of a
forward pass. Runs of one seed follow each other, so a busy machine slows all networks alike.

- gflop: of a forward pass of one sample; seconds: of training alone, after one step of each
  network that does not count (compiling, where it is on, does);
- loss, accuracy: of the averaged weights on all held-out data, the mean over unroll steps;
- frechet@N: of samples drawn in N steps, without early stopping, to the held-out pictures, whose
  classes they have: squared, of grey levels where tokens are pixels (as benchmarks/strategies.py),
  else of features of EfficientNet-lite0 (as benchmarks/pretrained.py; this needs the codec, the
  pictures and requirements-train-vqgan.txt). Few samples make it too large, so compare only
  numbers of one table; the last line is the distance of as many training pictures;
- classified@N: share of samples that a support-vector classifier of the training digits takes for
  the class they were asked for.

The table shows the mean over seeds and, behind ±, the standard deviation. The JSON file is written
anew after every run.
"""

import argparse
import json
import statistics
import sys
from itertools import product
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from budgets import Run, open_data, plan_runs
from judges import Data, Judge, judge_samples, open_judge, real_distance
from measuring import machine

from sundae.common.files import make_folder, write_text
from sundae.config.run_file import RunConfig, dump_toml
from sundae.sampling.prior import Prior
from sundae.training.experiment import build_trainer
from sundae.training.logbook import Logbook
from sundae.training.prior import PriorExperiment
from sundae.training.trainer import Trainer
from utils import add_common_flags, choose_device, run_cli, say

FILES = [Path("config/digits/demo.toml"), Path("config/digits/fast.toml")]


def learn(cfg: RunConfig, data: Data, seed: int, device: torch.device) -> Trainer:
    """A finished training, as train.py does it; ends the program when it is interrupted."""
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="no")
    experiment = PriorExperiment(cfg, data)
    trainer = build_trainer(experiment, accelerator, Logbook(None, quiet=True), seed)
    trainer.train()
    if trainer.stopped_by:
        sys.exit(128 + trainer.stopped_by)
    return trainer


def measure(
    run: Run, data: Data, judge: Judge | None, seed: int, args: argparse.Namespace
) -> dict[str, Any]:
    """Train once and judge the result: a line of the JSON file."""
    trainer = learn(run.cfg, data, seed, choose_device(args.no_cuda, quiet=True))
    found = {
        "network": run.name,
        "steps": trainer.step,
        "seed": seed,
        "parameters": run.parameters,
        "gflop": run.flop / 1e9,
        "seconds": trainer.state.elapsed,
        "loss": trainer.state.metrics["eval/loss"],
        "accuracy": trainer.state.metrics["eval/accuracy"],
    }
    if judge is None:
        return found
    use_amp = run.cfg.trainer.arithmetic != "fp32"
    prior = Prior(trainer.state.eval_net, run.cfg, trainer.device, use_amp=use_amp)
    return found | judge_samples(
        prior, data[1], judge, seed, args.nb_samples, {run.cfg.sampling.steps, *args.steps}
    )


def cell(name: str, values: list[float]) -> str:
    """Mean and spread; a dash where nothing was measured."""
    if not values:
        return "-"
    if name == "parameters":
        return f"{values[0] / 1e6:.3g}M"
    spread = statistics.stdev(values) if len(values) > 1 else 0
    return f"{statistics.mean(values):.4g}" + (f" ±{spread:.2g}" if spread else "")


def print_table(results: list[dict[str, Any]]) -> None:
    """A line for each network and length of training."""
    names = list(dict.fromkeys(name for row in results for name in row))
    columns = [name for name in names if name not in ("network", "steps", "seed")]
    lines = [["network", "steps", *columns]]
    for network, steps in dict.fromkeys((row["network"], row["steps"]) for row in results):
        rows = [row for row in results if (row["network"], row["steps"]) == (network, steps)]
        cells = [cell(name, [row[name] for row in rows if name in row]) for name in columns]
        lines.append([network, str(steps), *cells])
    widths = [max(map(len, column)) for column in zip(*lines)]
    for first, *rest in lines:
        cells = [text.rjust(width) for text, width in zip(rest, widths[1:])]
        say("  ".join([first.ljust(widths[0]), *cells]))


def parse_args() -> argparse.Namespace:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flag = parser.add_argument
    flag("files", nargs="*", type=Path, default=FILES, metavar="FILE", help="run files, the one to "
         "compare with first (config/digits/demo.toml and fast.toml)")  # fmt: skip
    add_common_flags(parser, "--set", "--no-cuda", "--quiet")
    flag("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="(0 1 2)")
    flag("--max-steps", type=int, default=0, metavar="N", help="of the optimiser, for all (as the "
         "first run file says)")  # fmt: skip
    flag("--equal-flops", action="store_true", help="train the others for equal FLOPs, too")
    flag("--nb-samples", type=int, default=200, metavar="N", help="of each run (200)")
    flag("--steps", type=int, nargs="+", default=[], metavar="N", help="of sampling, beside the "
         "run file's own")  # fmt: skip
    flag("--pictures", type=Path, default=Path("data/emoji"), metavar="DIR", help="those that the "
         "latents were made from (data/emoji)")  # fmt: skip
    flag("--threads", type=int, default=torch.get_num_threads(), help="of the CPU")
    flag("--json", type=Path, metavar="FILE", help="write all numbers there")
    args = parser.parse_args()
    if min([args.threads, *args.steps]) < 1 or min([args.max_steps, *args.seeds]) < 0:
        parser.error("--threads and --steps start at 1, --seeds and --max-steps at 0")
    if args.nb_samples < 2:
        parser.error("--nb-samples starts at 2")
    return args


def main() -> None:
    """Trains one network after the other, seed by seed, and prints the table."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    device = choose_device(args.no_cuda, args.quiet)
    runs = plan_runs(args.files, args.overrides, args.max_steps, args.equal_flops)
    data = open_data(runs[0].cfg, args.pictures)
    judge = open_judge(runs[0].cfg, data, args.pictures, args.nb_samples)
    about = machine(device.type) | {"nb_samples": args.nb_samples}
    found: dict[str, Any] = {
        "machine": about,
        "real_frechet": judge and real_distance(judge, args.nb_samples),
        "configs": {run.name: dump_toml(run.cfg) for run in runs[: len(args.files)]},
        "results": [],
    }
    if args.json:
        make_folder(args.json.parent)
    for run in runs[: len(args.files)]:  # the first of all trainings pays for what is made once
        learn(run.lasting(1).cfg, data, 0, device)
    order = list(product(args.seeds, runs))
    for seed, run in tqdm(order, unit="run", disable=args.quiet or None):
        found["results"].append(measure(run, data, judge, seed, args))
        if args.json:
            write_text(args.json, json.dumps(found, indent=2) + "\n")
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print_table(found["results"])
    if judge is not None:
        print(f"frechet of as many training pictures: {found['real_frechet']:.4g}")


if __name__ == "__main__":
    run_cli(main)
