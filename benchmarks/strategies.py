"""What each sampling strategy makes of few and of many steps, on the handwritten digits.

For every strategy, number of steps and seed the same number of samples is drawn, classes in turn,
with the run's own [sampling] but for strategy and steps, and without early stopping. Two measures:

- accuracy: share of samples that a support-vector classifier, fitted on the training digits, takes
  for the class they were asked for;
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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from sklearn.svm import SVC

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from measuring import machine

from sundae.common.errors import UserError
from sundae.common.files import make_folder, write_text
from sundae.config.run_file import RunConfig, dump_toml, parse_config
from sundae.config.sections import StrategyName
from sundae.data.dataset import Latents, open_latents
from sundae.evaluation.classifier import class_accuracy, fit_classifier
from sundae.evaluation.frechet import frechet_distance
from sundae.prior.checkpoint import open_checkpoint
from sundae.prior.compatibility import check_same_network
from sundae.sampling.prior import Prior, even_classes, sample_seeds
from utils import add_common_flags, choose_device, run_cli

STEPS = (4, 8, 12, 16, 32, 64, 100)
STRATEGIES = get_args(StrategyName)
MEASURES = ("accuracy", "frechet")


@dataclass(frozen=True)
class Digits:
    """What samples are held against."""

    judge: SVC
    held_out: np.ndarray  # (pictures, pixels)
    training: np.ndarray

    def judged(self, tokens: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
        """Both measures of samples (count, pixels) that were asked for by classes (count,)."""
        return {
            "accuracy": class_accuracy(self.judge, tokens, wanted),
            "frechet": frechet_distance(tokens, self.held_out),
        }


def pixels(latents: Latents) -> np.ndarray:
    """(pictures, pixels)"""
    return np.asarray(latents.tokens).reshape(len(latents), -1)


def open_digits(cfg: RunConfig) -> Digits:
    """The data of a run.

    Raises:
        UserError: it was not trained on digits with classes, or they are not there.
    """
    if cfg.vqgan is not None or not cfg.net.conditional or cfg.data.train_root is None:
        raise UserError(
            "--resume: expected a run on handwritten digits with classes, such as `make demo` makes"
        )
    assert cfg.data.eval_root is not None
    training = open_latents(cfg.data.train_root)
    held_out = open_latents(cfg.data.eval_root)
    return Digits(fit_classifier(training), pixels(held_out), pixels(training))


def measure(
    prior: Prior, digits: Digits, strategy: Any, steps: int, seed: int, count: int, batch: int
) -> dict[str, Any]:
    """One run of samples: both measures, and the seconds it took."""
    schedule = prior.cfg.sampling
    schedule = replace(schedule, strategy=strategy, steps=steps, early_stop=False)
    seeds, classes = sample_seeds(seed, count), even_classes(prior.cfg.net.num_classes, count)
    drawn = []
    begin = time.perf_counter()
    for start in range(0, count, batch):
        rows = slice(start, start + batch)
        *_, last = prior.refine(seeds[rows], classes[rows], schedule)
        drawn.append(last.tokens.cpu())
    seconds = time.perf_counter() - begin
    found = digits.judged(torch.cat(drawn).numpy(), classes.numpy())
    return {"strategy": strategy, "steps": steps, "seed": seed, **found, "seconds": seconds}


def print_table(measure_name: str, results: list[dict[str, Any]]) -> None:
    """A line for each strategy, a column for each number of steps."""
    columns = sorted({row["steps"] for row in results})
    print(f"\n{measure_name:<12}" + "".join(f"{f'{steps} steps':>14}" for steps in columns))
    for strategy in dict.fromkeys(row["strategy"] for row in results):
        cells = []
        for steps in columns:
            values = [
                row[measure_name]
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
    flag("--batch-size", type=int, default=100, metavar="N", help="samples at a time (100)")
    flag("--threads", type=int, default=torch.get_num_threads(), help="of the CPU")
    flag("--json", type=Path, metavar="FILE", help="write all numbers there")
    flag("--csv", type=Path, metavar="FILE", help="write a line for each run of samples there")
    args = parser.parse_args()
    if min(*args.steps, args.seeds, args.batch_size, args.threads) < 1 or args.nb_samples < 2:
        parser.error("--steps, --seeds, --batch-size and --threads start at 1, --nb-samples at 2")
    return args


def main() -> None:
    """Measures one strategy after the other and prints the tables."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    checkpoint = open_checkpoint(args.resume)
    cfg = parse_config(checkpoint.info.config, str(checkpoint.folder), args.overrides)
    check_same_network(cfg, checkpoint)
    digits = open_digits(cfg)
    device = choose_device(args.no_cuda)
    net = checkpoint.load_network().to(device)
    for path in filter(None, (args.json, args.csv)):
        make_folder(path.parent)
    prior = Prior(net, cfg, device, use_amp=args.precision != "fp32")
    about = machine(device.type) | {"step": checkpoint.info.step, "nb_samples": args.nb_samples}
    print(", ".join(f"{key} {value}" for key, value in about.items()), flush=True)
    results = []
    for strategy in args.strategies:
        begin = time.perf_counter()
        results += [
            measure(prior, digits, strategy, steps, seed, args.nb_samples, args.batch_size)
            for steps in args.steps
            for seed in range(args.seeds)
        ]
        print(f"{strategy}: {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)
    for name in MEASURES:
        print_table(name, results)
    order = np.random.default_rng(0).permutation(len(digits.training))[: args.nb_samples]
    real = frechet_distance(digits.training[order], digits.held_out)
    print(f"\nfrechet of {len(order)} training digits: {real:.3g}")
    if args.json:
        found = {"machine": about, "real_frechet": real, "config": dump_toml(cfg)}
        write_text(args.json, json.dumps(found | {"results": results}, indent=2) + "\n")
    if args.csv:
        write_text(args.csv, as_csv(results))


if __name__ == "__main__":
    run_cli(main)
