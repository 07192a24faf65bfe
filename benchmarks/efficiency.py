"""What share of a card's peak was measured, as plan.py reads it; imported where torch is not."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any


def efficiency_of(results: Sequence[Mapping[str, Any]], source: str) -> dict[str, dict[str, Any]]:
    """{device: shares} as plan.py reads them, from what speed.py wrote in one run or several.

    The fastest of our own variants counts for each track; of several sizes, the median.

    Args:
        results: contents of its JSON, at least one.
        source: where they come from, for the reader.
    """
    about = results[0]["machine"]
    entry: dict[str, Any] = {"source": f"{source}, {about.get('date', 'no date')}"}
    peaks = [result["peak_tflops"] for result in results if result["peak_tflops"]]
    if peaks:
        entry["tflops"] = max(peaks)
    rows = [row for result in results for row in result["rows"] if row["share"]]
    for kind, word in (("train", "train"), ("sample", "sampl"), ("decode", "decode")):
        best: dict[str, tuple[float, str]] = {}
        for row in rows:
            if row["path"].startswith("ours") and word in row["track"]:
                # A row's share is of the peak in its own precision; here they share one scale.
                share = row["tflops"] / entry["tflops"]
                best[row["size"]] = max(best.get(row["size"], (0.0, "")), (share, row["precision"]))
        if best:
            entry[kind] = statistics.median(share for share, _ in best.values())
            entry["precision"] = next(iter(best.values()))[1]
    return {about["device"]: entry}
