"""What each sampling strategy makes of few and of many steps, on the handwritten digits.

For every strategy, number of steps and seed the same number of samples is drawn, classes in turn,
with the run's own [sampling] but for strategy and steps, and without early stopping. Two measures:

- accuracy: share of samples that a classifier, fitted on the training digits, takes for its class;
- Frechet distance to the held-out digits: squared, of the grey levels 0 to 16 of the 64 pixels. Few
  samples make it too large, so compare only numbers of one table; the last line is the distance of
  as many training digits, which is what perfect samples would get.

Tables show the mean over seeds and, behind ±, the standard deviation.

    python benchmarks/strategies.py --resume exp/digits-demo --json strategies.json
    python benchmarks/strategies.py --resume exp/digits-demo --steps 4 8 --seeds 1 \\
        --strategies random halton --set sampling.temperature=0.8
"""

import argparse
import csv
import io
import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from measuring import machine, machine_line
from scoring import Digits, draw, real_distance

from sundae.common.files import make_folder, write_text
from sundae.config.run_file import dump_toml
from sundae.config.sections import StrategyName
from sundae.sampling.sampler import BaseSampler
from utils import add_common_flags, choose_device, run_cli

STEPS = (4, 8, 12, 16, 32, 64, 100)
STRATEGIES = get_args(StrategyName)
SCORES = ("accuracy", "frechet")


def measure(
    sampler: BaseSampler, digits: Digits, strategy: Any, steps: int, seed: int, count: int
) -> dict[str, Any]:
    """One run of samples: both scores, and the seconds it took."""
    sampling = replace(sampler.cfg.sampling, strategy=strategy, steps=steps, early_stop=False)
    classes, begin = sampler.class_rows(None, count), time.perf_counter()
    tokens = draw(sampler, sampling, seed, classes, count)
    seconds = time.perf_counter() - begin
    scores = digits.score(tokens, classes)
    return {"strategy": strategy, "steps": steps, "seed": seed, **scores, "seconds": seconds}


def print_table(score: str, results: list[dict[str, Any]]) -> None:
    """A line for each strategy, a column for each number of steps."""
    columns = sorted({row["steps"] for row in results})
    print(f"\n{score:<12}" + "".join(f"{f'{steps} steps':>14}" for steps in columns))
    for strategy in dict.fromkeys(row["strategy"] for row in results):
        cells = []
        for steps in columns:
            values = [
                row[score]
                for row in results
                if (row["strategy"], row["steps"]) == (strategy, steps)
            ]
            spread = f" ±{statistics.stdev(values):.2g}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3g}{spread}")
        print(f"{strategy:<12}" + "".join(f"{cell:>14}" for cell in cells), flush=True)


def as_csv(results: list[dict[str, Any]]) -> str:
    """A line for each run of samples."""
    text = io.StringIO()
    writer = csv.DictWriter(text, results[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(results)
    return text.getvalue()


def parse_args() -> argparse.Namespace:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_common_flags(parser, "--set", "--no-cuda", "--precision")
    flag = parser.add_argument
    flag("--resume", type=Path, required=True, metavar="RUN", help="run folder of the digits")
    flag("--strategies", nargs="+", default=STRATEGIES, choices=STRATEGIES, metavar="NAME",
         help=f"which ones ({' '.join(STRATEGIES)})")  # fmt: skip
    flag("--steps", type=int, nargs="+", default=STEPS, metavar="N",
         help=f"how many, several times ({' '.join(map(str, STEPS))})")  # fmt: skip
    flag("--seeds", type=int, default=3, metavar="N", help="0 .. N-1 (3)")
    flag("--nb-samples", type=int, default=200, metavar="N", help="of each (200)")
    flag("--threads", type=int, default=torch.get_num_threads(), help="of the CPU")
    flag("--json", type=Path, metavar="FILE", help="write all numbers there")
    flag("--csv", type=Path, metavar="FILE", help="write a line for each run of samples there")
    args = parser.parse_args()
    if min(*args.steps, args.seeds, args.threads) < 1 or args.nb_samples < 2:
        parser.error("--steps, --seeds and --threads start at 1, --nb-samples at 2")
    return args


def main() -> None:
    """Measures one strategy after the other and prints the tables."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    device = choose_device(args.no_cuda)
    sampler = BaseSampler.from_pretrained(
        args.resume, overrides=args.overrides, device=device, precision=args.precision
    )
    digits = Digits.open(sampler.cfg)
    for path in filter(None, (args.json, args.csv)):
        make_folder(path.parent)
    assert sampler.checkpoint is not None
    about = machine(device.type) | {"step": sampler.checkpoint.info.step}
    about["nb_samples"] = args.nb_samples
    print(machine_line(about), flush=True)
    results = []
    for strategy in args.strategies:
        begin = time.perf_counter()
        results += [
            measure(sampler, digits, strategy, steps, seed, args.nb_samples)
            for steps in args.steps
            for seed in range(args.seeds)
        ]
        print(f"{strategy}: {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)
    for name in SCORES:
        print_table(name, results)
    real = real_distance(digits, args.nb_samples)
    print(f"\nfrechet of {args.nb_samples} training digits: {real:.3g}")
    if args.json:
        found = {"machine": about, "real_frechet": real, "config": dump_toml(sampler.cfg)}
        write_text(args.json, json.dumps(found | {"results": results}, indent=2) + "\n")
    if args.csv:
        write_text(args.csv, as_csv(results))


if __name__ == "__main__":
    run_cli(main)
