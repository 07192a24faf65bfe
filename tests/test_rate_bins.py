"""Metrics by corruption rate: which bin a sample counts in, and what a known denoiser gives."""

import math
from collections.abc import Callable

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from sundae.config.run_file import RunConfig
from sundae.prior.network import build_network
from sundae.training.metrics import Means
from sundae.training.prior import PriorTask
from sundae.training.rate_bins import by_rate

BINS = ("0.0-0.2", "0.2-0.4", "0.4-0.6", "0.6-0.8", "0.8-1.0")


class Copies(nn.Module):
    """Certain that every token is right as it stands."""

    def forward(self, tokens: Tensor, classes: Tensor | None) -> Tensor:
        return 50.0 * nn.functional.one_hot(tokens, 5).float()


def test_a_sample_counts_in_the_bin_of_its_rate() -> None:
    values = torch.tensor([1.0, 2.0, 4.0, 8.0, math.nan])
    sums = by_rate("loss", values, torch.tensor([0.0, 0.19, 0.2, 1.0, 0.7]))
    assert list(sums) == [f"loss_rate_{part}" for part in BINS]
    totals = [part.total.item() for part in sums.values()]
    assert totals == pytest.approx([3.0, 4.0, 0.0, math.nan, 8.0], nan_ok=True)
    assert [part.weight.item() for part in sums.values()] == [2, 1, 0, 1, 1]  # type: ignore


def evaluate(config: Callable[..., RunConfig], net: nn.Module, rows: int) -> dict[str, float]:
    """The metrics of batches of 16 images of 16 tokens, random ones of 5."""
    means, generator = Means(), torch.Generator().manual_seed(0)
    task = PriorTask(config())
    with torch.no_grad():
        for _ in range(rows // 16):
            tokens = torch.randint(5, (16, 16), generator=generator)
            batch = {"tokens": tokens, "classes": torch.zeros(16, dtype=torch.int64)}
            for _, metrics in task.losses(net.eval(), batch, generator):
                means.add(metrics, 16)
    return means.read(Accelerator(cpu=True))


def test_a_denoiser_that_changes_nothing_is_right_as_far_as_tokens_were_left(
    config: Callable[..., RunConfig],
) -> None:
    row = evaluate(config, Copies(), 4096)
    for number, part in enumerate(BINS):
        wrong = (number + 0.5) / 5 * 4 / 5  # one replacement in five equals what it replaces
        assert row[f"accuracy_rate_{part}"] == pytest.approx(1 - wrong, abs=0.02)
        assert row[f"loss_rate_{part}"] == pytest.approx(50 * wrong, abs=1.0)
    for name in ("accuracy", "loss"):  # the bins are of the first step, and as full as each other
        mean = sum(row[f"{name}_rate_{part}"] for part in BINS) / 5
        assert mean == pytest.approx(row[f"{name}_1"], rel=0.01)
    assert row["entropy"] == pytest.approx(0.0, abs=1e-6)


def test_every_bin_has_samples_and_a_guess_has_the_entropy_of_the_vocabulary(
    config: Callable[..., RunConfig],
) -> None:
    class Guesses(nn.Module):
        def forward(self, tokens: Tensor, classes: Tensor | None) -> Tensor:
            return torch.zeros(*tokens.shape, 5)

    row = evaluate(config, Guesses(), 16)
    for name in ("loss_1", "loss_2", "entropy_1", "entropy_2", *(f"loss_rate_{p}" for p in BINS)):
        assert row[name] == pytest.approx(math.log(5))


def test_training_measures_the_objective_alone(config: Callable[..., RunConfig]) -> None:
    cfg = config()
    batch = {"tokens": torch.zeros(4, 16, dtype=torch.int64), "classes": torch.zeros(4).long()}
    steps = PriorTask(cfg).losses(build_network(cfg), batch, torch.Generator())
    names = {name for _, metrics in steps for name in metrics}
    assert names == {"loss", "loss_1", "loss_2", "accuracy", "accuracy_1", "accuracy_2"}
