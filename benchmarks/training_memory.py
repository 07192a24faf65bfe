"""Memory of a training step beyond weights, gradients and optimiser state: ours and a textbook's.

    python benchmarks/training_memory.py --size ffhq256 --batch-size 32

Each way runs two steps in a process of its own; what counts is the peak of the second, of the whole
process, less what it held before. The README has results.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))  # textbook.py

import torch
from speed_jobs import CONFIGS, SIZES, Bench, Setup, cpu_memory
from speed_tracks import train

from sundae.common.errors import UserError
from utils import run_cli


def main() -> None:
    """A line a way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="ffhq256", help=f"{', '.join(SIZES)} (ffhq256)")
    parser.add_argument("--batch-size", type=int, default=32, help="samples at once (32)")
    args = parser.parse_args()
    if args.size not in SIZES:
        raise UserError(f"--size {args.size}: expected one of {', '.join(SIZES)}")
    if args.batch_size < 1:
        raise UserError(f"--batch-size {args.batch_size}: expected at least 1")
    name, overrides = SIZES[args.size]
    setup = Setup(
        config=CONFIGS / name,
        overrides=overrides,
        codec_config=None,
        device="cpu",
        threads=torch.get_num_threads(),
        rounds=1,
        steps=None,
        compiles=False,
        memory=True,
        limit=0,
    )
    first = None
    for way in train(Bench(setup), args.batch_size).ways:
        found = cpu_memory(train, setup, args.batch_size, way.name)
        first = first or found
        print(f"{way.name:<24}{found / 1e6:>9,.0f} MB {found / first:>6.0%}", flush=True)


if __name__ == "__main__":
    run_cli(main)
