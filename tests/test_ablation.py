"""The ablation: equal terms for all variants, nothing done twice, and what its tables say."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ablation
import ablation_jobs
import pytest
import tomli_w
import torch
from ablation_jobs import Command, Run, Runner, Work, evaluation_words, evaluations, training
from ablation_plan import EVALUATIONS, Plan, length_overrides, read_plan, steps_for
from ablation_report import LOSS, over_seeds, reached, read_curves, write_results
from ablation_train import _GraphExperiment, measure_rate
from accelerate import Accelerator
from graph_trainer import GraphTrainer

from sundae.codec.interface import open_codec
from sundae.common.errors import UserError
from sundae.config.run_file import RunConfig, load_config
from sundae.prior.run import list_checkpoints
from sundae.training.experiment import build_trainer
from sundae.training.logbook import Logbook
from sundae.training.prior import PriorExperiment
from sundae.training.trainer import Trainer
from utils import run_cli

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[1]
PLANS = sorted((ROOT / "benchmarks" / "ablation").glob("*.toml"))


@pytest.fixture
def plan_file(run_file: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """plan_file(steps=8) -> a plan of two variants on the tiny run file, with those changes."""

    def make(**changes: Any) -> Path:
        values = {
            "base": str(run_file()),
            "seeds": [0, 1],
            "steps": 8,
            "variants": [{"name": "base"}, {"name": "slow", "set": ["trainer.learning_rate=1e-4"]}],
        }
        path, values = tmp_path / "plan.toml", values | changes
        path.write_text(
            tomli_w.dumps({k: v for k, v in values.items() if v is not None}), encoding="utf-8"
        )
        return path

    return make


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """call(plan, "--out", out) -> exit code, stdout, stderr; trains in this process."""
    monkeypatch.setattr(ablation_jobs, "measure_rate", lambda cfg, device: 4.0)
    monkeypatch.setattr(ablation.signal, "signal", lambda *_: None)
    monkeypatch.setattr("sundae.training.logbook.draw_curves", lambda *_: None)  # most of the time

    def run(*words: object) -> tuple[int, str, str]:
        flags = ["--in-process", "--device", "cpu"]
        monkeypatch.setattr(sys, "argv", ["ablation.py", *map(str, words), *flags])
        code = 0
        try:
            run_cli(ablation.main)
        except SystemExit as end:
            code = int(end.code or 0)
        return code, *capsys.readouterr()

    return run


# -- plans ----------------------------------------------------------------------------------------


def test_a_variant_has_the_settings_of_all_that_it_builds_on_and_its_own_win(
    plan_file: Callable[..., Path],
) -> None:
    variants = [
        {"name": "c", "base": "b", "set": ["net.dim=32"]},
        {"name": "b", "base": "a", "set": ["trainer.learning_rate=0.5", "net.dim=24"]},
        {"name": "a", "set": ["trainer.learning_rate=0.25"]},
    ]
    plan = read_plan(plan_file(variants=variants, common={"set": ["trainer.batch_size=4"]}))
    cfg = plan.config(plan.variants[0])
    assert (cfg.trainer.batch_size, cfg.trainer.learning_rate, cfg.net.dim) == (4, 0.5, 32)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"seconds": 3}, "either steps or seconds"),
        ({"steps": None}, "either steps or seconds"),
        ({"steps": 0}, "steps: expected an integer"),
        ({"seeds": [0, 0]}, "seeds: expected a list of different integers"),
        ({"seed": [0]}, "seed: not a key of the plan; did you mean 'seeds'"),
        ({"variants": [{"name": "a"}, {"name": "a"}]}, "names that differ"),
        ({"variants": [{"name": "../a"}]}, "variants.name: expected letters"),
        ({"variants": [{"name": "a", "base": "a"}]}, "variant a: base: expected another variant"),
        ({"variants": [{"name": "a", "sets": []}]}, "sets: not a key of [[variants]]"),
        ({"variants": [{"name": "a", "set": "net.dim=8"}]}, "variant a: set: expected a list"),
        ({"variants": [{"name": "a", "samplers": [["net.dim=8"]]}]}, "keys of [sampling]"),
    ],
)
def test_a_wrong_plan_is_refused_in_one_line(
    plan_file: Callable[..., Path], changes: dict[str, Any], expected: str
) -> None:
    with pytest.raises(UserError) as refusal:
        read_plan(plan_file(**changes))
    assert expected in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_only_names_a_variant_of_the_plan(plan_file: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="--only slo: no such variant; did you mean 'slow'"):
        read_plan(plan_file(), ["slo"])


@pytest.mark.parametrize("steps", [8, 100, 810])
def test_the_schedule_ends_with_the_training_which_is_evaluated_often(
    run_file: Callable[..., Path], steps: int
) -> None:
    schedule = {
        "trainer.lr_scheduler_name": "cosine_with_warmup",
        "trainer.lr_scheduler_kwargs": {"nb_warmup_steps": 60, "nb_training_steps": 800},
        "trainer.mini_batch_size": 4,  # half a batch
    }
    path = run_file(schedule)
    cfg = load_config(path, length_overrides(load_config(path), steps)).trainer
    kwargs = cfg.lr_scheduler_kwargs
    assert (cfg.max_steps, kwargs["nb_training_steps"]) == (steps, steps)
    assert kwargs["nb_warmup_steps"] == min(60, steps // 4)
    assert min(steps, EVALUATIONS) <= 2 * steps / cfg.nb_batches[0] <= 1.1 * EVALUATIONS
    assert cfg.checkpoint_frequency % (cfg.nb_batches[0] // 2) == 0


def test_seconds_become_steps_by_the_measured_speed() -> None:
    assert steps_for(60.0, 2.5) == 150
    assert steps_for(0.1, 1.0) == 20


def test_the_measured_speed_is_that_of_training_steps(
    config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sundae.training.trainer import Trainer

    clock = [0.0]
    monkeypatch.setattr("ablation_train.time.perf_counter", lambda: clock[0])

    def update(trainer: Trainer, batches: object) -> None:
        clock[0] += 0.125

    monkeypatch.setattr(Trainer, "_update", update)
    assert measure_rate(config(), CPU) == 8.0


# -- whole calls ----------------------------------------------------------------------------------


def test_all_runs_are_trained_once_and_tabulated(
    plan_file: Callable[..., Path],
    call: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    code, said, _ = call(plan_file(), "--out", out)
    assert code == 0
    assert "table.md" in said
    base, slow = json.loads((out / "results.json").read_text())["variants"]
    for variant in (base, slow):
        curves = [read_curves(out / "runs" / f"{variant['name']}-{n}" / "curves.csv")
                  for n in (0, 1)]  # fmt: skip
        last = [rows[-1] for rows in curves]
        loss = variant["numbers"]["loss_1"]
        assert loss["values"] == [row[LOSS] for row in last]
        assert loss["mean"] == pytest.approx(sum(loss["values"]) / 2)
        assert loss["spread"] == pytest.approx(abs(loss["values"][0] - loss["values"][1]) / 2)
        assert [row["step"] for row in last] == [8.0, 8.0]
        assert sum(name.startswith("loss_rate_") for name in variant["numbers"]) == 5
    assert base["numbers"]["steps_ratio"]["values"] == [1.0, 1.0]
    assert "steps_ratio" not in slow["numbers"]  # a hundredth of the rate never gets there
    assert (out / "curves.png").exists()

    monkeypatch.setattr(ablation_jobs, "train_in_process", lambda *_: pytest.fail("trained twice"))
    assert call(plan_file(), "--out", out)[0] == 0


def test_a_variant_that_fails_is_reported_and_stops_no_other(
    plan_file: Callable[..., Path], call: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    variants = [{"name": "base"}, {"name": "bad", "set": ["data.vocab_size=6"]}, {"name": "last"}]
    plan, out = plan_file(variants=variants, seeds=[0], steps=2), tmp_path / "out"
    code, said, _ = call(plan, "--out", out)
    assert code == 1
    assert "failed: bad" in said
    entries = {v["name"]: v for v in json.loads((out / "results.json").read_text())["variants"]}
    assert [entries[name]["seeds"] for name in ("base", "bad", "last")] == [[0], [], [0]]
    assert "vocab_size" in (out / "table.md").read_text()
    assert call(plan, "--out", out)[0] == 1  # a second call goes through the same


def test_a_wrong_key_of_a_variant_ends_it_before_any_work(
    plan_file: Callable[..., Path], call: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    variants = [{"name": "base"}, {"name": "bad", "set": ["net.dimm=8"]}]
    code, _, said = call(plan_file(variants=variants), "--out", tmp_path / "out")
    assert code == 2
    assert "variant bad: " in said and "net.dimm" in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_finished_variant_that_changed_is_refused_or_trained_anew(
    plan_file: Callable[..., Path],
    call: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    assert call(plan_file(steps=2), "--out", out)[0] == 0
    untouched = (out / "runs" / "base-0" / "curves.csv").stat().st_mtime_ns
    variants = [{"name": "base"}, {"name": "slow", "set": ["trainer.learning_rate=2e-4"]}]
    code, _, error = call(plan_file(steps=2, variants=variants), "--out", out)
    assert code == 2
    assert error.count("\n") == 1
    assert "variant slow" in error and "trainer.learning_rate was 0.0001 and is 0.0002" in error
    assert call(plan_file(steps=2, variants=variants), "--out", out, "--overwrite")[0] == 0
    assert json.loads((out / "runs" / "slow-1.json").read_text())["settings"]["config"]["trainer"][
        "learning_rate"
    ] == pytest.approx(2e-4)
    assert (out / "runs" / "base-0" / "curves.csv").stat().st_mtime_ns == untouched


def test_nothing_is_started_after_the_limit(
    plan_file: Callable[..., Path], call: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    code, said, _ = call(plan_file(), "--out", tmp_path / "out", "--limit-seconds", -1)
    assert (code, "4 of 4 runs are not trained" in said) == (0, True)


# -- processes ------------------------------------------------------------------------------------


def tiny_run(plan: Path, out: Path) -> Run:
    read = read_plan(plan)
    return Run(read, read.variants[0], 0, out)


def commands(work: Work, codes: list[int]) -> list[Command]:
    """The processes of a work, which end with those exit codes."""
    found, code = [], None
    try:
        while True:
            found.append(next(work) if code is None else work.send(code))
            code = codes.pop(0)
    except StopIteration:
        return found


def test_an_interrupted_training_is_resumed(
    plan_file: Callable[..., Path], call: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    out, plan = tmp_path / "out", plan_file(seeds=[0])
    call(plan, "--out", out, "--only", "base")
    run = tiny_run(plan, out)
    assert run.checkpoint is not None
    assert commands(training(run, CPU, in_process=False), []) == []
    run.write_state(steps=1000)  # as if it had been stopped at its last checkpoint
    [command] = commands(training(run, CPU, in_process=False), [0])
    assert command.words[1:3] == ("--resume", str(run.folder))
    assert list_checkpoints(run.folder)


def test_a_process_that_fails_leaves_its_last_line(
    plan_file: Callable[..., Path], tmp_path: Path
) -> None:
    run = tiny_run(plan_file(), tmp_path / "out")
    run.rate_file.parent.mkdir(parents=True)
    run.rate_file.write_text('{"steps_per_second": 4}')
    log = run.folder.with_name(f"{run.name}.log")
    log.parent.mkdir(parents=True)
    log.write_text("step 3\nerror: the loss is NaN\n")
    [command] = commands(training(run, CPU, in_process=False), [2])
    assert command.log == log
    assert {"--seed", "--run-dir", "trainer.max_steps=8", "--no-cuda"} <= set(command.words)
    assert run.state["error"] == "the loss is NaN"


def process(tmp_path: Path, code: str, ends: list[int]) -> Work:
    ends.append((yield Command(("-c", code), tmp_path / "log.txt")))


def test_the_runner_starts_processes_and_sends_their_exit_codes(tmp_path: Path) -> None:
    ends, count = list[int](), list[int]()
    works = [process(tmp_path, f"import sys; sys.exit({code})", ends) for code in (3, 3)]
    Runner(2, time.monotonic() + 60, lambda: False)(works, lambda: count.append(1))
    assert (ends, len(count)) == ([3, 3], 2)


def test_an_interrupted_runner_ends_its_processes_with_sigterm(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    code = ("import signal, sys, time; signal.signal(15, lambda *_: (print('saved'), sys.exit()));"
            " print('begun', flush=True); time.sleep(60)")  # fmt: skip
    runner = Runner(1, time.monotonic() + 60, lambda: path.exists() and "begun" in path.read_text())
    with pytest.raises(KeyboardInterrupt):
        runner([process(tmp_path, code, [])], lambda: None)
    assert path.read_text() == "begun\nsaved\n"


# -- figures and tables ---------------------------------------------------------------------------


def test_flags_of_the_evaluation_are_those_of_the_plan() -> None:
    flags = {"reference": "data/x", "figures": ["distance", "classes"], "nb-samples": 9,
             "raw-weights": True, "cuda-vqgan": False}  # fmt: skip
    words = evaluation_words(flags, Path("run"), ["sampling.steps=4"], 1)
    assert (
        words
        == (
            "run data/x --figures distance classes --nb-samples 9 --raw-weights --set "
            "sampling.steps=4 --seed 1"
        ).split()
    )


def test_figures_stand_in_the_table_a_line_a_sampler(
    plan_file: Callable[..., Path], call: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    variants = [{"name": "base", "samplers": [[], ["sampling.steps=2"]]}]
    plan = plan_file(variants=variants, evaluate={"nb-samples": 2}, steps=2)
    call(plan, "--out", out, "--skip-evaluation")
    read = read_plan(plan)
    for seed in (0, 1):
        run = Run(read, read.variants[0], seed, out)
        for number in (0, 1):
            content = {
                "figures": {"samples": {"frechet_distance": 10 * number + seed, "coverage": 0.5}},
                "protocol": {"features": {"name": "pixels"}},
            }
            folder = run.figures(number)
            folder.mkdir(parents=True)
            (folder / "evaluation.json").write_text(json.dumps(content))
        assert len(commands(evaluations(run, CPU), [0, 0])) == 2
        assert commands(evaluations(run, CPU), []) == []
    write_results(read, out)
    lines = (out / "table.md").read_text().splitlines()
    head = next(line for line in lines if "FD (pixels)" in line)
    rows = lines[lines.index(head) + 2 :][:2]
    cells = [[cell.strip() for cell in row.split("|")[1:4]] for row in rows]
    assert cells == [["base", "0.5 ±0.5", "0.5"], ["base steps=2", "10.5 ±0.5", "0.5"]]


def test_the_step_that_reaches_a_loss_lies_between_evaluations() -> None:
    rows = [{"step": 10.0, LOSS: 4.0}, {"step": 20.0, LOSS: 2.0}, {"step": 30.0, LOSS: 3.0}]
    assert reached(rows, 2.5) == pytest.approx(17.5)
    assert reached(rows, 5.0) == 10.0
    assert reached(rows, 1.0) is None


def test_a_ratio_has_a_mean_only_where_every_seed_has_it() -> None:
    found = over_seeds([{"loss_1": 1.0, "steps_ratio": 0.5}, {"loss_1": 3.0}])
    assert found == {"loss_1": {"mean": 2.0, "spread": 1.0, "values": [1.0, 3.0]}}


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.name)
def test_shipped_plans_can_be_read_and_their_base_is_valid(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    plan = read_plan(path)
    assert isinstance(plan, Plan) and len(plan.seeds) >= 2
    base, *others = plan.variants
    muon = next(variant for variant in others if variant.name == "muon")
    assert plan.config(base).trainer.optimizer_name == "adamw"
    assert plan.config(muon).trainer.optimizer_name == "muon"


@pytest.mark.parametrize("name", ["ablation.py", "ablation_train.py"])
def test_the_scripts_find_the_package_by_themselves(name: str, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / name), "--help"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "usage" in ended.stdout


# -- CUDA graphs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_the_step_of_a_graph_learns_as_the_trainers_does(
    config: Callable[..., RunConfig], optimizer: str
) -> None:
    """Called without a graph, as on a CPU: the same step, with other random numbers."""
    cfg = config(
        {
            "trainer.optimizer_name": optimizer,
            "trainer.learning_rate": 0.02,
            "trainer.lr_scheduler_name": "linear_with_warmup",
            "trainer.lr_scheduler_kwargs": {"nb_warmup_steps": 5, "nb_training_steps": 60},
            "trainer.max_steps": 60,
            "trainer.clip_grad": True,
        }
    )
    losses = []
    for kind, experiment in ((Trainer, PriorExperiment), (GraphTrainer, _GraphExperiment)):
        trainer = build_trainer(
            experiment.open(cfg, open_codec(cfg).identity, None),
            Accelerator(cpu=True, mixed_precision="no"),
            Logbook(None, quiet=True),
            0,
            kind,
        )
        start = trainer.evaluate()["loss"]
        trainer.train()
        losses.append(trainer.logbook.rows[-1]["eval/loss"])
        assert losses[-1] < 0.97 * start
        assert trainer.logbook.rows[-1]["train/grad_norm"] > 0
    assert losses[1] == pytest.approx(losses[0], rel=0.1)


def test_the_step_of_a_graph_follows_the_schedule(config: Callable[..., RunConfig]) -> None:
    cfg = config(
        {
            "trainer.lr_scheduler_name": "linear_with_warmup",
            "trainer.lr_scheduler_kwargs": {"nb_warmup_steps": 0, "nb_training_steps": 2},
            "trainer.max_steps": 3,
            "trainer.optimizer_name": "muon",
        }
    )
    trainer = build_trainer(
        _GraphExperiment.open(cfg, open_codec(cfg).identity, None),
        Accelerator(cpu=True, mixed_precision="no"),
        Logbook(None, quiet=True),
        0,
        GraphTrainer,
    )
    batches, moves = trainer.batches.training(0), []
    for _ in range(3):
        before = [p.detach().clone() for p in trainer.state.bare_net.parameters()]
        trainer._update(batches)
        after = trainer.state.bare_net.parameters()
        moves.append(max((a - b).abs().max().item() for a, b in zip(after, before, strict=True)))
    assert moves[0] > moves[1] > moves[2] == 0
