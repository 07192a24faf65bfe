"""Held-out metrics by the rate of corruption: what a network can do with how much of an image."""

from __future__ import annotations

import torch
from torch import Tensor

from sundae.training.metrics import PartialSum

_BINS = 5  # equal parts of [0, 1]


def by_rate(name: str, values: Tensor, rates: Tensor) -> dict[str, PartialSum]:
    """Sort a metric of samples into bins of their corruption rates.

    Args:
        name: of the metric.
        values: (batch,) float, one a sample.
        rates: (batch,) float in [0, 1], by which the samples were corrupted.

    Returns:
        one partial sum a bin, under names such as "loss_rate_0.2-0.4"; a bin holds its lower edge,
        the last one also its upper.
    """
    number = (rates * _BINS).long().clamp(max=_BINS - 1)
    inside = number[:, None] == torch.arange(_BINS, device=rates.device)
    totals = torch.where(inside, values[:, None], 0.0).sum(0)  # NaN stays in its bin
    edges = [f"{part / _BINS:.1f}" for part in range(_BINS + 1)]
    return {
        f"{name}_rate_{low}-{high}": PartialSum(total, count)
        for low, high, total, count in zip(
            edges[:-1], edges[1:], totals, inside.sum(0), strict=True
        )
    }
