"""What benchmarks share: interleaved timings, peaks of memory, and whose numbers they are."""

import math
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

Seconds = dict[str, list[float]]

# Sides of the square matrices whose product shows what a machine can do; the best of them counts.
_PEAK_SIDES = {"cpu": (512, 1024, 2048), "cuda": (4096, 8192, 16384)}

# How often the product of a size is repeated at most, for how many seconds, and what counts.
_PEAK_ROUNDS: dict[str, tuple[int, float]] = {"cpu": (5, math.inf), "cuda": (1000, 0.5)}
_PEAK_OF = {"cpu": min, "cuda": statistics.median}


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    device: str,
    *,
    warm_ups: Mapping[str, Callable[[], object]] | None = None,
    limit: float = math.inf,
) -> Seconds:
    """Seconds of each call in each round, after a warm-up round.

    Interleaved, a busy machine slows all of them alike, and the ratio within a round still holds.

    Args:
        warm_ups: calls of the warm-up round, the timed ones unless given.
        limit: no further round begins once the timed ones have taken this many seconds.
    """
    for call in (calls if warm_ups is None else warm_ups).values():
        _timed(call, device)
    seconds: Seconds = {name: [] for name in calls}
    begin = time.perf_counter()
    for number in range(rounds):
        if number and time.perf_counter() - begin > limit:
            break
        for name, call in calls.items():
            seconds[name].append(_timed(call, device))
    return seconds


def _timed(call: Callable[[], object], device: str) -> float:
    start = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def median_and_range(values: list[float], unit: str) -> str:
    """Such as "1.5 s (1.2 to 3)", in columns."""
    median = f"{statistics.median(values):.3g}{unit}"
    return f"{median:>11} {f'({min(values):.3g} to {max(values):.3g})':<22}"


def print_times(title: str, seconds: Seconds) -> None:
    """A line each, with how many times faster than the first it is, round by round."""
    print(f"\n{title}")
    first = next(iter(seconds.values()))
    for name, times in seconds.items():
        faster = [a / b for a, b in zip(first, times)]
        ratio = "" if times is first else median_and_range(faster, "x")
        print(f"  {name:<12}{median_and_range(times, ' s')}{ratio}".rstrip(), flush=True)


def matmul_peak(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest matrix product found among several sizes.

    On a CPU the best of five tries counts, since something else may run beside them; on a GPU the
    median over half a second, since its highest clock rate lasts for moments only.
    """
    best = 0.0
    for side in _PEAK_SIDES[device]:
        left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(left)
        product = partial(torch.mm, left, right, out=out)
        rounds, limit = _PEAK_ROUNDS[device]
        seconds = interleaved({"": product}, rounds, device, limit=limit)[""]
        best = max(best, 2 * side**3 / _PEAK_OF[device](seconds))
    return best


def in_child(function: Callable[..., Any], *arguments: object) -> Any:
    """What a function returns in a fresh process, where no earlier peak hides its memory.

    glibc returns large blocks to the system at once there, so a peak shows what is in use.
    """
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**20))
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**20))
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(function, *arguments).result()


def memory(device: str, *, peak: bool) -> int:
    """Bytes of tensors on the GPU, or of this whole process; now, or the most so far."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
    # Not getrusage: its peak counts what the parent held when it started this process.
    field = "VmHWM:" if peak else "VmRSS:"
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def tiny_codec(config: Path, folder: Path) -> Path:
    """A codec's YAML file with everything small: 64 codes, 4 pixels a token, 32 pixels."""
    content = yaml.safe_load(config.read_text(encoding="utf-8"))
    params = content["model"]["params"]
    params |= {"n_embed": 64, "embed_dim": 8}
    params["ddconfig"] |= {"ch": 32, "ch_mult": [1, 1, 2], "resolution": 32, "z_channels": 8}
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


# -- whose numbers they are -----------------------------------------------------------------------


def machine(device: str) -> dict[str, Any]:
    """What the numbers belong to."""
    name = torch.cuda.get_device_name() if device == "cuda" else _cpu_name()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": date.today().isoformat(),
    }


def machine_line(about: Mapping[str, Any]) -> str:
    """`machine` as one line."""
    return ", ".join(f"{key} {value}" for key, value in about.items())


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.split(": ")[1] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
