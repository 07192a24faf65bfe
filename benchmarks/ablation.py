"""Trains variants of a run file on equal terms, and writes what each of them is worth.

    python benchmarks/ablation.py benchmarks/ablation/digits.toml --out out/ablation-digits

A plan names a run file, seeds, either optimiser steps or seconds of a training, and variants, each
a list of overrides. All variants train on the same data, batches and seeds; the schedule of the
learning rate always ends with the training. A second call goes on where the first was stopped, and
skips what is done. Plans, in benchmarks/ablation/, are

    base = "config/digits/demo.toml"       # paths are below the current folder
    seeds = [0, 1]
    steps = 800                            # or seconds = 300

    [common]
    set = ["trainer.batch_size=32"]        # of all variants

    [evaluate]                             # flags of evaluate.py; without it, losses only
    figures = ["distance", "classes"]
    nb-samples = 297
    reference = "data/images"              # REFERENCE, where tokens are those of a VQ-GAN

    [[variants]]                           # the first one is what the others are compared with
    name = "base"

    [[variants]]
    name = "muon"
    base = "base"                          # another variant, on which this one builds
    set = ["trainer.optimizer_name=muon", "trainer.learning_rate=4e-3"]
    samplers = [[], ["sampling.steps=16", "sampling.strategy=posterior"]]

OUT/table.md and OUT/results.json hold mean and spread over seeds, OUT/curves.png the held-out loss.
"""

from __future__ import annotations

import argparse
import math
import signal
import sys
import time
from itertools import product
from pathlib import Path
from types import FrameType

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ablation_jobs import Run, Runner, Work, evaluations, training
from ablation_plan import Plan, read_plan
from ablation_report import CURVES, RESULTS, TABLE, draw_curves, write_results

from sundae.common.errors import UserError
from sundae.common.locking import folder_lock
from utils import run_cli, say


class _Interrupted:
    """Whether SIGTERM came; Ctrl-C raises KeyboardInterrupt by itself."""

    def __init__(self) -> None:
        self.came = False
        signal.signal(signal.SIGTERM, self._note)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.came = True

    def __call__(self) -> bool:
        return self.came


def parse_args() -> argparse.Namespace:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flag = parser.add_argument
    flag("plan", type=Path, metavar="PLAN", help="TOML file")
    flag("--out", type=Path, required=True, metavar="DIR", help="folder for runs and results")
    flag("--only", action="append", default=[], metavar="NAME", help="work on this variant only; "
         "may be repeated")  # fmt: skip
    flag("--jobs", type=int, default=1, metavar="N", help="processes at once, which share the "
         "cores (1); with --in-process, of evaluations only")  # fmt: skip
    flag("--device", choices=("cpu", "cuda"), help="(cuda where there is one)")
    flag("--in-process", action="store_true", help="train one run after the other in this process, "
         "which spares the start of others")  # fmt: skip
    flag("--skip-evaluation", action="store_true", help="train only")
    flag("--limit-seconds", type=float, default=math.inf, metavar="S", help="start nothing after "
         "this time")  # fmt: skip
    flag("--overwrite", action="store_true", help="train variants anew whose settings changed")
    args = parser.parse_args()
    if args.jobs < 1:
        parser.error("--jobs starts at 1")
    return args


def chosen_device(name: str | None) -> torch.device:
    """UserError where CUDA is named and not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: there is no CUDA device here; use --device cpu")
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def work_on(plan: Plan, runs: list[Run], args: argparse.Namespace) -> None:
    """Train and evaluate what is not done; the results are written anew after each run."""
    began, device = time.monotonic(), chosen_device(args.device)
    runner = Runner(args.jobs, began + args.limit_seconds, _Interrupted())
    rounds = len(runs) * (1 if args.skip_evaluation else 2)
    with tqdm(total=rounds, unit="job", disable=None, dynamic_ncols=True) as bar:

        def ended() -> None:
            bar.update()
            write_results(plan, args.out)

        def both(run: Run) -> Work:
            yield from training(run, device, in_process=False)
            if not args.skip_evaluation:
                bar.update()
                yield from evaluations(run, device)

        if args.in_process:  # evaluations would slow the trainings beside them
            for run in runs:
                Runner(1, runner.until, runner.interrupted)(
                    [training(run, device, in_process=True)], ended
                )
            if not args.skip_evaluation:
                runner([evaluations(run, device) for run in runs], ended)
        else:
            runner([both(run) for run in runs], ended)


def main() -> None:
    """Exit code 1 where a training failed; the table names evaluations that did."""
    args = parse_args()
    plan = read_plan(args.plan, args.only)
    names = args.only or [variant.name for variant in plan.variants]
    chosen = [variant for variant in plan.variants if variant.name in names]
    for variant in chosen:
        try:
            plan.config(variant)
        except UserError as error:
            raise UserError(f"{args.plan}: variant {variant.name}: {error}") from None
    runs = [Run(plan, variant, seed, args.out) for seed, variant in product(plan.seeds, chosen)]
    with folder_lock(args.out):
        for run in runs:
            run.check(overwrite=args.overwrite)
        try:
            work_on(plan, runs, args)
        finally:
            write_results(plan, args.out)
            draw_curves(plan, args.out)
    failed = {run.variant.name: error for run in runs if (error := run.state.get("error"))}
    missing = sum(run.checkpoint is None for run in runs)
    for name, error in failed.items():
        say(f"failed: {name}: {error}")
    if missing:
        say(f"{missing} of {len(runs)} runs are not trained; the same command goes on")
    say(f"results are in {args.out / TABLE}, {args.out / RESULTS} and {args.out / CURVES}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    run_cli(main)
