"""The speed benchmark at its smallest: what it counts, what it writes, what it refuses."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measuring
import pytest
import speed
import torch
from small_nets import network
from speed_amused import matched
from speed_jobs import CONFIGS, SIZES, Bench, Job, Setup, Track, Variant, twin

from sundae.config.run_file import RunConfig, load_config
from sundae.evaluation.cost import Cost
from utils import run_cli

TRACKS = "forward,train,step,sampling,encode,decode"


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """run("--size", "ci") -> exit code, stdout, stderr."""
    monkeypatch.setattr(measuring, "_PEAK_SIDES", {"cpu": (64,)})

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["speed.py", *map(str, words)])
        code = 0
        try:
            run_cli(speed.main)
        except SystemExit as end:
            code = int(end.code or 0)
        return code, *capsys.readouterr()

    return call


def tiny_config() -> RunConfig:
    name, overrides = SIZES["ci"]
    return load_config(CONFIGS / name, overrides)


def test_the_peak_of_memory_takes_one_run_of_each_variant(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[str] = []
    variants = [Variant(name, lambda: Job(int), "fp32", 1, 1, compiled=name == "compiled")
            for name in ("eager", "compiled")]  # fmt: skip
    monkeypatch.setitem(speed.ALL_TRACKS, "planted", lambda *_: Track("planted", "", variants, 1))
    monkeypatch.setattr(speed, "extra_bytes", lambda *args: seen.append(args[3].name))
    monkeypatch.setattr(sys, "argv", ["speed.py", "--size", "ci", "--rounds", "2"])
    setup = speed.setup_of(speed.parse_args(), tmp_path)
    rows = speed.measure(
        "planted",
        Bench(setup),
        1,
        speed.Results(setup, "ci", None, {"device": "CPU"}, {"fp32": 1.0}),
    )
    assert [(row["path"], len(row["seconds"])) for row in rows] == [("eager", 2), ("compiled", 2)]
    assert seen == ["eager", "compiled"]


def test_every_track_at_the_smallest_size(run: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "out" / "speed.json"
    code, out, err = run("--size", "ci", "--rounds", 1, "--batch-size", 2, "--no-compile",
                         "--no-memory", "--tracks", TRACKS, "--json", path)  # fmt: skip
    assert code == 0, err
    assert "GPU figures are missing" in out and "benchmarks/gpu.py --minutes 9" in out
    found = json.loads(path.read_text())
    assert {"device", "threads", "torch", "date"} <= found["machine"].keys()
    rows = {(row["track"], row["path"]): row for row in found["rows"]}
    assert {track for track, _ in rows} == {
        "forward", "train", "sampling step", "sampling", "encode", "decode"
    }  # fmt: skip
    for row in rows.values():
        assert len(row["seconds"]) == 1 and row["seconds"][0] > 0 and row["size"] == "ci"
        achieved = row["gflop"] / row["seconds"][0] / 1e3
        assert row["tflops"] == pytest.approx(achieved)
        assert row["share"] == pytest.approx(achieved / found["peaks_tflops"][row["precision"]])
    (efficiency,) = found["efficiency"].values()
    assert {"train", "sample", "decode", "tflops"} <= efficiency.keys()
    plain = {track: row for (track, name), row in rows.items() if name == "textbook fp32"}
    assert plain["train"]["gflop"] == pytest.approx(6 * plain["forward"]["gflop"])
    assert plain["sampling"]["gflop"] == pytest.approx(4 * plain["forward"]["gflop"])
    assert plain["sampling step"]["gflop"] == pytest.approx(plain["forward"]["gflop"])
    assert plain["sampling"]["evaluations"] == 4


def test_what_is_missing_is_skipped_in_one_line(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    code, out, _ = run("--size", "ci", "--rounds", 1, "--no-compile", "--tracks", "amused")
    assert code == 0
    (line,) = (line for line in out.splitlines() if line.startswith("skipped"))
    assert "amused" in line and "requirements-bench.txt" in line


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--size", "huge"], "--size huge"),
        (["--size", "ci", "--tracks", "forward,backward"], "--tracks backward"),
    ],
)
def test_what_is_not_there_is_refused_by_name(
    words: list[str], named: str, run: Callable[..., Any]
) -> None:
    code, _, err = run(*words)
    assert code == 2
    assert err.startswith(f"error: {named}") and err.count("\n") == 1


def test_a_matched_network_keeps_the_heads_of_every_grid() -> None:
    cfg = load_config(CONFIGS / "ffhq256" / "fast.toml")
    heads = [cfg.net.nb_heads * width // cfg.net.dim for width in cfg.net.dims or ()]
    net = matched(cfg, lambda cost: cost.parameters, 10**7).net
    assert net.dim < cfg.net.dim
    assert [net.nb_heads * width // net.dim for width in net.dims or ()] == heads


def test_a_matched_network_is_nearest_among_its_neighbours() -> None:
    cfg, target = tiny_config(), 900_000

    found = matched(cfg, lambda cost: cost.parameters, target).net.dim
    assert found % 16 == 0

    def excess(dim: int) -> int:
        name, overrides = SIZES["ci"]
        changed = load_config(CONFIGS / name, (*overrides, f"net.dim={dim}"))
        return abs(Cost(changed).parameters - target)

    assert excess(found) < min(excess(found - 16), excess(found + 16))


def test_a_twin_shares_parameters_and_nothing_else() -> None:
    net = network(grid=(2, 2), depth=1)
    other = twin(net)
    assert other is not net and other.stage is not net.stage
    assert all(a is b for a, b in zip(net.parameters(), other.parameters(), strict=True))


def test_the_time_limit_ends_rounds_but_not_the_first() -> None:
    calls: list[int] = []
    seconds = measuring.interleaved({"a": lambda: calls.append(1)}, 5, "cpu", limit=0.0)
    assert len(seconds["a"]) == 1 and len(calls) == 2


def test_training_variants_leave_no_gradients_to_each_other() -> None:
    from speed_tracks import train

    name, overrides = SIZES["ci"]
    bench = Bench(Setup(CONFIGS / name, overrides, threads=torch.get_num_threads()))
    before = bench.net.to_logits.weight.detach().clone()
    for variant in train(bench, 2).variants:
        job = variant.make()
        assert job is not None
        job.run()
        assert all(parameter.grad is None for parameter in bench.net.parameters())
        assert not torch.equal(bench.net.to_logits.weight, before), "it did not learn"
        before = bench.net.to_logits.weight.detach().clone()
