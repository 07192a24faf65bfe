"""The comparison of networks: equal budgets, fair seeds, and what it says when data is missing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Ended, write_run_file

from benchmarks import networks
from sundae.config.run_file import load_config

SCHEDULE = {
    "trainer.lr_scheduler_name": "cosine_with_warmup",
    "trainer.lr_scheduler_kwargs": {"nb_warmup_steps": 100, "nb_training_steps": 800},
}


@pytest.fixture
def files(tiny_data: Path, tmp_path: Path) -> Callable[..., list[Path]]:
    """files({"net.dim": 4}) -> the tiny run file and one with those changes, both with warm-up."""

    def make(changes: dict[str, Any]) -> list[Path]:
        folders = [tmp_path / name for name in ("wide", "narrow")]
        for folder in folders:
            folder.mkdir()
        values = (SCHEDULE, SCHEDULE | changes)
        return [write_run_file(f, tiny_data, v) for f, v in zip(folders, values)]

    return make


NARROW = {"net.dims": [4, 8]}


def test_every_run_is_in_the_table_and_costs_what_it_should(
    files: Callable[..., list[Path]], script: Callable[..., Ended], tmp_path: Path
) -> None:
    both, out = files(NARROW), tmp_path / "out" / "networks.json"
    flags = ["--max-steps", 4, "--seeds", 0, 1, "--nb-samples", 8, "--steps", 2, "--equal-flops"]
    ended = script("networks", *both, *flags, "--json", out)
    assert ended.code == 0, ended.err
    found = json.loads(out.read_text())
    wide, narrow, longer = found["results"][:3]
    assert [row["seed"] for row in found["results"]] == [0, 0, 0, 1, 1, 1]
    assert wide["steps"] == narrow["steps"] == 4 < longer["steps"]
    assert narrow["gflop"] < wide["gflop"]
    assert longer["steps"] * narrow["gflop"] == pytest.approx(
        4 * wide["gflop"], abs=narrow["gflop"] / 2
    )
    for row in found["results"]:
        assert {"loss", "accuracy", "seconds", "frechet@2", "classified@3"} <= row.keys()
        assert row["frechet@3"] > 0
        assert 0 <= row["classified@2"] <= 1
    assert found["machine"]["date"]
    assert found["configs"].keys() == {str(path) for path in both}
    lines = ended.out.splitlines()
    assert [line.split()[:2] for line in lines[2:5]] == [
        [row["network"], str(row["steps"])] for row in (wide, narrow, longer)
    ]
    assert "±" in lines[2]
    assert not list(tmp_path.rglob("exp"))  # nothing of the trainings is kept


def test_a_run_does_not_depend_on_those_before_it(
    files: Callable[..., list[Path]], script: Callable[..., Ended], tmp_path: Path
) -> None:
    both, out = files(NARROW), tmp_path / "out.json"
    rows = []
    for chosen in (both, both[1:]):
        ended = script("networks", *chosen, "--seeds", 3, "--nb-samples", 4, "--json", out)
        assert ended.code == 0, ended.err
        rows.append(json.loads(out.read_text())["results"][-1] | {"seconds": 0})
    assert rows[0] == rows[1]


def test_the_schedule_is_stretched_over_the_steps(files: Callable[..., list[Path]]) -> None:
    run = networks.Run.open(files({})[0], [])
    for steps, warm_up in ((8, 2), (400, 100), (1600, 100)):
        trainer = run.lasting(steps).cfg.trainer
        assert trainer.max_steps == steps
        assert trainer.lr_scheduler_kwargs == {
            "nb_warmup_steps": warm_up, "nb_training_steps": steps,
        }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "key"),
    [({"trainer.batch_size": 4}, "trainer.batch_size"), ({"unroll_steps": 3}, "unroll_steps")],
)
def test_run_files_of_different_tasks_are_refused(
    changes: dict[str, Any],
    key: str,
    files: Callable[..., list[Path]],
    script: Callable[..., Ended],
) -> None:
    assert f"differ in {key}" in script("networks", *files(changes)).refusal()


def test_missing_data_is_answered_with_the_command_that_makes_it(
    files: Callable[..., list[Path]], script: Callable[..., Ended], tmp_path: Path
) -> None:
    (path, _), root = files({}), tmp_path / "digits"
    sides = [f"--set=data.{side}_root={root / side}" for side in ("train", "eval")]
    refusal = script("networks", path, *sides).refusal()
    assert f"python generate-discrete-mnist.py digits {root}" in refusal


def test_missing_latents_too(script: Callable[..., Ended], tmp_path: Path) -> None:
    path = Path(__file__).parents[1] / "config" / "emoji" / "64.toml"
    assert load_config(path).vqgan is not None
    root = tmp_path / "latents"
    refusal = script("networks", path, f"--set=data.root={root}").refusal()
    assert "python generate-latents.py --ckpt-path" in refusal
    assert f"--latents-out {root} --use-class" in refusal
