"""An absorbing-mask baseline (MaskGIT, arXiv 2202.04200): train it, and compare ours with it.

Network, tokens, order of the data, optimiser, average, batch and steps are those of ours, by the
same run file; only the objective differs. Training steps take one forward and backward pass, ours
one for each unroll step: `--equal passes` gives the baseline as many passes.

    python train.py --cfg-path config/digits/demo.toml --seed 0 --run-dir exp/digits-demo
    python benchmarks/absorbing.py --cfg-path config/digits/demo.toml --seed 0 --run-dir out/masked
    python benchmarks/absorbing.py --run-dir out/masked --compare exp/digits-demo --tune both

A run folder that is there is resumed. The comparison goes to RUN-DIR/comparison: a table
(comparison.md, .json), a plot, grids of samples; the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any, get_args

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from absorbing_compare import FIGURES, Comparison, Grid, Side, clear, parse_ramp, parse_settings
from absorbing_compare import with_sampler as subject_with_sampler
from absorbing_sampler import BASELINE, AbsorbingSampler
from absorbing_training import KIND, AbsorbingExperiment, for_equal_passes

from sundae.codec.interface import PixelCodec, open_codec
from sundae.common.errors import UserError
from sundae.config.run_file import RunConfig, load_config, parse_config
from sundae.config.sections import StrategyName
from sundae.evaluation.evaluation import Settings
from sundae.evaluation.real_images import SIDES
from sundae.evaluation.subject import Subject, open_reference
from sundae.features.loading import FEATURES, load_features
from sundae.prior.checkpoint import Checkpoint, open_checkpoint
from sundae.prior.run import list_checkpoints
from sundae.sampling.sampler import BaseSampler
from sundae.training.experiment import check_run, run_training
from utils import (
    add_common_flags,
    add_training_flags,
    choose_device,
    run_cli,
    say,
    seed_number,
    training_flags,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_flags(parser)
    add_training_flags(parser)
    flag = parser.add_argument
    flag("--equal", choices=("steps", "passes"), default="steps", help="what the baseline's "
         "training has as many of as ours (default: steps)")  # fmt: skip
    group = parser.add_argument_group("comparison")
    flag = group.add_argument
    flag("--compare", type=Path, metavar="OURS", help="run folder or checkpoint of ours")
    flag("--reference", type=Path, metavar="DIR", help="real images (default: grey levels of the "
         "run's data)")  # fmt: skip
    flag("--split", choices=SIDES, default="held-out", help="which of them are the reference")
    flag("--features", choices=FEATURES, help="what distances are computed of (default: pixels for "
         "grey levels, else efficientnet-lite0)")  # fmt: skip
    flag("--steps", type=int, nargs="+", default=[4, 8, 16, 32, 64], metavar="N", help="network "
         "evaluations of a sample; guidance takes two a step (default: 4 8 16 32 64)")  # fmt: skip
    flag("--nb-samples", type=int, default=1000, metavar="N", help="samples (default: 1000)")
    flag("--seeds", type=seed_number, nargs="+", default=[0, 1], metavar="N", help="(default: 0 1)")
    flag("--batch-size", type=int, default=64, metavar="N", help="samples at a time (default: 64)")
    flag("--ours", nargs="+", choices=get_args(StrategyName), default=["renoise", "posterior"],
         metavar="NAME", help="our strategies (default: renoise posterior)")  # fmt: skip
    flag("--baseline", nargs="+", choices=BASELINE, default=list(BASELINE), metavar="NAME",
         help="the baseline's strategies (default: confidence halton)")  # fmt: skip
    for side in ("ours", "baseline"):
        flag(f"--{side}-set", action="append", default=[], metavar="KEY=VALUE", help="a key of "
             "[sampling] such as temperature, end_temperature, guidance, choice_temperature, or "
             "STRATEGY.KEY=VALUE for one strategy; repeatable")  # fmt: skip
    flag("--tune", nargs="?", const="baseline", choices=("baseline", "both"), help="find the best "
         "temperature and, for confidence, choice temperature of each strategy and number of "
         "evaluations, of the baseline (default) or of both, with a seed of its own")  # fmt: skip
    flag("--tune-temperatures", nargs="+", default=["1", "1:0.7", "0.85", "0.7"], metavar="T",
         help="temperatures to try, START:END for a ramp (default: 1 1:0.7 0.85 0.7)")  # fmt: skip
    flag("--tune-choice", type=float, nargs="+", default=[1.0, 4.5, 10.0, 20.0], metavar="T",
         help="choice temperatures to try (default: 1 4.5 10 20)")  # fmt: skip
    flag("--tune-steps", type=int, nargs="+", metavar="N", help="evaluations to try them "
         "at; others take the best of the nearest (default: all of --steps)")  # fmt: skip
    flag("--tune-seed", type=seed_number, default=1000, metavar="N", help="(default: 1000)")
    flag("--raw-weights", action="store_true", help="the weights, not their moving average")
    flag("--cuda-vqgan", action="store_true", help="decode on the GPU")
    flag("--out-dir", type=Path, metavar="DIR", help="folder (default: RUN-DIR/comparison)")
    flag("--overwrite", action="store_true", help="replace the comparison in the folder")
    return parser.parse_args()


def read_config(args: argparse.Namespace, checkpoint: Checkpoint | None) -> RunConfig:
    """The run file with what the flags change, or the one in the checkpoint."""
    flags = training_flags(args, "trainer")
    if args.cfg_path is not None:
        cfg = load_config(args.cfg_path, args.overrides, flags)
        return for_equal_passes(cfg) if args.equal == "passes" else cfg
    if checkpoint is None:
        raise UserError("nothing to train: give --cfg-path FILE, or --run-dir of a run")
    return parse_config(checkpoint.info.config, str(checkpoint.folder), args.overrides, flags)


def train(args: argparse.Namespace) -> tuple[Path | None, int | None]:
    """Train, or go on with the run in --run-dir; (its folder, the signal that stopped it)."""
    path = args.resume
    if path is None and args.run_dir is not None and list_checkpoints(args.run_dir):
        path = args.run_dir
    checkpoint = None if path is None else open_checkpoint(path, kind=KIND, prefer_best=False)
    cfg = read_config(args, checkpoint)
    if checkpoint is not None and 0 < cfg.trainer.max_steps <= checkpoint.info.step:
        return path, None
    wandb = args.wandb or args.wandb_offline
    check_run(cfg.trainer, args.run_dir, checkpoint, wandb=wandb)
    trainer = run_training(
        AbsorbingExperiment.open(cfg, open_codec(cfg).identity, checkpoint),
        device=choose_device(not cfg.trainer.use_cuda, args.quiet),
        run_dir=args.run_dir,
        checkpoint=checkpoint,
        seed=args.seed,
        wandb=wandb,
        quiet=args.quiet,
    )
    return trainer.logbook.run, trainer.stopped_by


def open_sides(args: argparse.Namespace, run: Path, device: torch.device) -> tuple[Side, Side]:
    """Ours and the baseline, with their settings."""
    where: dict[str, Any] = {
        "overrides": args.overrides,
        "ema": not args.raw_weights,
        "device": device,
        "codec_device": device if args.cuda_vqgan else "cpu",
        "precision": args.precision or "auto",
    }
    baseline = AbsorbingSampler.of_run(run, **where)
    ours = BaseSampler.from_pretrained(args.compare, **where)
    if ours.codec.identity != baseline.codec.identity or ours.grid != baseline.grid:
        raise UserError(f"{args.compare} and {run} have different tokens; train both on the same")
    subject = Subject.of_prior(args.compare, ours)
    subjects = (subject, subject_with_sampler(subject, baseline, run))
    texts = {"ours": (args.ours, args.ours_set), "baseline": (args.baseline, args.baseline_set)}
    sides = [
        Side(name, some, names, parse_settings(given, names, f"--{name}-set"))
        for some, (name, (names, given)) in zip(subjects, texts.items())
    ]
    return sides[0], sides[1]


def read_grid(args: argparse.Namespace) -> Grid:
    """What --tune tries."""
    try:
        temperatures = [parse_ramp(text) for text in args.tune_temperatures]
    except ValueError as error:
        raise UserError(f"--tune-temperatures: {error}; expected 0.8 or 1:0.7") from error
    return Grid(temperatures, args.tune_choice, args.tune_steps or args.steps, args.tune_seed)


def compare(args: argparse.Namespace, run: Path) -> None:
    """Score both models and write the comparison."""
    if min(args.steps + (args.tune_steps or [])) < 1 or args.batch_size < 1 or args.nb_samples < 2:
        raise UserError("--steps and --batch-size must be at least 1, --nb-samples at least 2")
    grid, device = read_grid(args), choose_device(args.no_cuda, args.quiet)
    ours, baseline = open_sides(args, run, device)
    pixels = isinstance(ours.sampler.codec.codec, PixelCodec)
    name = args.features or ("pixels" if pixels else "efficientnet-lite0")
    network = load_features(name, device, quiet=args.quiet)
    real = open_reference(args.reference, ours.subject, network, side=args.split)
    folder = args.out_dir or run / "comparison"
    folder.mkdir(parents=True, exist_ok=True)
    if args.overwrite:
        clear(folder)
    comparison = Comparison.open(
        real,
        network,
        Settings(num_samples=args.nb_samples, batch_size=args.batch_size, figures=FIGURES,
                 quiet=args.quiet),
        costs=args.steps,
        seeds=args.seeds,
        folder=folder,
        command=shlex.join(["python", *sys.argv]),
    )  # fmt: skip
    lines = []
    for side in (ours, baseline):
        tuned = args.tune == "both" or args.tune == side.name
        lines += comparison.lines(side, grid if tuned else None)
        comparison.show(side, lines)
    for line in comparison.report(lines):
        say(line)
    say(f"table, plot and samples are in {folder}")


def main() -> None:
    args = parse_args()
    run, signal = train(args)
    if signal:
        sys.exit(128 + signal)
    if args.compare is not None:
        if run is None:
            raise UserError("--compare needs the run on disk; leave out --no-save")
        compare(args, run)


if __name__ == "__main__":
    run_cli(main)
