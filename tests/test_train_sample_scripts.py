"""train.py and sample.py as a shell sees them; in this process where that shows the same."""

import csv
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Ended, contents, poison, write_run_file, write_tiny_data
from safetensors.torch import load_file
from torch import Tensor

import utils
from hourglass_transformer import model
from sundae.config.run_file import load_config
from sundae.config.sections import SamplingConfig
from sundae.prior.checkpoint import open_checkpoint
from sundae.prior.run import list_checkpoints
from sundae.sampling.sampler import BaseSampler

ROOT = Path(__file__).parents[1]
Script = Callable[..., Ended]
RunFile = Callable[..., Path]

UNCONDITIONAL = {"net.conditional": False, "net.num_classes": 0}


@pytest.fixture(autouse=True)
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing them takes longer than the training; the processes that are started do draw."""
    monkeypatch.setattr("sundae.training.logbook.draw_curves", lambda rows, path: None)


@pytest.fixture(scope="module")
def trained(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 20 steps, to be read only."""
    root = tmp_path_factory.mktemp("trained")
    changes = {"max_steps": 20, "nb_batches": [20, 0], "checkpoint_frequency": 10}
    path = write_run_file(root, tiny_data, {f"trainer.{k}": v for k, v in changes.items()})
    words = ["--cfg-path", path, "--run-dir", root / "run", "--seed", 0, "--no-cuda", "--quiet"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py", *map(str, words)])
        importlib.import_module("train").main()
    return root / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def start() -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """start("train.py", ...) begins a process, which does not outlive the test."""
    begun: list[subprocess.Popen[str]] = []

    def begin(*command: object, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        begun.append(process)
        return process

    yield begin
    for process in begun:
        process.kill()
        process.communicate()


Start = Callable[..., "subprocess.Popen[str]"]


def wait_for(process: "subprocess.Popen[str]", happened: Callable[[], bool]) -> None:
    """Until something has happened, a minute at most."""
    for _ in range(1200):
        if happened():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError("it did not happen")


def rows_of(run: Path) -> list[dict[str, str]]:
    """curves.csv without what the clock says."""
    with (run / "curves.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k not in ("seconds", "samples_per_s")} for row in rows]


# -- train.py -----------------------------------------------------------------------------------


def test_two_steps_resumed_to_four_are_four_steps(
    script: Script, run_file: RunFile, tmp_path: Path
) -> None:
    changes = {"net.ff_dropout": 0.2, "trainer.mini_batch_size": 4, "trainer.nb_batches": [4, 0]}
    path = run_file(changes)
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    options = ("--cfg-path", path, "--seed", 3)
    four = ("--set", "trainer.max_steps=4")
    assert script("train", *options, *four, "--run-dir", straight).code == 0
    assert script("train", *options, "--run-dir", resumed).out == f"done at step 2: {resumed}\n"
    ended = script("train", "--resume", resumed, *four)
    assert ended == Ended(0, f"done at step 4: {resumed}\n", "")

    for name in ("model.safetensors", "ema.safetensors"):
        one, other = (
            load_file(run / "checkpoints/step-0000004" / name) for run in (straight, resumed)
        )
        assert one.keys() == other.keys()
        assert all(torch.equal(value, other[key]) for key, value in one.items())
    assert rows_of(straight) == rows_of(resumed)
    assert contents(straight / "samples") == contents(resumed / "samples")
    assert (straight / "best.json").read_text() == (resumed / "best.json").read_text()
    assert load_config(resumed / "config.toml") == load_config(straight / "config.toml")
    assert open_checkpoint(resumed).info.seed == 3


def test_a_finished_run_is_left_alone(script: Script, run: Path) -> None:
    before = contents(run)
    assert script("train", "--resume", run) == Ended(0, f"done at step 20: {run}\n", "")
    assert contents(run) == before
    assert script("train", "--resume", run, "--run-dir", run).code == 0


def test_a_run_can_go_on_somewhere_else(script: Script, run: Path, tmp_path: Path) -> None:
    before = contents(run)
    options = ("--resume", run / "checkpoints" / "step-0000010", "--set", "trainer.max_steps=12")
    assert script("train", *options, "--run-dir", tmp_path / "branch").code == 0
    assert [folder.name for folder in list_checkpoints(tmp_path / "branch")] == ["step-0000012"]
    assert contents(run) == before


def test_flags_and_overrides_are_stored_with_the_run(
    script: Script, run_file: RunFile, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    flags = ("--no-amp", "--mnist", "--legacy-cfg", "--nb-workers", 0, "--cuda-vqgan")
    path = run_file({"trainer.use_amp": True, "trainer.nb_workers": 1})
    settings = ("--set", "trainer.max_steps=1", "--set", "net.dim=16")
    ended = script("train", "--cfg-path", path, "--run-dir", run, *flags, *settings)
    assert ended == Ended(0, f"done at step 1: {run}\n", "")
    stored = load_config(run / "config.toml")
    assert (stored.trainer.use_amp, stored.trainer.nb_workers) == (False, 0)
    assert (stored.trainer.max_steps, stored.net.dim) == (1, 16)
    assert open_checkpoint(run).config == stored
    assert open_checkpoint(run).load_network().cfg.dim == 16


def test_a_new_run_gets_a_folder_of_its_own_and_a_seed_that_repeats_it(
    script: Script, run_file: RunFile, tmp_path: Path
) -> None:
    assert script("train", "--cfg-path", run_file()).code == 0
    (first,) = (tmp_path / "exp").iterdir()
    assert first.name.startswith("tiny_20")
    seed = open_checkpoint(first).info.seed
    again = tmp_path / "again"
    assert script("train", "--cfg-path", run_file(), "--seed", seed, "--run-dir", again).code == 0
    assert rows_of(first) == rows_of(again)


def test_no_save_writes_nothing(
    script: Script, run_file: RunFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = run_file()
    monkeypatch.chdir(tmp_path)
    assert script("train", "--cfg-path", path, "--no-save").out == "done at step 2: not saved\n"
    assert set(contents(tmp_path)) == {"tiny.toml"}
    assert not (tmp_path / "exp").exists()


@pytest.mark.parametrize(
    ("changes", "flags", "complaint"),
    [
        ({"net.dimm": 8}, [], "net.dimm: not a key of [net]; did you mean 'dim'?"),
        ({"net.dim": "wide"}, [], "net.dim: expected an integer at least 1, got 'wide'"),
        ({"net.dim": None}, [], "net.dim is missing"),
        ({"trainer.mini_batch_size": 3}, [], "3 does not divide trainer.batch_size = 8"),
        ({"data.train_root": "nowhere"}, [], "the data folder nowhere does not exist"),
        ({"data.vocab_size": 6}, [], "has a codebook of 5, data.vocab_size is 6"),
        ({"data.vocab_size": 999}, [], "there is no [vqgan] section"),
        ({"net.num_classes": 9}, [], "has 3 classes, net.num_classes is 9"),
        ({}, ["--set", "net.dimm=4"], "--set net.dimm: not a key of [net]"),
        ({}, ["--set", "dim"], "--set dim: expected key=value"),
        ({}, ["--nb-workers", "-1"], "--nb-workers: expected an integer at least 0"),
        ({}, ["--cfg-path", "nowhere.toml"], "nowhere.toml: cannot read the run file"),
        ({}, ["--run-dir", "tiny.toml"], "cannot write to tiny.toml"),
        ({}, ["--resume", "nowhere"], "nowhere does not exist"),
        ({}, ["--resume", "."], "holds no checkpoint"),
        ({}, ["--wandb", "--no-save"], "leave out --no-save"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_written(
    script: Script,
    run_file: RunFile,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    flags: list[str],
    complaint: str,
) -> None:
    path = run_file(changes)
    monkeypatch.chdir(tmp_path)
    assert complaint in script("train", "--cfg-path", path, *flags).refusal()
    assert list(tmp_path.iterdir()) == [path]


def test_a_class_without_images_is_one_line(
    script: Script, run_file: RunFile, tmp_path: Path
) -> None:
    data = write_tiny_data(tmp_path / "data", 6, classes=2)
    path = run_file({"data.train_root": str(data)})
    assert "class 'two' has no images" in script("train", "--cfg-path", path).refusal()
    assert not (tmp_path / "exp").exists()


def test_nothing_to_train_is_one_line(script: Script) -> None:
    assert "give --cfg-path FILE, or --resume RUN" in script("train").refusal()


def test_a_run_is_not_overwritten(script: Script, run_file: RunFile, run: Path) -> None:
    before = contents(run)
    ended = script("train", "--cfg-path", run_file(), "--run-dir", run)
    assert "holds a run already; go on with --resume" in ended.refusal()
    assert contents(run) == before


def test_a_run_killed_before_its_first_checkpoint_says_how_to_start_again(
    script: Script, run_file: RunFile, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(run_file(), run / "config.toml")
    line = script("train", "--resume", run).refusal()
    assert f"--cfg-path {run}/config.toml --run-dir {run}" in line
    assert script("sample", "--resume", run).refusal() == line
    assert script("train", "--cfg-path", run / "config.toml", "--run-dir", run).code == 0


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        ("model.safetensors", "model.safetensors cannot be read"),
        ("ema.safetensors", "ema.safetensors cannot be read"),
        ("training.pt", "training.pt cannot be read"),
        ("checkpoint.json", "checkpoint.json cannot be read"),
        ({"codec": "vqgan-1"}, "codec vqgan-1"),
        ({"classes": ["a", "b", "c"]}, "trained on the classes a, b, c"),
    ],
)
def test_what_cannot_be_resumed_is_one_line_and_stays_as_it_is(
    script: Script, run: Path, damage: str | dict[str, Any], complaint: str
) -> None:
    folder = list_checkpoints(run)[-1]
    if isinstance(damage, str):
        (folder / damage).write_bytes((folder / damage).read_bytes()[:100])
    else:
        values = json.loads((folder / "checkpoint.json").read_text())
        (folder / "checkpoint.json").write_text(json.dumps(values | damage))
    before = contents(run)
    more = ("--set", "trainer.max_steps=30")
    assert complaint in script("train", "--resume", run, *more).refusal()
    assert complaint in script("train", "--resume", run, "--run-dir", run / "new").refusal()
    assert contents(run) == before


def flags_to_go_on(line: str, new: Path) -> list[str]:
    """The flags that a refusal names, which have to work as they stand."""
    return line.rsplit("go on with ", 1)[1].replace("NEW", str(new)).split()


def test_a_training_that_explodes_ends_in_one_line_whose_flags_work(
    script: Script, run: Path, tmp_path: Path
) -> None:
    before = contents(run)
    longer = ("--set", "trainer.max_steps=30", "--set", "trainer.nb_batches=[1, 0]")
    explosive = ("--set", "trainer.learning_rate=1e30")
    line = script("train", "--resume", run, *longer, *explosive).refusal()
    assert f"; nothing was written; the last good checkpoint is {list_checkpoints(run)[1]}:" in line
    after = contents(run)
    kept = [name for name in before if name.startswith(("checkpoints", "best.json"))]
    assert {name: after.get(name) for name in kept} == {name: before[name] for name in kept}
    assert [name for name in after if name.startswith("checkpoints")] == kept[1:]
    ended = script("train", *flags_to_go_on(line, tmp_path / "new"), *longer)
    assert ended == Ended(0, f"done at step 30: {run}\n", "")


def test_a_training_that_explodes_at_once_leaves_no_checkpoint(
    script: Script, run_file: RunFile, tmp_path: Path
) -> None:
    path = run_file({"trainer.learning_rate": 1e30, "trainer.max_steps": 9})
    line = script("train", "--cfg-path", path, "--run-dir", tmp_path / "run").refusal()
    assert "; the run has no good checkpoint: lower trainer.learning_rate or " in line
    assert line.endswith("set trainer.clip_grad, and train from the start\n")
    assert list_checkpoints(tmp_path / "run") == []
    again = ("--cfg-path", tmp_path / "run" / "config.toml", "--run-dir", tmp_path / "run")
    assert script("train", *again, "--set", "trainer.learning_rate=1e-3").code == 0


@pytest.mark.parametrize("file", ["model.safetensors", "ema.safetensors", "training.pt"])
def test_a_run_whose_last_checkpoint_is_not_finite_goes_on_from_the_one_before(
    script: Script, run: Path, tmp_path: Path, file: str
) -> None:
    earlier, last = list_checkpoints(run)
    name = poison(last / file)
    before = contents(run)
    line = script("train", "--resume", run).refusal()
    assert f"error: {last / file}: {name} holds NaN or infinite values; " in line
    assert f"the last good checkpoint is {earlier}: lower trainer.learning_rate, " in line
    flags = flags_to_go_on(line, tmp_path / "new")
    assert script("train", *flags, "--set", "trainer.max_steps=12").code == 0
    assert [folder.name for folder in list_checkpoints(tmp_path / "new")] == ["step-0000012"]
    assert contents(run) == before


def test_wandb_that_is_not_installed_is_one_line(
    script: Script, run_file: RunFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    line = script("train", "--cfg-path", run_file(), "--wandb").refusal()
    assert "pip install -r requirements-wandb.txt" in line
    assert not (tmp_path / "exp").exists()


# -- sample.py ----------------------------------------------------------------------------------


def sampled(out_dir: Path) -> dict[str, bytes]:
    """The PNGs of a folder, which holds nothing else."""
    files = contents(out_dir)
    assert all(name.endswith(".png") for name in files)
    return files


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What sample.py passes to the sampler; nothing is sampled."""
    seen: dict[str, Any] = {}

    def refine_tokens(
        sampler: BaseSampler, seeds: Tensor, classes: Tensor, sampling: SamplingConfig, **_: Any
    ) -> list[Any]:
        seen.update(sampler=sampler, seeds=seeds, classes=classes, schedule=sampling)
        return []

    monkeypatch.setattr(BaseSampler, "refine_tokens", refine_tokens)
    monkeypatch.setattr("sample.write_samples", lambda states, out_dir, *_, **options: out_dir)
    return seen


def test_as_many_images_are_written_as_asked_for(
    script: Script, trained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    ended = script("sample", "--resume", trained, "--seed", 1, "--out-dir", out, "--nb-samples", 7)
    facts = "step 20, seed 1, strategy renoise"
    assert ended == Ended(0, f"7 samples in {out}, the grid in {out}-grid.png ({facts})\n", "")
    assert set(contents(tmp_path)) == {"out-grid.png", *(f"out/{i:05d}.png" for i in range(7))}


def test_the_seed_fixes_the_images_whatever_the_batch_size(
    script: Script, trained: Path, tmp_path: Path
) -> None:
    def draw(name: str, *options: object) -> dict[str, bytes]:
        common = ("--resume", trained, "--out-dir", tmp_path / name, "--steps", 4)
        assert script("sample", *common, *options).code == 0
        return sampled(tmp_path / name)

    whole = draw("whole", "--seed", 1, "--nb-samples", 5)
    assert len(set(whole.values())) == 5
    assert draw("small", "--seed", 1, "--nb-samples", 5, "--batch-size", 2) == whole
    assert draw("other", "--seed", 2, "--nb-samples", 5) != whole
    draw("parts", "--seed", 1, "--nb-samples", 2)
    assert draw("parts", "--seed", 1, "--nb-samples", 3, "--count-offset", 2) == whole
    assert {path.name for path in tmp_path.glob("parts-*")} == {
        "parts-grid.png",
        "parts-grid-2.png",
    }


def test_an_explicit_zero_is_a_value(
    script: Script, trained: Path, tmp_path: Path, asked: dict[str, Any]
) -> None:
    names = ["temperature", "end-temperature", "sample-proportion", "end-sample-proportion"]
    zeros = [word for name in (*names, "min-steps") for word in (f"--{name}", "0")]
    ended = script("sample", "--resume", trained, "--out-dir", tmp_path / "o", "--seed", 0, *zeros)
    assert ended.code == 0
    schedule = asked["schedule"]
    assert (*schedule.temperature_ramp, schedule.min_steps) == (0, 0, 0)
    assert schedule.proportion_ramp == (0, 0)
    assert schedule.early_stop
    assert "seed 0" in ended.out


def test_what_is_not_given_comes_from_the_checkpoint_or_the_run_file(
    script: Script, trained: Path, run_file: RunFile, tmp_path: Path, asked: dict[str, Any]
) -> None:
    common = ("sample", "--resume", trained, "--out-dir", tmp_path / "o")
    script(*common)
    assert (len(asked["seeds"]), asked["schedule"].steps) == (5, 3)
    path = run_file({"sampling.nb_samples": 2, "sampling.steps": 9, "sampling.temperature": 0.25})
    script(
        *common,
        "--cfg-path",
        path,
        "--steps",
        8,
        "--no-early-stop",
        "--set",
        "sampling.min_steps=7",
    )
    schedule = asked["schedule"]
    assert (len(asked["seeds"]), schedule.steps, schedule.min_steps) == (2, 8, 7)
    assert schedule.temperature_ramp == (0.25, 0.25)
    assert not schedule.early_stop


@pytest.mark.parametrize(
    ("flags", "classes"),
    [
        ([], [0, 1, 2, 0, 1]),
        (["--count-offset", "1"], [1, 2, 0, 1, 2]),
        (["--class", "two"], [2] * 5),
        (["--class", "1"], [1] * 5),
        (["--class", "two", "--class", "0"], [2, 0, 2, 0, 2]),
    ],
)
def test_classes_are_chosen_by_name_or_number(
    script: Script,
    trained: Path,
    tmp_path: Path,
    asked: dict[str, Any],
    flags: list[str],
    classes: list[int],
) -> None:
    assert script("sample", "--resume", trained, "--out-dir", tmp_path / "o", *flags).code == 0
    assert asked["classes"].tolist() == classes


@pytest.mark.parametrize(("flags", "name"), [([], "ema"), (["--raw-weights"], "model")])
def test_the_averaged_weights_are_sampled_from(
    script: Script,
    trained: Path,
    tmp_path: Path,
    asked: dict[str, Any],
    flags: list[str],
    name: str,
) -> None:
    words = ("--out-dir", tmp_path / "o", "--no-amp")  # bfloat16 would round them
    assert script("sample", "--resume", trained, *words, *flags).code == 0
    expected = load_file(trained / "checkpoints" / "step-0000020" / f"{name}.safetensors")
    weights: dict[str, Tensor] = asked["sampler"].network.state_dict()
    assert all(torch.equal(weights[key], v.to(weights[key].dtype)) for key, v in expected.items())


def test_a_checkpoint_folder_alone_is_enough(
    script: Script, trained: Path, tmp_path: Path, asked: dict[str, Any]
) -> None:
    alone = shutil.copytree(trained / "checkpoints" / "step-0000010", tmp_path / "alone")
    (alone / "training.pt").unlink()
    ended = script("sample", "--resume", alone, "--out-dir", tmp_path / "o")
    assert "(step 10," in ended.out


def test_existing_images_are_kept_unless_overwriting_is_asked_for(
    script: Script, trained: Path, tmp_path: Path
) -> None:
    common = ("sample", "--resume", trained, "--out-dir", tmp_path / "o", "--steps", 2)
    assert script(*common, "--seed", 1).code == 0
    before = contents(tmp_path)
    assert "exists; choose another --out-dir" in script(*common, "--seed", 2).refusal()
    assert contents(tmp_path) == before
    assert script(*common, "--seed", 2, "--overwrite").code == 0
    assert contents(tmp_path) != before


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--class", "three"], "class three: expected one of zero, one, two, or 0 to 2"),
        (["--class", "3"], "class 3: expected one of"),
        (["--nb-samples", "0"], "--nb-samples: expected an integer at least 1, got 0"),
        (["--steps", "0"], "--steps: expected an integer at least 1, got 0"),
        (["--temperature", "-1"], "--temperature: expected a number at least 0"),
        (["--temperature", "nan"], "--temperature: expected a number at least 0"),
        (["--sample-proportion", "1.5"], "--sample-proportion: expected a number"),
        (["--strategy", "holton"], "--strategy: expected one of 'auto', 'random', 'confidence'"),
        (["--temperature-curve", "sine"], "--temperature-curve: expected one of 'linear'"),
        (["--top-p", "0"], "--top-p: expected a number above 0 and at most 1, got 0"),
        (["--guidance", "2"], "--guidance: 2 needs a network that also learned to do without"),
        (["--batch-size", "0"], "--batch-size must be at least 1"),
        (["--count-offset", "-1"], "--count-offset at least 0"),
        (["--set", "sampling.step=3"], "--set sampling.step: not a key of [sampling]"),
        (["--set", "net.dim=16"], "was trained with net.dim = 8, the run file says 16"),
        (["--set", "data.vocab_size=6"], "was trained with data.vocab_size = 5"),
        (["--out-dir", "file"], "cannot write to file"),
        (["--out-dir", "file/below"], "cannot write to file"),
        (["--resume", "nowhere"], "nowhere does not exist"),
        (["--resume", "."], "holds no checkpoint"),
        (["--resume", "file"], "file holds no checkpoint"),
    ],
)
def test_a_mistake_in_sampling_is_one_line_before_anything_is_written(
    script: Script,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    complaint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert complaint in script("sample", "--resume", trained, "--out-dir", "o", *flags).refusal()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_samples_without_a_checkpoint_are_an_error(script: Script, run_file: RunFile) -> None:
    assert "the run file says" in script("sample", "--cfg-path", run_file()).refusal()  # of the box


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        ("ema.safetensors", "ema.safetensors cannot be read"),
        ("checkpoint.json", "checkpoint.json cannot be read"),
        ({"codec": "vqgan-1"}, "codec vqgan-1"),
        ({"format": 2}, "not a checkpoint of format 1"),
    ],
)
def test_what_cannot_be_sampled_from_is_one_line(
    script: Script, run: Path, damage: str | dict[str, Any], complaint: str
) -> None:
    folder = open_checkpoint(run).folder
    if isinstance(damage, str):
        (folder / damage).write_bytes((folder / damage).read_bytes()[:100])
    else:
        values = json.loads((folder / "checkpoint.json").read_text())
        (folder / "checkpoint.json").write_text(json.dumps(values | damage))
    line = script("sample", "--resume", run, "--out-dir", run / "o").refusal()
    assert complaint in line
    assert not (run / "o").exists()


def test_weights_that_are_not_finite_are_not_sampled_from(
    script: Script, run: Path, tmp_path: Path
) -> None:
    """They gave images of noise, and exit code 0."""
    earlier, last = list_checkpoints(run)
    name = poison(last / "ema.safetensors")
    line = script("sample", "--resume", run, "--out-dir", tmp_path / "o").refusal()
    assert line == (
        f"error: {last}/ema.safetensors: {name} holds NaN or infinite values; "
        f"the last good checkpoint of the run is {earlier} (--resume {earlier})\n"
    )
    assert not (tmp_path / "o").exists()
    flags = re.search(r"\((--resume .*)\)$", line.strip())
    assert flags is not None
    assert script("sample", *flags[1].split(), "--out-dir", tmp_path / "o").code == 0
    assert len(sampled(tmp_path / "o")) == 5


def test_an_unconditional_network_samples_and_has_no_classes_to_choose(
    script: Script, run_file: RunFile, tmp_path: Path
) -> None:
    run, out = tmp_path / "run", tmp_path / "o"
    settings = UNCONDITIONAL | {"net.type": "transformer", "net.depth": 1, "trainer.ema_decay": 0.0}
    assert script("train", "--cfg-path", run_file(settings), "--run-dir", run).code == 0
    common = ("sample", "--resume", run, "--out-dir", out)
    assert "trained without classes; name none" in script(*common, "--class", "1").refusal()
    assert script(*common).code == 0
    assert len(sampled(out)) == 5


@pytest.mark.parametrize("name", ["train", "sample"])
def test_where_there_is_no_gpu_a_mistake_is_still_one_line(
    run_file: RunFile,
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    """The remark about the device must not come before the mistakes are found."""
    wrong = run_file({"data.eval_root": "nowhere"})
    flags = {"train": ["--cfg-path", wrong], "sample": ["--resume", run, "--out-dir", wrong]}
    monkeypatch.setattr(sys, "argv", [name, *map(str, flags[name])])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    utils._say_once.cache_clear()
    with pytest.raises(SystemExit, match="2"):
        utils.run_cli(importlib.import_module(name).main)
    assert Ended(2, *capsys.readouterr()).refusal()


# -- processes ----------------------------------------------------------------------------------


def test_wandb_is_not_imported_unless_asked_for(
    start: Start, run_file: RunFile, tmp_path: Path
) -> None:
    body = f"""
import sys, train, sample
for main, flags in (
    (train.main, ["--cfg-path", {str(run_file())!r}]), (sample.main, ["--resume", "RUN/run"])
):
    sys.argv = ["script", *flags, "--no-cuda", "--quiet"]
    sys.argv += ["--run-dir", "RUN/run"] if main is train.main else ["--out-dir", "RUN/out"]
    sys.argv = [word.replace("RUN", {str(tmp_path)!r}) for word in sys.argv]
    main()
print("wandb" in sys.modules)
"""
    process = start("-c", body)
    out, err = process.communicate(timeout=120)
    assert err == ""
    assert out.endswith("False\n")
    assert (tmp_path / "run" / "curves.png").stat().st_size > 10_000


def test_wandb_works_offline(start: Start, run_file: RunFile, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ("--cfg-path", run_file(), "--run-dir", run, "--no-cuda", "--wandb")
    process = start("train.py", *options, "--wandb-offline", "--wandb-project", "digits")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert f"done at step 2: {run}" in out
    (log,) = run.glob("wandb/offline-run-*/*.wandb")
    text = log.read_bytes()
    assert b"eval/loss" in text and b"digits" in text
    assert list(run.glob("wandb/offline-run-*/files/media/images/samples_2_*.png"))


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_stopped_from_outside_can_be_resumed(
    start: Start, script: Script, run_file: RunFile, tmp_path: Path, kind: signal.Signals
) -> None:
    run = tmp_path / "run"
    saves_itself = kind != signal.SIGKILL
    path = run_file(
        {
            "trainer.max_steps": 0,
            "trainer.nb_batches": [1, 1],
            "trainer.checkpoint_frequency": 0 if saves_itself else 1,
            "trainer.checkpoint_best": not saves_itself,
        }
    )
    process = start("train.py", "--cfg-path", path, "--run-dir", run, "--no-cuda")
    wait_for(
        process, lambda: bool(list_checkpoints(run) or (saves_itself and list(run.glob("*.csv"))))
    )
    process.send_signal(kind)
    out, err = process.communicate(timeout=60)
    if saves_itself:
        assert process.returncode == 128 + kind, err  # a scheduler must not take it for finished
        step = open_checkpoint(run).info.step
        assert out.endswith(f"stopped at step {step}: {run}\n")
        assert [folder.name for folder in list_checkpoints(run)] == [f"step-{step:07d}"]
    step = open_checkpoint(run, prefer_best=False).info.step
    ended = script("train", "--resume", run, "--set", f"trainer.max_steps={step + 2}")
    assert ended == Ended(0, f"done at step {step + 2}: {run}\n", "")
    assert [int(float(row["step"])) for row in rows_of(run)] == list(range(1, step + 3))
    assert not list(run.rglob("*.partial*"))


def test_two_processes_share_a_batch_and_save_one_checkpoint(
    start: Start, run_file: RunFile, trained: Path, tmp_path: Path
) -> None:
    path = run_file({"trainer.mini_batch_size": 2, "trainer.nb_batches": [4, 0]})
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2)
    # Neither a seed nor a folder is given: the processes have to agree on them.
    process = start(*launcher, "train.py", "--cfg-path", path, "--no-cuda")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    (run,) = (tmp_path / "exp").iterdir()
    assert out.endswith(f"done at step 2: {run}\n")
    assert out.count("done at step") == 1
    checkpoint = open_checkpoint(run)
    assert [row["step"] for row in rows_of(run)] == ["2.0"]
    single = load_file(trained / "checkpoints" / "step-0000020" / "ema.safetensors")
    weights, averaged, _ = checkpoint.load_training()
    assert averaged is not None
    shapes = {name: value.shape for name, value in single.items()}
    assert {name: value.shape for name, value in weights.items()} == shapes
    # The averages began from the same weights in both processes: after two steps they are close.
    gaps = [(value - averaged[name]).abs().max().item() for name, value in weights.items()]
    assert max(gaps) < 3 * 1e-2


def test_gradient_checkpointing_recomputes_and_trains_the_same_network(
    script: Script, run_file: RunFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []
    recompute = model.checkpoint
    monkeypatch.setattr(
        model, "checkpoint", lambda *args, **rest: (calls.append(args), recompute(*args, **rest))[1]
    )
    weights = []
    for enabled in (False, True):
        path = run_file({"trainer.gradient_checkpointing": enabled})
        run = tmp_path / str(enabled)
        assert script("train", "--cfg-path", path, "--seed", 0, "--run-dir", run).code == 0
        assert bool(calls) is enabled
        weights.append(open_checkpoint(run).load_network().state_dict())
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=0)
