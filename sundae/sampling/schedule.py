"""How a value goes from the first step to the last, and all values that do: the schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sundae.config.sections import CurveName, StrategyName


def curve(name: CurveName, start: float, end: float, progress: float) -> float:
    """A value on its way from `start` to `end`.

    Args:
        name: 'linear'; 'cosine', half a wave, slow at both ends; or 'constant', which stays at the
            start whatever the end.
        progress: in [0, 1].
    """
    if name == "constant":
        return start
    share = progress if name == "linear" else (1 - math.cos(math.pi * progress)) / 2
    return start + (end - start) * share


@dataclass(frozen=True)
class Schedule:
    """How a sample is refined.

    Attributes:
        steps: refinement steps at most, at least 1.
        temperature, end_temperature: of the draws in the first and in the last step, at least 0.
        sample_proportion, end_sample_proportion: share of tokens that take their fresh draw in the
            first and in the last step, in [0, 1].
        min_steps: steps before a sample may be called done.
        early_stop: stop a sample when, after `min_steps`, every token that may change has been
            offered a fresh value since the sample last changed and has kept its own.
        strategy: which tokens take their fresh draw; see `sundae.sampling.strategies`.
        temperature_curve, proportion_curve, guidance_curve: the way from first to last step.
        guidance, end_guidance: weight of the class in the first and in the last step, at least 0;
            1 is the network's own prediction, more exaggerates what the class adds to it.
        top_k: draw among this many most likely codes; 0 for all.
        top_p: draw among the most likely codes that make up this probability, in (0, 1].
        choice_temperature: randomness of the choice of the strategy 'confidence' in the first step;
            falls evenly to nothing.
    """

    steps: int
    temperature: float = 1.0
    end_temperature: float = 1.0
    sample_proportion: float = 1.0
    end_sample_proportion: float = 1.0
    min_steps: int = 0
    early_stop: bool = True
    strategy: StrategyName = "random"
    temperature_curve: CurveName = "linear"
    proportion_curve: CurveName = "linear"
    guidance: float = 1.0
    end_guidance: float = 1.0
    guidance_curve: CurveName = "linear"
    top_k: int = 0
    top_p: float = 1.0
    choice_temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")

    def temperature_at(self, step: int) -> float:
        """Temperature of step 0 .. steps-1."""
        return self._at(self.temperature_curve, self.temperature, self.end_temperature, step)

    def proportion_at(self, step: int) -> float:
        """Update proportion of step 0 .. steps-1."""
        start, end = self.sample_proportion, self.end_sample_proportion
        return self._at(self.proportion_curve, start, end, step)

    def guidance_at(self, step: int) -> float:
        """Guidance of step 0 .. steps-1."""
        return self._at(self.guidance_curve, self.guidance, self.end_guidance, step)

    def choice_temperature_at(self, step: int) -> float:
        """Choice temperature of step 0 .. steps-1; it would be 0 one step later."""
        return self.choice_temperature * (1 - step / self.steps)

    def _at(self, name: CurveName, start: float, end: float, step: int) -> float:
        """The curve meets the start in the first step and the end in the last."""
        return curve(name, start, end, step / max(1, self.steps - 1))
