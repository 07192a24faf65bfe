"""Metrics of a run: averaged on the device, read rarely, summarised in a line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

Row = dict[str, float]


class PartialSum(NamedTuple):
    """A metric of those samples of a batch that it applies to, of which there may be none.

    Attributes:
        total: scalar, the sum over them.
        weight: how many they are.
    """

    total: Tensor
    weight: float | Tensor


# By name, scalars on one device: means over a batch, and sums over a part of it.
Metrics = Mapping[str, Tensor | PartialSum]


class Means:
    """Running means that stay on the device until they are read."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.weights: dict[str, float | Tensor] = {}

    def add(self, metrics: Metrics, weight: float) -> None:
        """Count every mean with a weight, and every partial sum as it is."""
        for name, value in metrics.items():
            if not isinstance(value, PartialSum):
                value = PartialSum(value.detach().double() * weight, weight)
            total = value.total.double()
            self.sums[name] = self.sums[name] + total if name in self.sums else total
            self.weights[name] = self.weights.get(name, 0.0) + value.weight

    def read(self, accelerator: Accelerator) -> Row:
        """The means over all processes, of what was counted at least once; waits for the device."""
        names = list(self.sums)
        if not names:
            return {}
        sums = torch.stack([self.sums[name] for name in names])
        weights = torch.tensor([float(self.weights[name]) for name in names]).to(sums)
        both = accelerator.reduce(torch.stack((sums, weights)), "sum").tolist()
        means = zip(names, *both, strict=True)
        return {name: total / weight for name, total, weight in means if weight}


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
