"""The one command for a GPU: what becomes of parts that fail, and that all of them work at all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gpu
import gpu_pack
import gpu_run
import gpu_showcase
import pytest
import speed
import torch
from efficiency import efficiency_of
from gpu_checks import Bench as Checks
from gpu_checks import curve
from gpu_report import goals_of, write_report
from gpu_run import Outcome, Part, Stage, run_stage
from gpu_stages import SPEED_PARTS, stages
from packaging.requirements import Requirement
from speed_jobs import Bench

from sundae.common.errors import UserError
from sundae.config.run_file import load_config
from sundae.evaluation.plan import read_efficiency

ROOT = Path(__file__).parents[1]

# Programs for `python -c`; sys.argv[1] is the result file.
WRITES = "import sys; open(sys.argv[1], 'w').write('{\"checks\": []}')"
GOOD = f"print('all is well'); {WRITES}"
CRASHES = f"{WRITES}; raise SystemExit(3)"
KILLED = f"{WRITES}; import os; os.kill(os.getpid(), 9)"
HANGS = (
    "import signal, time\n"
    "for number in (signal.SIGTERM, signal.SIGINT): signal.signal(number, signal.SIG_IGN)\n"
    "def wait_for_ever(): time.sleep(600)\n"
    "wait_for_ever()"
)


def part(name: str, program: str, limit: float = 60, *, optional: bool = False) -> Part:
    command = (sys.executable, "-c", program, "{result}")
    return Part("planted", name, f"shows {name}", command, limit, optional)


def run(stage: Stage, work: Path, seconds: float = 60) -> dict[str, Outcome]:
    """The outcomes of a stage by part name, in the order in which they ended."""
    ended: list[Outcome] = []
    run_stage(stage, work, time.monotonic() + seconds, ended.append)
    return {outcome.key.split("/")[1]: outcome for outcome in ended}


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """command([stage], "--only", "planted/good") -> exit code, stdout, stderr of gpu.py."""
    handlers = {number: signal.getsignal(number)
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}  # fmt: skip
    about = {"device": "pretended", "sizes": "planted"}
    monkeypatch.setattr(gpu, "machine", lambda *_: dict(about))

    def call(found: Sequence[Stage], *words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(gpu, "stages", lambda *_: list(found))
        line = ["gpu.py", "--out", str(tmp_path / "out"), *map(str, words)]
        monkeypatch.setattr(sys, "argv", line)
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            gpu.main()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        return int(end.value.code or 0), *capsys.readouterr()

    return call


# -- parts that go wrong --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "state", "code"),
    [(CRASHES, "failed", 3), (KILLED, "killed", -9), (HANGS, "timed out", -6)],
    ids=["crashes", "is killed", "hangs"],
)
def test_a_part_that_goes_wrong_leaves_the_results_of_the_others(
    program: str, state: str, code: int, command: Callable[..., Any], tmp_path: Path
) -> None:
    parts = (part("before", GOOD), part("bad", program, 4), part("after", GOOD))
    status, out, _ = command([Stage("planted", None, parts)])
    assert status == 1 and "NOT all parts passed" in out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    found = {entry["key"]: entry for entry in results["parts"]}
    assert found["planted/bad"]["state"] == state and found["planted/bad"]["code"] == code
    for name in ("before", "after"):
        assert found[f"planted/{name}"]["state"] == "passed"
        assert found[f"planted/{name}"]["result"] == {"checks": []}
        assert "all is well" in found[f"planted/{name}"]["log"]
    if state != "timed out":  # what it had written is kept
        assert found["planted/bad"]["result"] == {"checks": []}
    report = (tmp_path / "out" / "report.md").read_text()
    assert f"| planted/bad | **{state}** (exit code {code}) |" in report
    assert "| planted/after | passed |" in report


def test_a_hanging_part_says_where_and_costs_its_own_limit(tmp_path: Path) -> None:
    began = time.monotonic()
    outcome = run(Stage("planted", None, (part("hangs", HANGS, 4),)), tmp_path)["hangs"]
    assert time.monotonic() - began < 10
    assert "in wait_for_ever" in outcome.log  # faulthandler's traceback


def test_the_children_of_a_part_end_with_it(tmp_path: Path) -> None:
    child = "import time; time.sleep(600)"
    program = (
        "import subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        "print(child.pid)"
    )
    outcome = run(Stage("planted", None, (part("parent", program),)), tmp_path)["parent"]
    assert outcome.state == "passed"
    pid = int(outcome.log)
    for _ in range(100):
        if not is_running(pid):
            return
        time.sleep(0.05)
    pytest.fail("the child runs on")


def is_running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_results_are_written_after_every_part(tmp_path: Path) -> None:
    out, seen = tmp_path / "out", []
    out.mkdir()

    def ended(outcome: Outcome) -> None:
        write_report(out, {}, [outcome])
        seen.append(json.loads((out / "results.json").read_text())["parts"][0]["key"])

    parts = (part("one", GOOD), part("two", CRASHES))
    run_stage(Stage("planted", None, parts), tmp_path, time.monotonic() + 60, ended)
    assert seen == ["planted/one", "planted/two"]


def test_a_stage_ends_at_its_limit_and_names_what_it_did_not_reach(tmp_path: Path) -> None:
    parts = (part("long", HANGS), part("late", GOOD), part("later", GOOD, optional=True))
    found = run(Stage("planted", 7, parts), tmp_path)
    assert [(o.state, o.good) for o in (found["late"], found["later"])] == [
        ("not reached", False), ("not reached", True)
    ]  # fmt: skip
    assert found["long"].state == "timed out"


def test_parts_run_side_by_side_where_the_stage_allows_it(tmp_path: Path) -> None:
    # Each waits for the file that the other one writes.
    meets = (
        "import pathlib, sys, time\n"
        "mine = pathlib.Path(sys.argv[1]).parent\n"
        "(mine / 'here').touch()\n"
        "other = mine.parent / {'a': 'b', 'b': 'a'}[mine.name] / 'here'\n"
        "while not other.exists(): time.sleep(0.02)"
    )
    found = run(Stage("planted", None, (part("a", meets, 30), part("b", meets, 30)), 2), tmp_path)
    assert [outcome.state for outcome in found.values()] == ["passed", "passed"]


def test_a_part_that_cannot_be_killed_is_given_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu_run._Process, "_signal", lambda *_: None)
    monkeypatch.setattr(gpu_run, "_PATIENCE", 0.2)
    parts = (part("stuck", f"{WRITES}; import time; time.sleep(8)", 3), part("after", GOOD))
    found = run(Stage("planted", None, parts), tmp_path)
    assert (found["stuck"].state, found["stuck"].code) == ("timed out", None)
    assert found["stuck"].result == {"checks": []}
    assert found["after"].state == "passed"


def test_an_interruption_kills_what_runs_and_keeps_what_is_done(tmp_path: Path) -> None:
    ended: list[Outcome] = []
    parts = (part("done", GOOD), part("runs", HANGS), part("waits", GOOD))
    begun = tmp_path / "planted" / "runs"
    run_stage(Stage("planted", None, parts), tmp_path, time.monotonic() + 60, ended.append,
              interrupted=begun.exists)  # fmt: skip
    assert [outcome.state for outcome in ended] == ["passed", "interrupted", "not reached"] or [
        outcome.state for outcome in ended
    ] == ["passed", "not reached", "interrupted"]


def test_a_signal_to_the_command_ends_it_with_a_report(tmp_path: Path) -> None:
    words = ["--device", "cpu", "--tiny", "--only", "speed/train", "--out", tmp_path / "out"]
    command = [sys.executable, "benchmarks/gpu.py", *map(str, words)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        for _ in range(6000):
            if (tmp_path / "out-work" / "speed" / "train" / "log.txt").exists():
                break
            time.sleep(0.05)
        process.terminate()
        assert process.wait(30) == 128 + signal.SIGTERM
    assert "| speed/train | **interrupted**" in (tmp_path / "out" / "report.md").read_text()


def test_no_part_stays_behind_where_an_outcome_cannot_be_written(tmp_path: Path) -> None:
    def full(_: Outcome) -> None:
        raise UserError("no space left")

    waits = "import os, sys, time; print(os.getpid()); time.sleep(600)"
    started = tmp_path / "planted" / "waits" / "log.txt"
    ends = (
        f"import pathlib, time\npath = pathlib.Path({str(started)!r})\n"
        "while not (path.exists() and path.read_text()): time.sleep(0.02)"
    )
    stage = Stage("planted", None, (part("waits", waits), part("ends", ends)), 2)
    with pytest.raises(UserError, match="no space"):
        run_stage(stage, tmp_path, time.monotonic() + 60, full)
    assert not is_running(int(started.read_text()))


def test_of_an_endless_log_the_end_is_kept(tmp_path: Path) -> None:
    program = "import sys; sys.stdout.buffer.write(b'\\xff' * 3_000_000 + b'the end')"
    log = run(Stage("planted", None, (part("loud", program),)), tmp_path)["loud"].log
    assert len(log) <= 200_000 and log.endswith("the end")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux' prctl")
def test_no_part_outlives_a_command_that_is_killed(tmp_path: Path) -> None:
    program = "import os, time; print(os.getpid()); time.sleep(600)"
    runner = (
        "import sys, time, pathlib\n"
        f"sys.path[:0] = [{str(ROOT / 'benchmarks')!r}, {str(ROOT)!r}]\n"
        "from gpu_run import Part, Stage, run_stage\n"
        f"part = Part('planted', 'waits', '', (sys.executable, '-c', {program!r}), 60)\n"
        f"work = pathlib.Path({str(tmp_path)!r})\n"
        "run_stage(Stage('planted', None, (part,)), work, time.monotonic() + 60, print)"
    )
    log = tmp_path / "planted" / "waits" / "log.txt"
    with subprocess.Popen([sys.executable, "-c", runner]) as process:
        while not (log.exists() and log.read_text().endswith("\n")):
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
    for _ in range(100):
        if not is_running(int(log.read_text())):
            return
        time.sleep(0.05)
    pytest.fail("the part runs on")


# -- the command line -----------------------------------------------------------------------------


def test_results_are_not_overwritten_without_a_flag_and_resuming_skips_what_passed(
    command: Callable[..., Any], tmp_path: Path
) -> None:
    flaky = "import sys; raise SystemExit(0 if len(sys.argv) > 2 else 1)"
    first = Stage("planted", None, (part("good", GOOD), part("flaky", flaky)))
    assert command([first])[0] == 1
    status, _, err = command([first])
    assert status == 2 and "results.json exists" in err and err.count("\n") == 1
    mended = Part("planted", "flaky", "", (sys.executable, "-c", flaky, "{result}", "more"), 60)
    second = Stage("planted", None, (part("good", CRASHES), mended))  # good is not run again
    status, out, _ = command([second], "--resume")
    assert status == 0 and "planted/flaky" in out and "planted/good" not in out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [entry["state"] for entry in results["parts"]] == ["passed", "passed"]
    assert command([second], "--overwrite")[0] == 1  # good is run again


def test_resuming_without_time_keeps_what_an_earlier_call_measured(
    command: Callable[..., Any], tmp_path: Path
) -> None:
    stage = Stage("planted", None, (part("crashes", CRASHES),))
    command([stage])
    command([stage], "--resume", "--minutes", "0.01")
    (found,) = json.loads((tmp_path / "out" / "results.json").read_text())["parts"]
    assert found["state"] == "failed" and found["result"] == {"checks": []}


def test_parts_and_stages_are_chosen_by_name(command: Callable[..., Any]) -> None:
    found = [Stage("planted", 60, (part("a", GOOD), part("b", GOOD))), Stage("other", 60, ())]
    status, out, _ = command(found, "--only", "planted/b")
    assert status == 0 and "planted/b" in out and "planted/a" not in out
    status, _, err = command(found, "--only", "planted/c", "--overwrite")
    assert status == 2 and "--only planted/c: expected one of planted, other, planted/a" in err


def test_the_list_names_every_part_and_does_nothing(
    command: Callable[..., Any], tmp_path: Path
) -> None:
    found = stages("cuda", False, "run.toml", [], tmp_path)
    status, out, _ = command(found, "--list")
    assert status == 0 and not (tmp_path / "out").exists()
    for stage in found:
        for one in stage.parts:
            assert one.key in out and one.shows in out


def test_without_a_gpu_the_command_says_how_to_prove_itself(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    command = [sys.executable, "benchmarks/gpu.py", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "no CUDA device" in done.stderr and "--device cpu --tiny" in done.stderr
    assert not (tmp_path / "out" / "results.json").exists()


def test_a_missing_package_is_named_before_any_part_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "tomli_w.py").write_text("raise ModuleNotFoundError(\"No module 'tomli_w'\")")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    words = ["--device", "cpu", "--tiny", "--out", str(tmp_path / "out")]
    command = [sys.executable, "benchmarks/gpu.py", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "No module 'tomli_w'" in done.stderr and "requirements.txt" in done.stderr
    assert not list((tmp_path / "out").glob("*"))


def test_smoke_and_speed_leave_a_minute_of_nine(tmp_path: Path) -> None:
    found = {stage.name: stage for stage in stages("cuda", False, "run.toml", [], tmp_path)}
    assert list(found) == ["smoke", "speed", "showcase"]
    assert (found["smoke"].limit, found["speed"].limit) == (150, 330)
    assert found["showcase"].limit is None
    assert found["speed"].at_once == 1  # what is timed is alone


@pytest.mark.parametrize("part", SPEED_PARTS, ids=lambda part: part.name)
def test_the_flags_of_every_part_of_speed_choose_variants_that_exist(
    part: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As far as that can be known without a GPU, which its command line names."""
    monkeypatch.setattr(sys, "argv", ["speed.py", *part.flags.split()])
    args = speed.parse_args()
    bench = Bench(speed.setup_of(args, tmp_path))
    assert part.compiles <= bench.setup.compiles
    for key in speed.chosen_tracks(args):
        if key == "amused":
            suffix = " compiled" if bench.setup.compiles else ""
            names = [f"aMUSEd, 12 steps, no guidance{suffix}", f"ours, 12 steps, its FLOP{suffix}",
                     f"ours, 12 steps, its parameters{suffix}"]  # fmt: skip
            assert all(map(bench.setup.selects_name, names))
            assert not bench.setup.selects_name(f"ours, 100 steps, recommended{suffix}")
            continue
        track = speed.ALL_TRACKS[key](bench, 1)
        variants = [variant for variant in track.variants if bench.setup.selects(variant)]
        assert variants and all(variant.name.startswith("ours") for variant in variants)
        assert any(variant.compiled for variant in variants) or not bench.setup.compiles


def test_what_another_device_gave_is_no_result_to_go_on_from(
    command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [Stage("planted", None, (part("good", GOOD),))]
    monkeypatch.setattr(gpu, "machine", lambda *_: {"device": "CPU", "sizes": "tiny"})
    assert command(found)[0] == 0
    monkeypatch.setattr(gpu, "machine", lambda *_: {"device": "H100", "sizes": "full"})
    status, _, err = command(found, "--resume")
    assert status == 2 and err.count("\n") == 1 and "of device CPU, not H100" in err


def test_a_run_file_that_is_missing_is_refused_before_work_starts(
    command: Callable[..., Any], tmp_path: Path
) -> None:
    found = [Stage("planted", None, (part("good", GOOD),))]
    status, _, err = command(found, "--train", tmp_path / "nope.toml")
    assert status == 2 and err.count("\n") == 1 and "nope.toml" in err
    assert not (tmp_path / "out").exists()


def test_a_refusal_deletes_nothing(
    command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kept = tmp_path / "out-work" / "showcase" / "weights"
    kept.mkdir(parents=True)

    def none(*_: object) -> dict[str, Any]:
        raise UserError("there is no CUDA device here")

    monkeypatch.setattr(gpu, "machine", none)
    assert command([Stage("planted", None, ())], "--overwrite")[0] == 2
    assert kept.exists()


def test_shares_that_cannot_be_kept_cost_no_later_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "efficiency.json").write_text('{"card": {"train": 0.4}}')
    monkeypatch.setattr(gpu, "MEASURED", tmp_path / "missing" / "efficiency.json")
    gpu.keep_efficiency(tmp_path / "efficiency.json")
    assert "efficiency.json stays as it was" in capsys.readouterr().err


# -- the report -----------------------------------------------------------------------------------


def speed_row(track: str, path: str, images: int, seconds: float, **other: Any) -> dict[str, Any]:
    row = {"track": track, "path": path, "images": images, "seconds": [seconds], "share": None,
           "size": "ffhq1024", "tflops": None, "extra_bytes": None, "evaluations": 1,
           "precision": "bf16"}  # fmt: skip
    return row | other


def test_goals_are_compared_with_the_fastest_of_our_own_variants() -> None:
    rows = [
        speed_row("train", "textbook fp32", 8, 1.0, share=0.9),
        speed_row("train", "ours bf16", 8, 1.0, share=0.41),
        speed_row("train", "ours bf16 compiled", 8, 1.0, share=0.47),
        speed_row("sampling", "ours bf16", 1, 1.0, share=0.6),
        speed_row("sampling", "ours bf16", 32, 6.4, share=0.39),
        speed_row("decode", "ours bf16", 8, 0.08),
        speed_row("sampling", "ours bf16", 32, 0.96, size="config/ffhq1024/fast.toml"),
        speed_row("amused", "aMUSEd, 12 steps, no guidance", 32, 3.0),
        speed_row("amused", "aMUSEd, 12 steps, guidance 10, recommended", 32, 1.0),
        speed_row("amused", "ours, 12 steps, its parameters", 32, 1.5),
    ]
    found = {goal.name: goal for goal in goals_of(rows)}
    values = [(goal.found, goal.met) for goal in found.values()]
    assert values[0] == (0.47, True) and values[1] == (0.39, False)
    assert values[2] == (pytest.approx(0.21), True)
    assert values[3] == (pytest.approx(0.04), True) or values[3][0] == pytest.approx(0.04)
    assert values[4] == (2.0, True)
    assert values[5] == (None, None)


def test_shares_measured_in_several_processes_become_one_entry_that_the_planner_reads(
    tmp_path: Path,
) -> None:
    machine = {"device": "NVIDIA H100 80GB HBM3", "date": "2026-01-01"}
    results = [
        {"machine": machine, "peak_tflops": 700.0,
         "rows": [speed_row("train", "ours bf16", 8, 1.0, share=0.5, tflops=350.0)]},
        {"machine": machine, "peak_tflops": 800.0,
         "rows": [speed_row("sampling", "ours bf16", 32, 1.0, share=0.5, tflops=400.0)]},
    ]  # fmt: skip
    entry = efficiency_of(results, "here")[machine["device"]]
    assert entry["tflops"] == 800 and entry["train"] == pytest.approx(350 / 800)
    assert entry["sample"] == pytest.approx(0.5) and entry["source"] == "here, 2026-01-01"
    outcomes = [Outcome(f"speed/{n}", "", "passed", 0, 1.0, r) for n, r in enumerate(results)]
    write_report(tmp_path, {}, outcomes)
    assert read_efficiency(tmp_path / "efficiency.json")[machine["device"]]["tflops"] == 800
    measured = tmp_path / "kept.json"
    measured.write_text('{"another card": {"train": 0.4}}')
    before, gpu.MEASURED = gpu.MEASURED, measured
    try:
        gpu.keep_efficiency(tmp_path / "efficiency.json")
    finally:
        gpu.MEASURED = before
    assert set(json.loads(measured.read_text())) == {"another card", machine["device"]}


# -- the showcase ---------------------------------------------------------------------------------


def test_weights_are_cut_into_parts_that_give_the_folder_back(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(os.urandom(25_000))
    out = tmp_path / "out"
    parts = gpu_showcase.write_parts(folder, out, size=8_000)
    assert len(parts) >= 4 and max(path.stat().st_size for path in parts) <= 8_000
    shell = f"cat {out}/showcase.tar.part-* | tar x -C {tmp_path}"
    subprocess.run(["sh", "-c", shell], check=True)
    whole = (tmp_path / "showcase" / "model.safetensors").read_bytes()
    assert whole == (folder / "model.safetensors").read_bytes()
    assert gpu_showcase.PART <= 15_000_000
    fewer = gpu_showcase.write_parts(folder, out, size=40_000)  # no part of before is left
    assert sorted(out.iterdir()) == fewer


def test_a_training_that_would_take_longer_gets_a_signal_to_save_and_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        "time.sleep(600)"
    )
    (tmp_path / "train.py").write_text(waits)
    monkeypatch.setattr(gpu_showcase, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_showcase, "open_checkpoint", lambda *_, **__: pytest.fail("saved"))
    bench = Checks(torch.device("cpu"), True, tmp_path, tmp_path / "result.json")
    with pytest.raises(pytest.fail.Exception, match="saved"):  # it had ended by then
        gpu_showcase.train(bench, tmp_path / "run", [], seconds=3)
    assert bench.checks[0]["found"] == "exit code 143" and bench.checks[0]["passed"]


def test_a_training_without_an_evaluation_yet_has_no_curve(tmp_path: Path) -> None:
    assert curve(tmp_path, "eval/loss") == []
    (tmp_path / "curves.csv").write_text("step,eval/loss\n1,\n2,0.5\n")
    assert curve(tmp_path, "eval/loss") == [0.5]


# -- packing --------------------------------------------------------------------------------------


def write_wheel(folder: Path, name: str, needs: Sequence[str]) -> Path:
    path = folder / f"{name}-1.0-py3-none-any.whl"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", *(f"Requires-Dist: {n}" for n in needs)]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}-1.0.dist-info/METADATA", "\n".join(lines) + "\n")
    return path


def test_wheels_that_are_missing_there_and_what_they_need_are_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = {
        "diffusers": ["torch>=1", "regex", "importlib-metadata", "jax; extra == 'flax'"],
        "importlib-metadata": ["zipp", "typing-extensions; python_version < '3.8'", "small"],
    }

    def download(need: Any, folder: Path) -> Path:
        return write_wheel(folder, need.name.replace("-", "_"), shelf.get(need.name, []))

    monkeypatch.setattr(gpu_pack, "download", download)
    names = [name.split("-")[0] for name in gpu_pack.download_missing(tmp_path)]
    assert names == [
        "annotated_types",
        "diffusers",
        "importlib_metadata",
        "omegaconf",
        "pydantic",
        "small",
        "tomli_w",
    ]


@pytest.mark.parametrize("tag", ["py3-none-any", "cp311-cp311-linux_x86_64"])
def test_of_a_source_archive_a_wheel_is_built_if_it_is_pure_python(
    tag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pip(words: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        if "download" in words:
            return subprocess.CompletedProcess(words, 1, "", "ERROR: no matching distribution\n")
        (tmp_path / f"small-1.0-{tag}.whl").touch()
        return subprocess.CompletedProcess(words, 0, "", "")

    monkeypatch.setattr(gpu_pack.subprocess, "run", pip)
    if tag == "py3-none-any":
        assert gpu_pack.download(Requirement("small>=1"), tmp_path).name.startswith("small-1.0")
        return
    with pytest.raises(UserError, match="no matching distribution"):
        gpu_pack.download(Requirement("small>=1"), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def packable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run file whose data lies in what counts as the repository; wheels are left out."""
    monkeypatch.setattr(gpu_pack, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_pack, "download_missing", lambda folder: [])
    monkeypatch.setattr(gpu_pack, "is_tracked", lambda path: False)
    for name in ("train", "eval"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "tokens.npy").write_bytes(bytes(1000))
    text = (ROOT / "config" / "digits" / "demo.toml").read_text()
    path = tmp_path / "run.toml"
    path.write_text(text.replace("data/digits", f"{tmp_path}/data"))
    return path


def test_data_is_packed_where_the_command_puts_it_back(
    packable: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack = tmp_path / "pack"
    gpu_pack.pack(pack, str(packable), ["trainer.max_steps=5"])
    out = capsys.readouterr().out
    assert (pack / "data" / "data" / "train" / "tokens.npy").stat().st_size == 1000
    assert "--train run.toml --set trainer.max_steps=5" in out
    assert (pack / "data" / "run.toml").exists()  # git does not hold it
    assert "--minutes 9" in out and "--no-index" in out
    with pytest.raises(UserError, match="exists"):
        gpu_pack.pack(pack, None, [])


def test_what_cannot_be_packed_is_refused_before_anything_is_written(
    packable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = tmp_path / "pack"
    monkeypatch.setattr(gpu_pack, "LIMIT", 1500)
    with pytest.raises(UserError, match=r"0\.0 MB are more than .*tokens\.npy"):
        gpu_pack.pack(pack, str(packable), [])
    monkeypatch.setattr(gpu_pack, "ROOT", tmp_path / "data")
    (tmp_path / "data" / "eval").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="does not exist"):
        gpu_pack.pack(pack, str(packable), [])
    with pytest.raises(UserError, match="outside of"):
        gpu_pack.needed_files(load_config(packable, [f"data.eval_root={tmp_path / 'elsewhere'}"]))
    assert not pack.exists()


# -- all of it ------------------------------------------------------------------------------------


def test_all_stages_at_their_smallest_on_a_cpu(
    run_file: Callable[..., Path], tmp_path: Path
) -> None:
    """The command itself, so that a GPU is not the first to find a mistake in it."""
    train = run_file({"trainer.max_steps": 4, "net.dim": 16})
    out = tmp_path / "out"
    command = [sys.executable, "benchmarks/gpu.py", "--device", "cpu", "--tiny", "--minutes", "9",
               "--out", str(out), "--train", str(train)]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    report = (out / "report.md").read_text()
    assert done.returncode == 0, done.stdout + done.stderr + report
    results = json.loads((out / "results.json").read_text())
    states = {entry["key"]: entry["state"] for entry in results["parts"]}
    expected = [
        one.key for stage in stages("cpu", True, str(train), [], out) for one in stage.parts
    ]
    assert list(states) == expected or set(states) == set(expected)
    assert set(states.values()) == {"passed"}
    checks = {entry["key"]: entry["result"].get("checks") for entry in results["parts"]}
    assert all(checks[key] for key in expected if key.startswith(("smoke", "showcase")))
    rows = [row for entry in results["parts"] for row in entry["result"].get("rows", ())]
    assert {"train", "sampling", "decode", "forward", "sampling step"} <= {r["track"] for r in rows}
    assert read_efficiency(out / "efficiency.json")
    names = {path.name for path in out.iterdir()}
    assert names == {"report.md", "results.json", "efficiency.json", "images.png",
                     "showcase.tar.part-00"}  # fmt: skip
    assert not read_efficiency(gpu.MEASURED).get("CPU")
