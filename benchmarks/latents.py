"""How fast token data reaches training: packed and memory-mapped against one .npy per image.

Both are read through a DataLoader in shuffled batches. Rounds of the two are interleaved, so that a
busy machine slows both; the table shows medians, the range, and the median of the rounds' ratios.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).parent.parent))

from sundae.data.dataset import TokenDataset, collate_batched, open_latents
from sundae.data.format import Manifest, token_dtype
from sundae.data.writer import write_latents

CODEBOOK_SIZE = 8192


class OneFilePerImage(Dataset[torch.Tensor]):
    """What earlier tools do: open, parse and convert one small file a sample."""

    def __init__(self, root: Path) -> None:
        self.paths = sorted(root.glob("*.npy"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(np.load(self.paths[index]).astype(np.int64).reshape(-1))


def write_both(root: Path, samples: int, side: int) -> tuple[Path, Path]:
    """Writes the same random grids in both forms: (packed folder, folder of files)."""
    random = np.random.default_rng(0)
    dtype = token_dtype(CODEBOOK_SIZE)
    tokens = random.integers(0, CODEBOOK_SIZE, (samples, side, side), dtype=dtype)
    manifest = Manifest(
        codec="random",
        codebook_size=CODEBOOK_SIZE,
        latent_shape=(side, side),
        mirrored=False,
        classes=None,
        sources=tuple(f"{index:06d}.png" for index in range(samples)),
        labels=None,
    )
    write_latents(root / "packed", tokens, manifest)
    (root / "files").mkdir()
    for index, grid in enumerate(tokens):
        np.save(root / "files" / f"{index:06d}.npy", grid.astype(np.int64))
    return root / "packed", root / "files"


def seconds_to_read(loader: DataLoader) -> float:
    """Time of one epoch; the tokens are summed, so that they are really there."""
    start = time.perf_counter()
    for batch in loader:
        (batch["tokens"] if isinstance(batch, dict) else batch).sum()
    return time.perf_counter() - start


def print_table(seconds: dict[str, list[float]], samples: int) -> None:
    """One line a form: samples a second, median and range over rounds."""
    print(f"{'form':<24}{'samples/s':>12}{'lowest':>12}{'highest':>12}")
    for name, times in seconds.items():
        rates = [samples / t for t in times]
        cells = (statistics.median(rates), min(rates), max(rates))
        print(f"{name:<24}" + "".join(f"{cell:>12,.0f}" for cell in cells))
    packed, files = seconds.values()
    ratios = [f / p for p, f in zip(packed, files)]
    print(f"packed is {statistics.median(ratios):.1f}x ({min(ratios):.1f} to {max(ratios):.1f})")


def parse_args() -> argparse.Namespace:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=65536)
    parser.add_argument("--side", type=int, default=16, help="tokens along a side (default: 16)")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--nb-workers", type=int, default=0)
    parser.add_argument("--dir", type=Path, help="where to make the data (default: system's)")
    return parser.parse_args()


def main() -> None:
    """Makes the data, reads it in turns and prints the table."""
    args = parse_args()
    shared = {"batch_size": args.batch_size, "shuffle": True, "num_workers": args.nb_workers}
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        packed, files = write_both(Path(folder), args.samples, args.side)
        loaders: dict[str, Callable[[], DataLoader]] = {
            "packed, memory-mapped": lambda: DataLoader(
                TokenDataset(open_latents(packed)), collate_fn=collate_batched, **shared
            ),
            "one .npy per image": lambda: DataLoader(OneFilePerImage(files), **shared),
        }
        for make in loaders.values():
            seconds_to_read(make())  # warm-up: both are in the page cache from here on
        seconds: dict[str, list[float]] = {name: [] for name in loaders}
        for _ in range(args.rounds):
            for name, make in loaders.items():
                seconds[name].append(seconds_to_read(make()))
        print(
            f"{args.samples} samples of {args.side}x{args.side} tokens, batch {args.batch_size}, "
            f"{args.nb_workers} workers, {args.rounds} rounds"
        )
        print_table(seconds, args.samples)


if __name__ == "__main__":
    main()
