"""Train on handwritten digits, sample 500 and score them with a classifier: `make demo`."""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np

from sundae.codec.interface import PixelCodec
from sundae.common.errors import UserError
from sundae.data.dataset import open_latents
from sundae.evaluation.classifier import class_accuracy, fit_classifier, read_tokens, spread_ratio
from sundae.prior.checkpoint import open_checkpoint
from sundae.prior.run import list_checkpoints
from utils import run_cli, say

CONFIG, RUN = Path("config/digits/demo.toml"), Path("exp/digits-demo")
SAMPLES = Path("samples/demo")
COUNT = 500


def run_script(*command: str | Path) -> None:
    """Show a command as the user would type it, and run it."""
    say(f"$ python {' '.join(map(str, command))}")
    status = subprocess.run([sys.executable, *map(str, command)]).returncode
    if status:
        raise UserError(f"{command[0]} ended with status {status}; run `make demo` again to go on")


def train(run: Path) -> None:
    """Start the run, or go on with it where it was left; a finished run stays as it is."""
    if not list_checkpoints(run):
        run_script("train.py", "--cfg-path", CONFIG, "--seed", "0", "--run-dir", run)
        return
    last = open_checkpoint(run, prefer_best=False)
    if last.info.step < last.config.trainer.max_steps:
        run_script("train.py", "--resume", run)
    else:
        say(f"{run} is trained already; delete it to start over")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--run-dir", type=Path, default=RUN, help=f"folder of the run (default: {RUN})"
    )
    parser.add_argument(
        "--out-dir", type=Path, default=SAMPLES, help=f"folder of the samples (default: {SAMPLES})"
    )
    args = parser.parse_args()
    train(args.run_dir)
    run_script("sample.py", "--resume", args.run_dir, "--seed", "0", "--nb-samples", str(COUNT),
               "--batch-size", "250", "--out-dir", args.out_dir, "--overwrite")  # fmt: skip
    cfg = open_checkpoint(args.run_dir).config
    assert cfg.data.train_root is not None
    real = open_latents(cfg.data.train_root)
    tokens = read_tokens(args.out_dir, PixelCodec(cfg.data.vocab_size), COUNT)
    targets = np.arange(COUNT) % cfg.net.num_classes
    accuracy = class_accuracy(fit_classifier(real), tokens, targets)
    say(f"accuracy of a classifier fitted on the real digits, on {COUNT} samples: {accuracy:.3f}")
    say(f"samples of a class differ {spread_ratio(tokens, targets, real):.2f} times as much as "
        "real digits do")  # fmt: skip
    say(f"look at them: {args.out_dir}-grid.png; curves: {args.run_dir}/curves.png")


if __name__ == "__main__":
    run_cli(main)
