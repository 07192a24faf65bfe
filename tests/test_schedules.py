"""ptpt's vocabulary: schedules agree with it number for number, hooks have its names."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from sundae.training.callbacks import Callbacks, CallbackType

from sundae.training.schedules import learning_rate_factor

RATE = 3e-3
STEPS = {"nb_training_steps": 40}
WARM = {"nb_warmup_steps": 8}


@pytest.fixture(scope="module", autouse=True)
def root_log_level() -> Iterator[None]:
    """Importing ptpt opens the root logger to everything."""
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("constant", {}),
        ("constant_with_warmup", WARM),
        ("constant_with_warmup", {"nb_warmup_steps": 0}),
        ("linear", STEPS),
        ("linear_with_warmup", STEPS | WARM),
        ("cosine", STEPS),
        ("cosine", STEPS | {"nb_cycles": 1.5}),
        ("cosine_with_warmup", STEPS | WARM),
        ("cosine_with_restarts_with_warmup", STEPS | WARM),
        ("cosine_with_restarts_with_warmup", STEPS | WARM | {"nb_cycles": 3}),
        ("polynomial", STEPS),
        ("polynomial", STEPS | {"power": 2.5, "lr_end": 1e-4}),
        ("polynomial_with_warmup", STEPS | WARM | {"power": 0.5, "lr_end": 1e-4}),
    ],
)
def test_rates_are_those_of_ptpt(name: str, kwargs: dict[str, Any]) -> None:
    get_scheduler = pytest.importorskip("ptpt.scheduling").get_scheduler
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=RATE)
    scheduler = get_scheduler(name, optimizer, **kwargs)
    factor = learning_rate_factor(name, kwargs, RATE)
    for step in range(60):  # 20 beyond the end
        assert RATE * factor(step) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12), step
        optimizer.step()
        scheduler.step()


def test_warm_up_rises_from_zero_and_meets_what_follows_it() -> None:
    factor = learning_rate_factor("linear_with_warmup", STEPS | WARM, RATE)
    assert [factor(step) for step in (0, 4, 8, 24, 40)] == [0, 0.5, 1, 0.5, 0]


def test_hooks_have_the_names_of_ptpt() -> None:
    reference = pytest.importorskip("ptpt.callbacks").CallbackType
    assert set(CallbackType.__members__) == set(reference.__members__)


@pytest.mark.parametrize("frequency", [1, 3])
def test_a_hook_is_called_at_every_nth_occurrence_as_in_ptpt(frequency: int) -> None:
    counter = pytest.importorskip("ptpt.callbacks").CallbackCounter(frequency)
    expected = [step for step in range(10) if counter.check()]
    callbacks, called = Callbacks(), []
    callbacks.register(CallbackType.ParameterUpdate, called.append, frequency)
    for step in range(10):
        callbacks.fire(CallbackType.TrainStep, "another moment")
        callbacks.fire(CallbackType.ParameterUpdate, step)
    assert called == expected


def test_hooks_of_one_moment_are_called_in_their_order_with_the_trainer() -> None:
    callbacks, called = Callbacks(), []
    callbacks.register(CallbackType.Start, lambda trainer: called.append(("first", trainer)))
    callbacks.register(CallbackType.Start, lambda trainer: called.append(("second", trainer)))
    callbacks.fire(CallbackType.Start, "trainer")
    assert called == [("first", "trainer"), ("second", "trainer")]
