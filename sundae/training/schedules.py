"""Learning-rate schedules under ptpt's names, as pure functions of the step.

Their names and parameters are declared, and checked, in `sundae.config.sections`.

(A `torch.optim.lr_scheduler.LambdaLR` would add its own counter to the state of a run, which a
checkpoint of an earlier version does not hold.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

# optimiser steps done -> multiple of the learning rate
LRLambda = Callable[[int], float]

_WARMUP = "_with_warmup"


def make_lr_lambda(name: str, kwargs: Mapping[str, Any], learning_rate: float) -> LRLambda:
    """The multiple of the learning rate as a function of the optimiser steps done.

    Args:
        name: `trainer.lr_scheduler_name`.
        kwargs: nb_warmup_steps, nb_training_steps, nb_cycles, lr_end, power, as the name takes.
        learning_rate: the peak; `polynomial` ends at the absolute rate `lr_end`.
    """
    kwargs = dict(kwargs)
    warmup = kwargs.pop("nb_warmup_steps", 0) if name.endswith(_WARMUP) else 0
    decay = _decay(name.removesuffix(_WARMUP), kwargs, warmup, learning_rate)
    return lambda step: step / max(1, warmup) if step < warmup else decay(step)


def _decay(name: str, kwargs: dict[str, Any], warmup: int, learning_rate: float) -> LRLambda:
    """What follows the warm-up. As in ptpt, a plain cosine counts its steps from the very start."""
    if name == "constant":
        return lambda step: 1.0
    total = kwargs["nb_training_steps"]
    span = max(1, total - warmup)

    def progress(step: int) -> float:
        return (step - warmup) / span

    if name == "linear":
        return lambda step: max(0.0, 1 - progress(step))
    if name == "cosine":
        cycles = kwargs.get("nb_cycles", 0.5)
        return lambda step: 0.5 * (1 + math.cos(2 * math.pi * cycles * step / total))
    if name == "cosine_with_restarts":
        cycles = kwargs.get("nb_cycles", 1)
        return lambda step: (
            0.5 * (1 + math.cos(math.pi * (cycles * progress(step) % 1)))
            if progress(step) < 1
            else 0.0
        )
    assert name == "polynomial", name
    end, power = kwargs.get("lr_end", 1e-7) / learning_rate, kwargs.get("power", 1.0)
    return lambda step: (1 - end) * max(0.0, 1 - progress(step)) ** power + end
