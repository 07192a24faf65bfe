"""Schedules agree with those of ptpt number for number."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from sundae.training.schedules import make_lr_lambda

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
    lr_lambda = make_lr_lambda(name, kwargs, RATE)
    for step in range(60):  # 20 beyond the end
        assert RATE * lr_lambda(step) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12), step
        optimizer.step()
        scheduler.step()


def test_warm_up_rises_from_zero_and_meets_what_follows_it() -> None:
    lr_lambda = make_lr_lambda("linear_with_warmup", STEPS | WARM, RATE)
    assert [lr_lambda(step) for step in (0, 4, 8, 24, 40)] == [0, 0.5, 1, 0.5, 0]
