"""How fast everything is, beside a textbook version of the same maths, and what it costs.

Weights are random, seeds fixed, nothing stops early. Variants are interleaved; the tables show
medians, the range over rounds and, in the same rounds, how many times faster than the first variant
each is. Beside every time: parameters, GFLOP (matrix products), network evaluations for an image,
the peak of memory beyond weights, gradients and optimiser state, TFLOP/s, and the share of the
fastest matrix product measured on this machine in the same precision. docs/speed.md has results.

    python benchmarks/speed.py
    python benchmarks/speed.py --device cuda --size ffhq1024 --paths ^ours --json speed-cuda.json
    python benchmarks/speed.py --size ffhq1024 --batch-size 1 --tracks amused --rounds 1
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))  # textbook.py

import torch
from efficiency import efficiency_of
from measuring import (
    interleaved,
    machine,
    machine_line,
    matmul_peak,
    median_and_range,
    tiny_codec,
)
from speed_amused import amused
from speed_jobs import (
    CONFIGS,
    SIZES,
    TEXTBOOK,
    Bench,
    Job,
    Setup,
    Track,
    Variant,
    cpu_memory,
    cuda_memory,
)
from speed_tracks import TRACKS

from sundae.common.errors import UserError
from sundae.common.files import make_folder, write_text
from sundae.config.run_file import load_config
from utils import run_cli, say

ALL_TRACKS: dict[str, Callable[[Bench, int], Track]] = {**TRACKS, "amused": amused}

# Tracks whose time does not depend on --batch-size, and where memory is measured on a CPU.
CODEC_TRACKS = ("encode", "decode")
CPU_MEMORY_TRACKS = ("train", "step", *CODEC_TRACKS)

GPU_COMMAND = "python benchmarks/gpu.py --minutes 9 --out out/gpu"

Row = dict[str, Any]


# -- measuring ------------------------------------------------------------------------------------


@dataclass
class Results:
    """What was measured so far.

    Attributes:
        size: value of --size.
        path: JSON file for all of it, or None.
        machine: what the numbers belong to.
        peaks: TFLOP/s of the fastest matrix product by precision.
        skipped: what could not be measured -> why.
    """

    setup: Setup
    size: str
    path: Path | None
    machine: dict[str, Any]
    peaks: dict[str, float] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def measure_peaks(self, bench: Bench) -> None:
        """The fastest matrix product in each precision that variants have, now or before."""
        names = {bench.precision, *(["fp32"] if self.setup.selects_name(TEXTBOOK) else [])}
        for name in sorted(names):
            dtype = torch.bfloat16 if name == "bf16" else torch.float32
            found = matmul_peak(self.setup.device, dtype) / 1e12
            self.peaks[name] = max(found, self.peaks.get(name, 0))

    def write(self, more: Sequence[Row] = ()) -> None:
        """Write the JSON file, with rows that are not final yet.

        A program that is killed later leaves what it has measured.
        """
        rows = [row | {"size": self.size} for row in (*self.rows, *more)]
        for row in rows:  # a higher peak may have been measured since
            row["share"] = row["tflops"] / self.peaks[row["precision"]]
        values = asdict(self.setup).items()
        content = {
            "machine": self.machine,
            "size": self.size,
            "peaks_tflops": self.peaks,
            "peak_tflops": self.peaks.get("bf16", self.peaks.get("fp32")),
            "setup": {name: str(v) if isinstance(v, Path) else v for name, v in values},
            "rows": rows,
            "skipped": self.skipped,
        }
        content["efficiency"] = efficiency_of([content], "benchmarks/speed.py")
        if self.path:
            write_text(self.path, json.dumps(content, indent=2) + "\n")


def measure(key: str, bench: Bench, batch: int, results: Results) -> list[Row]:
    """A row for each variant of a track, printed as a table; none where there are no rounds.

    Compiling can take longer than there is time: before it, the other variants are measured once.
    """
    track, rounds = ALL_TRACKS[key](bench, batch), bench.setup.rounds
    variants = [variant for variant in track.variants if bench.setup.selects(variant)]
    if not variants and rounds:
        raise UserError(f"--paths {bench.setup.paths} matches none of the variants")
    compiled = [variant for variant in variants if variant.compiled]
    memory: dict[str, int | None] = {}

    def timed(jobs: dict[str, Job], rounds: int) -> list[Row]:
        """A row for each job, all of them interleaved; memory takes one more run of each."""
        calls = {name: job.run for name, job in jobs.items()}
        seconds = interleaved(calls, rounds, bench.setup.device, warm_ups={},
                              limit=bench.setup.limit)  # fmt: skip
        chosen = [variant for variant in track.variants if variant.name in jobs]
        for variant in chosen:
            name = variant.name
            if name not in memory:
                memory[name] = extra_bytes(key, bench.setup, batch, variant, jobs[name])
        return [row_of(track, v, seconds[v.name], memory[v.name], results.peaks) for v in chosen]

    eager = [variant for variant in variants if not variant.compiled]
    jobs = warmed_up(track, eager, results.skipped)
    if jobs and compiled:
        results.write(timed(jobs, 1))
    jobs |= warmed_up(track, compiled, results.skipped)
    if not jobs or not rounds:
        return []
    try:
        rows = timed(jobs, rounds)
    except torch.OutOfMemoryError:
        results.skipped[track.name] = f"out of memory, {track.images} images at once"
        return []
    print_table(track.title, rows)
    return rows


def warmed_up(track: Track, variants: list[Variant], skipped: dict[str, str]) -> dict[str, Job]:
    """A job for each variant that works here, after it did its work once."""
    jobs: dict[str, Job] = {}
    for variant in variants:
        name = f"{track.name}: {variant.name}"
        try:
            job = variant.make()
            if job is None:
                skipped[name] = "torch.compile does not work here"
                continue
            (job.warm_up or job.run)()
            jobs[variant.name] = job
        except torch.OutOfMemoryError:
            skipped[name] = f"out of memory, {track.images} images at once"
    return jobs


def extra_bytes(key: str, setup: Setup, batch: int, variant: Variant, job: Job) -> int | None:
    """Peak of memory beyond weights, gradients and optimiser state, where it is measured."""
    if not setup.memory:
        return None
    if setup.device == "cuda":
        return None if variant.graphs else cuda_memory(job)
    if key in CPU_MEMORY_TRACKS and not variant.compiled:
        return cpu_memory(ALL_TRACKS[key], setup, batch, variant.name)
    return None


def row_of(
    track: Track, variant: Variant, seconds: list[float], extra: int | None, peaks: dict[str, float]
) -> Row:
    """Everything about one variant, as it goes into the JSON."""
    flop = variant.flop / track.parts
    tflops = variant.flop / statistics.median(seconds) / 1e12
    return {
        "track": track.name,
        "path": variant.name,
        "images": track.images,
        "seconds": [value / track.parts for value in seconds],
        "parameters": variant.parameters,
        "gflop": flop / 1e9,
        "gflop_per_image": flop / track.images / 1e9,
        "evaluations": variant.evaluations if track.parts == 1 else 1,
        "extra_bytes": extra,
        "precision": variant.precision,
        "tflops": tflops,
        "share": tflops / peaks[variant.precision],
    }


# -- printing -------------------------------------------------------------------------------------


def print_table(title: str, rows: list[Row]) -> None:
    """A line per variant."""
    width = max(len(row["path"]) for row in rows) + 2
    head = f"{'median (range)':<34}{'x first':<34}{'params':>8}{'GFLOP':>10}{'evals':>6}"
    print(f"\n{title}\n  {'':<{width}}{head}{'memory':>9}{'TFLOP/s':>9}{'of peak':>8}")
    first = rows[0]["seconds"]
    for row in rows:
        faster = [a / b for a, b in zip(first, row["seconds"])]
        ratio = "" if row is rows[0] else median_and_range(faster, "x")
        print(
            f"  {row['path']:<{width}}{median_and_range(row['seconds'], ' s')}{ratio:<34}"
            f"{shown(row['parameters'], 1e-6, 'M'):>8}{shown(row['gflop'], 1, ''):>10}"
            f"{shown(row['evaluations'], 1, ''):>6}{shown(row['extra_bytes'], 1e-6, ' MB'):>9}"
            f"{shown(row['tflops'], 1, ''):>9}{shown(row['share'], 100, '%'):>8}",
            flush=True,
        )


def shown(value: float | None, scale: float, unit: str) -> str:
    """Three digits; "-" for nothing."""
    if value is None:
        return "-"
    scaled = value * scale
    whole = scaled >= 100 or scaled == int(scaled)
    return f"{scaled:,.0f}{unit}" if whole else f"{scaled:.3g}{unit}"


def print_whole_images(rows: list[Row]) -> None:
    """Seconds an image from noise to pixels: each sampling with the fastest decoding."""

    def seconds(row: Row) -> float:
        return statistics.median(row["seconds"]) / row["images"]

    decodings = [row for row in rows if row["track"] == "decode"]
    samplings = [row for row in rows if row["track"] == "sampling"]
    if decodings and samplings:
        decoding = min(decodings, key=seconds)
        print(
            f"\nseconds an image with decoding ({decoding['path']}, {decoding['images']} at once)"
        )
        for row in samplings:
            total = seconds(row) + seconds(decoding)
            print(
                f"  {row['path']}, batch {row['images']}, {row['evaluations']} steps: {total:.3g} s"
            )


# -- the command ----------------------------------------------------------------------------------


def parse_args() -> argparse.Namespace:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flag = parser.add_argument
    flag("--size", default="ffhq256", metavar="NAME",
         help=f"{', '.join(SIZES)}, or a run file (ffhq256)")  # fmt: skip
    flag("--device", choices=("cpu", "cuda"), default="cpu")
    flag("--tracks", metavar="A,B", help=f"among {','.join(ALL_TRACKS)}; all unless given, "
         "but amused on a GPU only")  # fmt: skip
    flag("--paths", default="", metavar="REGEX",
         help="only the variants whose names match, such as ^ours (all)")  # fmt: skip
    flag("--rounds", type=int, default=7,
         help="to take medians of (7); 0 only fills the compiler's cache")  # fmt: skip
    flag("--batch-size", type=int, nargs="+", metavar="N",
         help="samples at once, one or several (4; on a GPU 1 and 32)")  # fmt: skip
    flag("--steps", type=int, metavar="N",
         help="of a whole sampling (the run file's, on a CPU 10 at most)")  # fmt: skip
    flag("--threads", type=int, default=torch.get_num_threads(), help="of the CPU (as found)")
    flag("--limit", type=float, default=30.0, metavar="SECONDS",
         help="a track begins no further round after these (30)")  # fmt: skip
    flag("--no-compile", action="store_true", help="leave the compiled variants out")
    flag("--no-memory", action="store_true", help="leave the peaks of memory out")
    flag("--json", type=Path, metavar="FILE", help="write all numbers there")
    args = parser.parse_args()
    if min([args.threads, *(args.batch_size or []), 1 if args.steps is None else args.steps]) < 1:
        parser.error("--threads, --batch-size and --steps start at 1")
    if args.rounds < 0 or not args.limit >= 0:
        parser.error("--rounds and --limit start at 0")
    try:
        re.compile(args.paths)
    except re.error as error:
        parser.error(f"--paths {args.paths}: no regular expression ({error})")
    return args


def setup_of(args: argparse.Namespace, folder: Path) -> Setup:
    """The setup that the flags describe.

    Raises:
        UserError: there is no such size, or no GPU.
    """
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: there is no CUDA device; leave it out")
    name, overrides = SIZES.get(args.size, (args.size, ()))
    path = CONFIGS / name if args.size in SIZES else Path(name)
    if not path.is_file():
        raise UserError(f"--size {args.size}: expected {', '.join(SIZES)} or a run file (TOML)")
    cfg = load_config(path, overrides)
    codec = cfg.vqgan.config if cfg.vqgan is not None else None
    if args.size in SIZES:
        codec = CONFIGS / "vqgan" / path.with_suffix(".yaml").name
    if args.size == "ci":
        codec = tiny_codec(codec, folder)
    steps = args.steps
    if steps is None and args.device == "cpu":
        steps = min(10, cfg.sampling.steps)
    return Setup(path, overrides, codec, args.device, args.threads, args.rounds, steps,
                 compiles=not args.no_compile, memory=not args.no_memory, limit=args.limit,
                 paths=args.paths)  # fmt: skip


def chosen_tracks(args: argparse.Namespace) -> list[str]:
    """By name; UserError where there is no such track."""
    if args.tracks is None:
        return [name for name in ALL_TRACKS if name != "amused" or args.device == "cuda"]
    names = args.tracks.split(",")
    for name in names:
        if name not in ALL_TRACKS:
            raise UserError(f"--tracks {name}: expected some of {','.join(ALL_TRACKS)}")
    return names


def batches_of(key: str, bench: Bench, given: list[int] | None) -> list[int]:
    """Batch sizes of a track."""
    cuda = bench.setup.device == "cuda"
    if key in CODEC_TRACKS:
        return [max(given) if given else 8 if cuda else 1]
    if key == "train" and cuda and not given:
        trainer = bench.cfg.trainer
        return [trainer.mini_batch_size or trainer.batch_size]
    several = given or ([1, 32] if cuda else [4])
    return [max(several)] if key in ("train", "forward", "amused") else several


def run_all(args: argparse.Namespace, setup: Setup) -> None:
    """Measures one track after the other; prints each table, then writes the JSON anew."""
    setup.begin()
    bench = Bench(setup)
    results = Results(setup, args.size, args.json, machine(setup.device))
    print(machine_line(results.machine), flush=True)
    if setup.rounds:
        results.measure_peaks(bench)
    peaks = results.peaks.items()
    print("fastest matrix product: " + ", ".join(f"{k} {v:.3g} TFLOP/s" for k, v in peaks))
    for key in chosen_tracks(args):
        if key in CODEC_TRACKS and setup.codec_config is None:
            results.skipped[key] = "the run file names no codec's configuration"
            continue
        for batch in batches_of(key, bench, args.batch_size):
            if results.rows:  # the first time, something else may have run
                results.measure_peaks(bench)
            try:
                results.rows += measure(key, bench, batch, results)
            except UserError as error:
                results.skipped[key] = str(error)
            release_memory(setup)
            results.write()
    print_whole_images(results.rows)
    for name, reason in results.skipped.items():
        say(f"skipped: {name} ({reason})")
    if setup.device == "cpu":
        print("\nGPU figures are missing: nothing was measured on one. With one, run:")
        print(f"  {GPU_COMMAND}")


def release_memory(setup: Setup) -> None:
    """Frees the variants of a track, and what was compiled for them."""
    if setup.compiles:
        torch._dynamo.reset()
    gc.collect()
    if setup.device == "cuda":
        torch.cuda.empty_cache()


def main() -> None:
    """Measures what the flags say."""
    args = parse_args()
    chosen_tracks(args)
    if args.json:
        make_folder(args.json.parent)
        if args.json.is_dir():
            raise UserError(f"--json {args.json} is a folder; name a file in it")
    with tempfile.TemporaryDirectory() as folder:
        run_all(args, setup_of(args, Path(folder)))


if __name__ == "__main__":
    run_cli(main)
