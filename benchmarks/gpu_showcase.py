"""The showcase of `gpu.py`: trains a run file for a given time, and leaves weights that travel.

    python benchmarks/gpu_showcase.py --train config/emoji/64.toml --seconds 240 --device cuda \\
        --folder out/showcase --out out/gpu --result showcase.json

OUT gets showcase.tar.part-00 and so on, at most 15 MB each: a release (`release.py`), or
the checkpoint itself for a prior on pixels. `cat showcase.tar.part-* | tar x` puts it together.
Called again with the same folder, it goes on from the last checkpoint.
"""

from __future__ import annotations

import argparse
import math
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from gpu_checks import ROOT, Bench, curve
from gpu_run import end_with_parent
from gpu_stages import PARTS

from sundae.common.files import atomic_path, make_folder
from sundae.common.folders import remove_tree
from sundae.prior.checkpoint import open_checkpoint
from sundae.prior.release import release
from sundae.prior.run import list_checkpoints
from utils import run_cli

# Bytes of a part.
PART = 15_000_000

# Seconds that are kept for the last checkpoint, the weights and the samples.
RESERVE, RESERVE_TINY = 45.0, 40.0

# Of these, seconds that the last checkpoint may take.
SAVING = 20.0

SAMPLES = 36

# What a folder of weights of a prior on pixels is made of.
_INFERENCE = ("checkpoint.json", "model.safetensors", "ema.safetensors")


def train(bench: Bench, run: Path, words: list[str], seconds: float) -> None:
    """Run train.py for so many seconds at most, or go on with its last checkpoint."""
    if list_checkpoints(run):
        words = ["--resume", str(run)]
    command = [sys.executable, str(ROOT / "train.py"), *words]
    if bench.device.type == "cpu":
        command.append("--no-cuda")
    print("$", *command[1:], flush=True)
    began = time.monotonic()
    with subprocess.Popen(command, cwd=ROOT, preexec_fn=end_with_parent) as process:
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = ended(process)
    saved = code in (0, 128 + signal.SIGTERM)
    bench.check("training ends with a checkpoint", saved, f"exit code {code}", "0 or 143")
    step = open_checkpoint(run, prefer_best=False).info.step
    bench.check("steps are done", step > 0, f"step {step} after {time.monotonic() - began:.0f} s")
    losses = curve(run, "eval/loss")
    if losses:  # the time was enough for an evaluation
        finite = all(math.isfinite(loss) for loss in losses)
        bench.check("held-out loss", finite, f"{losses[0]:.4f} to {losses[-1]:.4f}")
        bench.show("curves", run / "curves.png")


def ended(process: subprocess.Popen[bytes]) -> int:
    """Exit code of a training after SIGTERM; it saves a checkpoint first."""
    process.send_signal(signal.SIGTERM)
    try:
        return process.wait(SAVING)
    except subprocess.TimeoutExpired:  # then the last checkpoint before counts
        process.kill()
        return process.wait()


def weights(run: Path, folder: Path) -> Path:
    """A folder to sample from and nothing else."""
    remove_tree(folder)
    checkpoint = open_checkpoint(run)
    if checkpoint.config.vqgan is not None:
        return release(run, folder)
    make_folder(folder)
    for name in _INFERENCE:
        if (checkpoint.folder / name).exists():
            shutil.copyfile(checkpoint.folder / name, folder / name)
    return folder


def write_parts(folder: Path, out: Path, size: int = PART) -> list[Path]:
    """Write a folder as one tar archive cut into files of at most `size` bytes; returns them."""
    make_folder(out)
    for old in out.glob(PARTS):
        old.unlink()
    archive = folder.with_suffix(".tar")
    with tarfile.open(archive, "w") as tar:
        tar.add(folder, arcname="showcase")
    parts = []
    with archive.open("rb") as whole:
        while chunk := whole.read(size):
            part = out / PARTS.replace("*", f"{len(parts):02d}")
            with atomic_path(part) as partial:
                partial.write_bytes(chunk)
            parts.append(part)
    archive.unlink()
    return parts


def sample(bench: Bench, run: Path) -> None:
    """A grid of samples of the run's best checkpoint."""
    out = bench.folder / "samples"
    bench.script("sample", "--resume", run, "--seed", 0, "--nb-samples", 4 if bench.tiny else
                 SAMPLES, "--cuda-vqgan", "--out-dir", out, "--overwrite")  # fmt: skip
    bench.show(f"samples of {run.name}", out.with_name("samples-grid.png"))


def main() -> None:
    """Train, save, sample."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flag = parser.add_argument
    flag("--train", type=Path, required=True, metavar="FILE", help="run file (TOML)")
    flag("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    flag("--seconds", type=float, required=True, help="for everything")
    flag("--device", choices=("cpu", "cuda"), default="cuda")
    flag("--tiny", action="store_true", help="as small as it can be")
    flag("--folder", type=Path, required=True, help="scratch space; holds the run")
    flag("--out", type=Path, required=True, help="folder for the parts")
    flag("--result", type=Path, required=True, help="JSON file for the findings")
    args = parser.parse_args()
    make_folder(args.folder)
    make_folder(args.result.parent)
    bench = Bench(torch.device(args.device), args.tiny, args.folder, args.result)
    run = args.folder / args.train.stem
    words = ["--cfg-path", str(args.train), "--seed", "0", "--run-dir", str(run)]
    words += [word for setting in args.overrides for word in ("--set", setting)]
    reserve = RESERVE_TINY if args.tiny else RESERVE
    train(bench, run, words, max(5.0, args.seconds - reserve))
    parts = write_parts(weights(run, args.folder / "weights"), args.out)
    total = sum(part.stat().st_size for part in parts)
    bench.check("weights are saved", bool(parts), f"{len(parts)} parts, {total / 1e6:.1f} MB")
    sample(bench, run)
    if not bench.passed:
        sys.exit(1)


if __name__ == "__main__":
    run_cli(main)
