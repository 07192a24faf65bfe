"""A training that goes wrong: how an exploding loss is noticed, and the likely cause."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from sundae.common.errors import UserError
from sundae.common.precision import uses_bf16
from sundae.config.sections import TrainerConfig

_RECENT_STEPS = 10
_ABOVE_FIRST, _ABOVE_LOWEST = 1.25, 2.0


class ExplodedError(UserError):
    """The loss of a training is far above all that it has been."""


class LossWatch:
    """Notices a loss that explodes.

    A loss has exploded when its mean over the last ten steps is above 1.25 times the loss of the
    run's first step, which an untrained network has (log(vocab) in the case of a prior), and above
    twice the lowest mean of the time between two evaluations. Noise alone does not reach the first
    bound, nor does a bad start reach the second.

    Attributes:
        first: loss of the first step; None until the first check, infinite where it is not known.
        lowest: lowest mean between two evaluations, at most `first`.
    """

    def __init__(self, name: str) -> None:
        """name: of the metric that is watched, for the error's line."""
        self.name = name
        self.first: float | None = None
        self.lowest = math.inf
        self._beginning: list[Tensor] = []
        self._recent: deque[list[Tensor]] = deque(maxlen=_RECENT_STEPS)

    def add(self, losses: list[Tensor]) -> None:
        """Count an optimiser step by its losses, scalars that stay on their device."""
        self._beginning = self._beginning or losses
        self._recent.append(losses)

    def check(self, accelerator: Accelerator) -> None:
        """ExplodedError, in all processes, where the loss has exploded; waits for the device."""
        if not self._recent:
            return
        means = torch.stack([_mean(losses) for losses in (self._beginning, *self._recent)])
        beginning, *recent = accelerator.reduce(means, "mean").tolist()
        if self.first is None:
            self.first = self.lowest = beginning
        if self._exceeds(sum(recent) / len(recent)):
            raise ExplodedError(
                f"train/{self.name} exploded to {sum(recent) / len(recent):.4g} (at its lowest "
                f"{self.lowest:.4g}, before training {self.first:.4g})"
            )

    def has_jumped(self) -> bool:
        """Whether the loss of the last step alone, in this process, is as high or not finite."""
        loss = _mean(self._recent[-1]).item()
        return not math.isfinite(loss) or self._exceeds(loss)

    def evaluated(self, mean: float) -> None:
        """Take the mean over the steps since the last evaluation."""
        self.lowest = min(self.lowest, mean)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"first_loss": self.first, "lowest_loss": self.lowest}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up a state; one of an earlier version does not know the first loss."""
        self.first = state.get("first_loss", math.inf)
        self.lowest = state.get("lowest_loss", math.inf)

    def _exceeds(self, loss: float) -> bool:
        first = math.inf if self.first is None else self.first
        return loss > max(_ABOVE_FIRST * first, _ABOVE_LOWEST * self.lowest)


def _mean(losses: list[Tensor]) -> Tensor:
    return torch.stack(losses).double().mean()


def likely_cause(cfg: TrainerConfig, device: torch.device, previous_rate: float | None) -> str:
    """What in the settings makes a training diverge, as part of an error's line.

    Args:
        previous_rate: peak of the learning rate before the run was resumed, if it was.
    """
    signs = []
    if previous_rate is not None and previous_rate < cfg.learning_rate:
        signs.append(f"raised from {previous_rate:g}")
    if not cfg.lr_scheduler_kwargs.get("nb_warmup_steps"):
        signs.append("without a warm-up")
    if not cfg.clip_grad:
        signs.append("gradients not clipped")
    if uses_bf16(cfg.arithmetic, device):
        signs.append("in bfloat16")
    particulars = f" ({', '.join(signs)})" if signs else ""
    return f"likely cause: {cfg.section}.learning_rate = {cfg.learning_rate:g}{particulars}"


def remedies(cfg: TrainerConfig) -> str:
    """What to change in the settings, as part of an error's line."""
    changes = [f"lower {cfg.section}.learning_rate"]
    if not cfg.clip_grad:
        changes.append(f"set {cfg.section}.clip_grad")
    if cfg.arithmetic != "fp32":
        changes.append("add --no-amp")
    return " or ".join(filter(None, (", ".join(changes[:-1]), changes[-1])))
