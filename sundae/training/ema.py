"""An exponential moving average of a network's weights."""

from __future__ import annotations

import copy

import torch
from torch import nn


class EMA:
    """An averaged copy of a network; evaluation and sampling use the copy.

    The decay grows with the number of updates, as (1 + n) / (10 + n), until it reaches its final
    value, so that the initial weights do not hold the average back. (torch's AveragedModel counts
    its updates on the device, which stalls a GPU at every step.)

    Attributes:
        net: the copy.
        updates: number of updates so far.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        """decay: in [0, 1); the average forgets over about 1 / (1 - decay) updates."""
        self.decay, self.updates = decay, 0
        self.net = copy.deepcopy(net).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        """Move the average towards the weights of `net`."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.net.parameters()), list(net.parameters()), 1 - decay)
        for mine, theirs in zip(self.net.buffers(), net.buffers(), strict=True):
            mine.copy_(theirs)
