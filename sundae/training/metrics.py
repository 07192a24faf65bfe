"""Metrics of a run: averaged on the device, read rarely, summarised in a line."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import Tensor

Row = dict[str, float]


class Means:
    """Running means that stay on the device until they are read."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.weights: dict[str, float] = {}

    def add(self, metrics: dict[str, Tensor], weight: float) -> None:
        """Count every metric, a scalar each, with a weight."""
        for name, value in metrics.items():
            value = value.detach().double() * weight
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.weights[name] = self.weights.get(name, 0.0) + weight

    def read(self, accelerator: Accelerator) -> Row:
        """The means over all processes; waits for the device."""
        names = list(self.sums)
        if not names:
            return {}
        sums = torch.stack([self.sums[name] for name in names])
        weights = torch.tensor([self.weights[name] for name in names], device=sums.device).double()
        both = accelerator.reduce(torch.stack((sums, weights)), "sum")
        return dict(zip(names, (both[0] / both[1]).tolist(), strict=True))


def describe(row: Row, metric_names: tuple[str, ...]) -> str:
    """One line for a terminal: step, training against held-out metrics, rate."""
    names = metric_names or ("loss", "accuracy")
    parts = [
        f"{name} {row[f'train/{name}']:.4f} (held out {row[f'eval/{name}']:.4f})"
        for name in dict.fromkeys(("loss", *names))
        if f"train/{name}" in row and f"eval/{name}" in row
    ]
    peak = f", peak {row['peak_gb']:.1f} GB" if "peak_gb" in row else ""
    rate = f"{row['samples_per_s']:.0f} samples/s"
    return f"step {int(row['step'])}: {', '.join(parts)}, {rate}{peak}"
