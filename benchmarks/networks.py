"""Compares networks at equal training: what each makes of the same data, steps and seeds.

    python benchmarks/networks.py --json networks-digits.json
    python benchmarks/networks.py config/emoji/64.toml config/emoji/64-fast.toml --seeds 0 \\
        --max-steps 400 --set vqgan.checkpoint=pretrained/emoji/vqgan.safetensors

The first run file is the reference. All are trained as train.py does, for as many optimiser steps,
on the same batches with the same noise; the learning rate's schedule is stretched over these steps,
its warm-up at most a quarter of them. With --equal-flops each further network is also trained for
as many FLOPs as the first: its steps times the ratio of the GFLOP of a forward pass. Runs of one
seed follow each other, so a busy machine slows all networks alike.

- gflop: of a forward pass of one sample; seconds: of training alone, after one step of each
  network that does not count (compiling, where it is on, does);
- loss, accuracy: of the averaged weights on all held-out data, the mean over unroll steps;
- frechet@N: of samples drawn in N steps, without early stopping, to the held-out images, whose
  classes they have, as evaluate.py does: of pixels where tokens are grey levels, else of features
  of EfficientNet-lite0 (this needs the codec, the images and requirements-evaluate.txt). Few
  samples make it too large, so compare only numbers of one table; the last line is the distance of
  as many training images;
- classified@N: classifier accuracy, the share of samples that a classifier of the training digits
  takes for their class.

The table shows the mean over seeds and, behind ±, the standard deviation. The JSON file is written
anew after every run.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from measuring import machine, machine_line

from sundae.codec.interface import open_codec
from sundae.common.errors import UserError
from sundae.common.files import make_folder, write_text
from sundae.common.naming import printable
from sundae.config.run_file import RunConfig, dump_toml, load_config, update_config
from sundae.data.dataset import TokenDataset
from sundae.evaluation.cost import Cost
from sundae.evaluation.instrument import Instrument
from sundae.evaluation.real_images import data_of_run, open_images
from sundae.evaluation.sides import draw_samples
from sundae.features.loading import load_features
from sundae.sampling.sampler import BaseSampler
from sundae.training.experiment import build_trainer
from sundae.training.logbook import Logbook
from sundae.training.prior import PriorExperiment, open_datasets
from sundae.training.trainer import Trainer
from utils import add_common_flags, choose_device, run_cli, say

FILES = [Path("config/digits/demo.toml"), Path("config/digits/fast.toml")]

Data = tuple[TokenDataset, TokenDataset]  # training, held out

_NEVER = 10**9
_FIGURES = {"frechet_distance": "frechet", "class_accuracy": "classified"}
# Networks are compared on one task.
_SAME = ("unroll_steps", "objective", "data", "vqgan", "trainer.batch_size")


# -- what is trained ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """A network and how long it is trained."""

    name: str
    cfg: RunConfig
    parameters: int
    flop: int  # of a forward pass of one sample

    @classmethod
    def open(cls, path: Path, overrides: Sequence[str]) -> "Run":
        """A run file's network, evaluated only at its end and never saved."""
        cfg = load_config(path, overrides)
        flags = {"trainer.nb_batches": [_NEVER, 0], "trainer.save_outputs": False}
        cfg, cost = update_config(cfg, flags, str(path)), Cost(cfg)
        return cls(str(path), cfg, cost.parameters, cost.forward_flops())

    def lasting(self, steps: int) -> "Run":
        """The same network trained for another number of steps."""
        kwargs = dict(self.cfg.trainer.lr_scheduler_kwargs)
        if "nb_warmup_steps" in kwargs:
            kwargs["nb_warmup_steps"] = min(kwargs["nb_warmup_steps"], steps // 4)
        if "nb_training_steps" in kwargs:
            kwargs["nb_training_steps"] = steps
        changes = {"trainer.max_steps": steps, "trainer.lr_scheduler_kwargs": kwargs}
        return replace(self, cfg=update_config(self.cfg, changes, self.name))


def plan_runs(
    files: Sequence[Path], overrides: Sequence[str], steps: int, equal_flops: bool
) -> list[Run]:
    """All that is trained with every seed.

    Args:
        steps: optimiser steps of each; 0 takes those of the first file.
        equal_flops: train those after the first also for as many FLOPs as the first.

    Raises:
        UserError: the run files do not train on the same, or without an end.
    """
    first, *others = (Run.open(path, overrides) for path in files)
    for other, key in product(others, _SAME):
        if attrgetter(key)(other.cfg) != attrgetter(key)(first.cfg):
            raise UserError(
                f"{other.name} and {first.name} differ in {key}, so that their losses mean "
                "different things; make them equal"
            )
    steps = steps or first.cfg.trainer.max_steps
    if not steps:
        raise UserError(f"{first.name} trains until stopped; say how long with --max-steps")
    runs = [run.lasting(steps) for run in (first, *others)]
    if equal_flops:
        equal = [(run, max(1, round(steps * first.flop / run.flop))) for run in others]
        runs += [run.lasting(count) for run, count in equal if count != steps]
    return runs


def open_data(cfg: RunConfig, images: Path) -> Data:
    """Training and held-out data; UserError saying how to make what is missing."""
    for root in filter(None, (cfg.data.root, cfg.data.train_root, cfg.data.eval_root)):
        if root.is_dir():
            continue
        command = f"python generate-discrete-mnist.py {root.parent.name} {root.parent}"
        if cfg.vqgan is not None:
            command = (
                f"python generate-latents.py --ckpt-path {cfg.vqgan.checkpoint} "
                f"--dataset-in {images} --latents-out {root}"
            ) + (" --use-class" if cfg.net.conditional else "")
        raise UserError(f"the data folder {root} does not exist; make it with: {command}")
    known = cfg.vqgan is None or cfg.vqgan.checkpoint.exists()
    return open_datasets(cfg, open_codec(cfg).identity if known else "")


def open_instrument(cfg: RunConfig, images: Path, count: int) -> Instrument | None:
    """What scores `count` samples of a run; None, after saying why, where there is none."""
    cpu, figures = torch.device("cpu"), ("distance", "classes")
    try:
        if cfg.vqgan is None:
            real, network = data_of_run(cfg), load_features("pixels", cpu)
        else:
            height, width = (side * open_codec(cfg).factor for side in cfg.grid_shape)
            real = open_images(images, (height, width), split_sizes=cfg.data.split_sizes)
            network, figures = load_features("efficientnet-lite0", cpu), figures[:1]
        return Instrument(real, network, count=count, figures=figures)
    except UserError as error:
        print(printable(f"samples are not scored: {error}"), file=sys.stderr)
        return None


# -- measuring ------------------------------------------------------------------------------------


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
    run: Run, data: Data, instrument: Instrument | None, seed: int, args: argparse.Namespace
) -> dict[str, Any]:
    """Train once and score the result: an entry of the JSON file."""
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
    if instrument is None:
        return found
    sampler = BaseSampler(
        trainer.state.eval_net, open_codec(run.cfg), run.cfg,
        class_names=data[0].latents.classes or (),
        device=trainer.device, precision=run.cfg.trainer.arithmetic,
    )  # fmt: skip
    for steps in sorted({run.cfg.sampling.steps, *args.steps}):
        samples = draw_samples(
            sampler, args.nb_samples, seed=seed, labels=instrument.real.reference.labels,
            steps=steps, early_stop=False,
        )  # fmt: skip
        figures = instrument.samples(samples).figures
        for name, title in _FIGURES.items():
            if name in figures:
                found[f"{title}@{steps}"] = figures[name]
    return found


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
    flag("files", nargs="*", type=Path, default=FILES, metavar="FILE", help="run files, the "
         "reference first (config/digits/demo.toml and fast.toml)")  # fmt: skip
    add_common_flags(parser, "--set", "--no-cuda", "--quiet")
    flag("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="(0 1 2)")
    flag("--max-steps", type=int, default=0, metavar="N", help="of the optimiser, for all (the "
         "first run file's)")  # fmt: skip
    flag("--equal-flops", action="store_true", help="train the others for equal FLOPs, too")
    flag("--nb-samples", type=int, default=200, metavar="N", help="of each run (200)")
    flag("--steps", type=int, nargs="+", default=[], metavar="N", help="of sampling, beside the "
         "run file's own")  # fmt: skip
    flag("--images", type=Path, default=Path("data/emoji"), metavar="DIR",
         help="those that the latents were made from (data/emoji)")  # fmt: skip
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
    data = open_data(runs[0].cfg, args.images)
    instrument = open_instrument(runs[0].cfg, args.images, args.nb_samples)
    about = machine(device.type) | {"nb_samples": args.nb_samples}
    found: dict[str, Any] = {
        "machine": about,
        "real_frechet": instrument and instrument.floor().figures["frechet_distance"],
        "configs": {run.name: dump_toml(run.cfg) for run in runs[: len(args.files)]},
        "results": [],
    }
    if args.json:
        make_folder(args.json.parent)
    for run in runs[: len(args.files)]:  # the first of all trainings pays for what is made once
        learn(run.lasting(1).cfg, data, 0, device)
    order = list(product(args.seeds, runs))
    for seed, run in tqdm(order, unit="run", disable=args.quiet or None):
        found["results"].append(measure(run, data, instrument, seed, args))
        if args.json:
            write_text(args.json, json.dumps(found, indent=2) + "\n")
    print(machine_line(about))
    print_table(found["results"])
    if instrument is not None:
        print(f"frechet of as many training images: {found['real_frechet']:.4g}")


if __name__ == "__main__":
    run_cli(main)
