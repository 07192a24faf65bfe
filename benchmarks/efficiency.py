"""What share of a card's peak was measured: efficiency.json, which the planner reads."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MEASURED = Path(__file__).with_name("efficiency.json")

# device -> {"train", "sample", "decode": share of "tflops", or of the vendor's peak where that is
# missing; "source": text; "precision": "bf16" or "fp32", if it is known; "memory_gb", of a device
# that is not in the planner's table}
Efficiency = dict[str, dict[str, Any]]


def efficiency_of(results: Sequence[Mapping[str, Any]], source: str) -> Efficiency:
    """The shares of one device from what speed.py wrote in one run or several.

    The fastest of our own paths counts for each track; of several sizes, the median.

    Args:
        results: contents of its JSON, at least one.
        source: where they come from, for the reader.
    """
    machine = results[0].get("machine") or {}
    entry: dict[str, Any] = {"source": f"{source}, {machine.get('date', 'no date')}"}
    named = [{**result, **(result.get("machine") or {})} for result in results]
    peaks = [result.get("peak_tflops") or result.get("peak") for result in named]
    numbers = [float(peak) for peak in peaks if isinstance(peak, int | float)]
    if numbers:
        entry["tflops"] = max(numbers)
    rows = [row for result in results for row in result["rows"]]
    for kind, word in (("train", "train"), ("sample", "sampl"), ("decode", "decode")):
        best: dict[str, tuple[float, str]] = {}
        for row in rows:
            ours = str(row.get("path", "")).startswith("ours")
            if ours and word in str(row.get("track", "")) and row.get("share"):
                size, precision = str(row.get("size", "")), str(row.get("precision", "bf16"))
                # A row's share is of the peak in its own precision; here they share one scale.
                rate = row.get("tflops")
                share = rate / entry["tflops"] if rate and "tflops" in entry else row["share"]
                best[size] = max(best.get(size, (0.0, "")), (float(share), precision))
        if best:
            entry[kind] = statistics.median(share for share, _ in best.values())
            entry["precision"] = next(iter(best.values()))[1]
    return {str(machine.get("device", "unknown device")): entry}
