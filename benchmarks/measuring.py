"""What benchmarks share: times taken in turns, memory at the peak, and whose numbers they are."""

import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

import torch

Seconds = dict[str, list[float]]


def in_turns(calls: Mapping[str, Callable[[], object]], rounds: int, device: str) -> Seconds:
    """Seconds of each call in each round, after a round that does not count.

    A busy machine then slows all of them alike, and the ratio within a round still holds.
    """
    seconds: Seconds = {name: [] for name in calls}
    for _ in range(1 + rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    return {name: times[1:] for name, times in seconds.items()}


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


def in_child(function: Callable[..., Any], *arguments: object) -> Any:
    """What a function returns in a fresh process, where no earlier peak hides its memory."""
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


def machine(device: str) -> dict[str, Any]:
    """What the numbers belong to."""
    name = torch.cuda.get_device_name() if device == "cuda" else _cpu_name()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": date.today().isoformat(),
    }


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.split(": ")[1] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
