"""A loss that explodes: when it has, what is kept, and what the one line says."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from conftest import Ended

from sundae.config.run_file import RunConfig
from sundae.prior.checkpoint import open_checkpoint
from sundae.prior.run import list_checkpoints
from sundae.training.health import ExplodedError, LossWatch, likely_cause, remedies

CPU = torch.device("cpu")
LOG_VOCAB = math.log(5)  # of the tiny data


@pytest.fixture(autouse=True)
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing them takes longer than the training."""
    monkeypatch.setattr("sundae.training.logbook.draw_curves", lambda rows, path: None)


def watch_of(*losses: float) -> LossWatch:
    watch = LossWatch("loss")
    for loss in losses:
        watch.add([torch.tensor(loss)])
    return watch


@pytest.mark.parametrize(
    ("losses", "lowest", "explodes"),
    [
        ([3.0, 2.9, 2.5], 3.0, False),
        ([3.0, 9.0, 5.0, 3.5], 3.0, False),  # no warm-up: a spike at the start that goes back
        ([3.0] + [0.5] * 9 + [2.9] * 10, 0.5, False),  # noise of single images, or a hard batch
        ([3.0] + [1.0] * 20 + [3.7], 1.0, False),  # one step
        ([3.0] + [1.0] * 20 + [4.0] * 9, 1.0, False),
        ([3.0] + [1.0] * 20 + [4.1] * 9, 1.0, True),
        ([3.0] + [2.5] * 20 + [4.5] * 10, 2.5, False),  # not twice the lowest
        ([3.0] + [2.5] * 20 + [5.5] * 10, 2.5, True),
        ([3.0] + [400.0] * 10, 3.0, True),  # never lower than at the start
    ],
)
def test_a_loss_has_exploded_above_an_untrained_one_and_twice_the_lowest(
    losses: list[float], lowest: float, explodes: bool
) -> None:
    watch = watch_of(losses[0])
    watch.check(Accelerator(cpu=True))
    watch.evaluated(lowest)
    for loss in losses[1:]:
        watch.add([torch.tensor(loss)])
    if explodes:
        with pytest.raises(ExplodedError, match="^train/loss exploded to .* before training 3"):
            watch.check(Accelerator(cpu=True))
    else:
        watch.check(Accelerator(cpu=True))


def test_the_first_loss_is_that_of_the_first_step_however_late_the_first_check() -> None:
    watch = watch_of(3.0, *[1.0] * 30)
    watch.check(Accelerator(cpu=True))
    assert watch.state() == {"first_loss": 3.0, "lowest_loss": 3.0}


def test_a_step_counts_with_the_mean_of_its_losses() -> None:
    watch = LossWatch("loss")
    watch.add([torch.tensor(2.0), torch.tensor(4.0)])
    watch.check(Accelerator(cpu=True))
    assert watch.first == 3.0


def test_a_run_of_an_earlier_version_goes_on_without_a_first_loss() -> None:
    watch = LossWatch("loss")
    watch.restore({})
    watch.add([torch.tensor(1e9)])
    watch.check(Accelerator(cpu=True))
    assert not watch.has_jumped()


def test_the_cause_and_the_remedy_come_from_the_settings(
    config: Callable[..., RunConfig],
) -> None:
    bare = config({"trainer.learning_rate": 0.5}).trainer
    assert likely_cause(bare, CPU, 0.25) == (
        "likely cause: trainer.learning_rate = 0.5 (raised from 0.25, without a warm-up, "
        "gradients not clipped)"
    )
    assert remedies(bare) == "lower trainer.learning_rate or set trainer.clip_grad"
    careful = {
        "trainer.clip_grad": True,
        "trainer.lr_scheduler_name": "constant_with_warmup",
        "trainer.lr_scheduler_kwargs": {"nb_warmup_steps": 5},
    }
    cfg = config(careful).trainer
    assert likely_cause(cfg, CPU, 0.02) == "likely cause: trainer.learning_rate = 0.01"
    assert remedies(cfg) == "lower trainer.learning_rate"
    half = config(careful | {"trainer.use_amp": True, "trainer.precision": "bf16"}).trainer
    assert likely_cause(half, CPU, None).endswith("= 0.01 (in bfloat16)")
    assert remedies(half) == "lower trainer.learning_rate or add --no-amp"


def test_an_absurd_learning_rate_ends_the_run_within_an_evaluation(
    run_file: Callable[..., Path], script: Callable[..., Ended], tmp_path: Path
) -> None:
    """Exit code 2, the last good checkpoint named, there and resumable; no exploded one is left."""
    run = tmp_path / "run"
    changes = {
        "trainer.max_steps": 12,
        "trainer.nb_batches": [12, 1],
        "trainer.checkpoint_frequency": 4,
        "trainer.keep_checkpoints": 1,
        "trainer.checkpoint_best": False,
    }
    path = run_file(changes)
    assert script("train", "--cfg-path", path, "--run-dir", run, "--seed", 0).code == 0
    good = run / "checkpoints" / "step-0000012"
    assert list_checkpoints(run) == [good]
    more = ("--set", "trainer.max_steps=60", "--set", "trainer.checkpoint_frequency=1")
    line = script("train", "--resume", run, *more, "--set", "trainer.learning_rate=1e3").refusal()
    assert "train/loss exploded to " in line
    assert f", before training {LOG_VOCAB:.4g}) at step 1" in line  # of 13 to 19
    assert "likely cause: trainer.learning_rate = 1000 (raised from 0.01, without a wa" in line
    assert "step-0000013 was deleted" in line
    assert line.endswith(f"good checkpoint is {good}: lower trainer.learning_rate or set "
                         f"trainer.clip_grad, and go on with --resume {run}\n")  # fmt: skip
    assert list_checkpoints(run) == [good]
    less = ("--set", "trainer.max_steps=14", "--set", "trainer.learning_rate=0.01")
    assert script("train", "--resume", run, *less).code == 0
    assert open_checkpoint(run, prefer_best=False).info.step == 14
    assert [folder.name for folder in list_checkpoints(run)] == ["step-0000014"]
