"""[sampling] as the schedule of the loop, against values by hand."""

from collections.abc import Callable
from dataclasses import replace
from typing import get_args

import pytest
import torch
from conftest import make_schedule

from sundae.config.run_file import RunConfig
from sundae.config.sections import CurveName, SamplingConfig, interpolate
from sundae.sampling.strategies import STRATEGIES


def test_every_curve_by_hand() -> None:
    progress = [0.0, 0.25, 0.5, 1.0]
    by_hand = {
        "linear": [2.0, 1.75, 1.5, 1.0],
        "cosine": [2.0, 1.853553, 1.5, 1.0],  # a quarter of the way: (2 - 2**0.5) / 4
        "constant": [2.0, 2.0, 2.0, 2.0],
    }
    assert by_hand.keys() == set(get_args(CurveName))
    for name, values in by_hand.items():
        assert [interpolate(name, 2.0, 1.0, p) for p in progress] == pytest.approx(values)  # type: ignore


@pytest.mark.parametrize("steps", [2, 7, 100])
def test_the_ramps_are_linear_unless_told_and_meet_both_ends(steps: int) -> None:
    schedule = make_schedule(steps, 1.2, 0.4, 0.9, 0.1, guidance=1.0, end_guidance=4.0)
    temperatures = [schedule.temperature_at(step) for step in range(steps)]
    assert temperatures == pytest.approx(torch.linspace(1.2, 0.4, steps).tolist())
    proportions = [schedule.proportion_at(step) for step in range(steps)]
    assert proportions == pytest.approx(torch.linspace(0.9, 0.1, steps).tolist())
    guidances = [schedule.guidance_at(step) for step in range(steps)]
    assert guidances == pytest.approx(torch.linspace(1.0, 4.0, steps).tolist())


def test_each_value_follows_the_curve_of_its_own() -> None:
    ends = {"guidance": 1.0, "end_guidance": 3.0}
    schedule = make_schedule(
        5,
        1.0,
        0.0,
        1.0,
        0.0,
        **ends,  # type: ignore[arg-type]
        temperature_curve="cosine",
        proportion_curve="constant",
        guidance_curve="linear",
    )
    assert schedule.temperature_at(1) == pytest.approx(0.853553)
    assert schedule.proportion_at(4) == 1.0
    assert schedule.guidance_at(1) == 1.5


def test_a_single_step_is_taken_at_the_start_of_the_ramps() -> None:
    schedule = make_schedule(1, 1.2, 0.4, 0.9, 0.1, guidance=2.0)
    assert (schedule.temperature_at(0), schedule.proportion_at(0)) == (1.2, 0.9)
    assert schedule.guidance_at(0) == 2.0


def test_the_noise_of_a_choice_fades_but_is_there_in_every_step() -> None:
    schedule = make_schedule(4, choice_temperature=2.0)
    assert [schedule.choice_temperature_at(step) for step in range(4)] == [2.0, 1.5, 1.0, 0.5]


def test_ramps_end_where_they_begin_unless_told() -> None:
    schedule = SamplingConfig(temperature=0.5, sample_proportion=0.25, guidance=2.0)
    assert schedule.temperature_ramp == (0.5, 0.5)
    assert schedule.proportion_ramp == (0.25, 0.25)
    assert schedule.guidance_ramp == (2.0, 2.0) and schedule.is_guided
    schedule = SamplingConfig(end_temperature=0.0, end_sample_proportion=0.0, end_guidance=1.0)
    assert schedule.temperature_ramp == (1.0, 0.0)
    assert schedule.proportion_ramp == (0.5, 0.0)
    assert schedule.guidance_ramp == (1.0, 1.0) and not schedule.is_guided


def test_a_file_that_says_as_little_as_possible_is_sampled_as_the_paper_does(
    config: Callable[..., RunConfig],
) -> None:
    schedule = config({"sampling": None}).sampling
    assert [schedule.temperature_at(step) for step in (0, 99)] == [1.0, 1.0]
    assert [schedule.proportion_at(step) for step in (0, 99)] == [0.5, 0.5]
    assert (schedule.steps, schedule.resolved_strategy) == (100, "random")
    assert schedule.early_stop and not schedule.is_guided


@pytest.mark.parametrize("steps", [1, 16, 17, 100])
def test_a_strategy_that_is_named_is_taken_whatever_the_steps(steps: int) -> None:
    for name in STRATEGIES:
        assert SamplingConfig(strategy=name, steps=steps).resolved_strategy == name


@pytest.mark.parametrize(
    ("steps", "end", "expected"),
    [
        (1, None, "renoise"),
        (16, None, "renoise"),
        (17, None, "random"),
        (100, None, "random"),
        (16, 0.01, "renoise"),
        (16, 0.0, "random"),  # a last step that does nothing would leave noise behind
    ],
)
def test_without_a_strategy_it_is_chosen_by_the_steps(
    steps: int, end: float | None, expected: str
) -> None:
    schedule = SamplingConfig(steps=steps, end_sample_proportion=end)
    assert schedule.resolved_strategy == expected
    assert replace(schedule, strategy="auto").resolved_strategy == expected
