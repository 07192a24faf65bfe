"""Schedules, against values by hand."""

from typing import get_args

import pytest
import torch

from sundae.config.sections import CurveName
from sundae.sampling.schedule import Schedule, curve


def test_every_curve_by_hand() -> None:
    progress = [0.0, 0.25, 0.5, 1.0]
    by_hand = {
        "linear": [2.0, 1.75, 1.5, 1.0],
        "cosine": [2.0, 1.853553, 1.5, 1.0],  # a quarter of the way: (2 - 2**0.5) / 4
        "constant": [2.0, 2.0, 2.0, 2.0],
    }
    assert by_hand.keys() == set(get_args(CurveName))
    for name, values in by_hand.items():
        assert [curve(name, 2.0, 1.0, p) for p in progress] == pytest.approx(values)  # type: ignore


@pytest.mark.parametrize("steps", [2, 7, 100])
def test_the_ramps_are_linear_unless_told_and_meet_both_ends(steps: int) -> None:
    schedule = Schedule(steps, 1.2, 0.4, 0.9, 0.1, guidance=1.0, end_guidance=4.0)
    temperatures = [schedule.temperature_at(step) for step in range(steps)]
    assert temperatures == pytest.approx(torch.linspace(1.2, 0.4, steps).tolist())
    proportions = [schedule.proportion_at(step) for step in range(steps)]
    assert proportions == pytest.approx(torch.linspace(0.9, 0.1, steps).tolist())
    guidances = [schedule.guidance_at(step) for step in range(steps)]
    assert guidances == pytest.approx(torch.linspace(1.0, 4.0, steps).tolist())


def test_each_value_follows_the_curve_of_its_own() -> None:
    ends = {"guidance": 1.0, "end_guidance": 3.0}
    schedule = Schedule(
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
    schedule = Schedule(1, 1.2, 0.4, 0.9, 0.1, guidance=2.0)
    assert (schedule.temperature_at(0), schedule.proportion_at(0)) == (1.2, 0.9)
    assert schedule.guidance_at(0) == 2.0


def test_the_noise_of_a_choice_fades_but_is_there_in_every_step() -> None:
    schedule = Schedule(4, choice_temperature=2.0)
    assert [schedule.choice_temperature_at(step) for step in range(4)] == [2.0, 1.5, 1.0, 0.5]
