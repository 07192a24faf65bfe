"""The cost model: counts against sums by hand and real runs, and what the plan says of them."""

import json
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import plan as script
from sundae.common.errors import UserError
from sundae.config.run_file import RunConfig, load_config, parse_config
from sundae.evaluation import plan
from sundae.evaluation.cost import CodecCost, Cost, Growth, LiveBytes
from sundae.evaluation.plan_text import describe
from sundae.prior.network import build_network
from utils import run_cli

DIM, VOCAB, SIDE = 64, 32, 8
CONFIGS = Path(__file__).parents[1] / "config"


def values(**net: Any) -> dict[str, Any]:
    """A run file of a small hourglass."""
    return {
        "unroll_steps": 2,
        "trainer": {"batch_size": 16, "mini_batch_size": 16, "max_steps": 1000},
        "data": {"root": "nowhere", "split_sizes": [0.9, 0.1], "vocab_size": VOCAB,
                 "sequence_length": SIDE**2},
        "sampling": {"steps": 5, "sample_proportion": 1.0},
        "net": {"dim": DIM, "nb_heads": 4, "depth": [1, 1, 1]} | net,
    }  # fmt: skip


def small(*overrides: str) -> RunConfig:
    return parse_config(values(), "test", overrides)


def card(memory: float, bf16: float | None = 100.0) -> plan.Card:
    return plan.Card("a card", memory, bf16, 10.0, 1000)


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs the command on the small run file -> (exit code, stdout, stderr)."""
    path = tmp_path / "small.toml"
    path.write_text(tomli_w.dumps(values()))

    def call(*flags: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["plan.py", str(path), *flags])
        code = 0
        try:
            run_cli(script.main)
        except SystemExit as error:
            code = int(error.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call


# -- counts ----------------------------------------------------------------------------------------


def flops_by_hand() -> int:
    """Two for every product of a 1-1-1 hourglass with 2x2 cells."""
    d, fine, coarse = DIM, SIDE**2, SIDE**2 // 4

    def layer(queries: int, keys: int, seen: int) -> int:
        """seen: keys that a query looks at."""
        maps = 2 * queries * d * d + 2 * keys * d * 2 * d + 2 * queries * d * d
        return maps + 4 * queries * seen * d + 16 * queries * d * d

    down = 2 * coarse * 4 * d * d + layer(coarse, fine, 4)
    up = 2 * coarse * d * 4 * d + layer(fine, coarse, coarse)
    stacks = 2 * layer(fine, fine, fine) + layer(coarse, coarse, coarse)
    return stacks + down + up + 2 * fine * d * VOCAB


def test_flops_are_those_of_a_sum_by_hand() -> None:
    cost = Cost(small())
    assert cost.forward_flops() == flops_by_hand()
    assert cost.training_flops() == 2 * 3 * flops_by_hand()
    assert cost.training_flops(checkpointing=True) == 2 * 4 * flops_by_hand()


def test_sampling_pays_for_the_tokens_it_asks_for_and_twice_for_guidance() -> None:
    forward = flops_by_hand()
    assert Cost(small()).sampling_flops() == 5 * forward
    half = small("sampling.sample_proportion=0.5", "sampling.strategy=random")
    head = 2 * SIDE**2 * DIM * VOCAB
    last = 20 * SIDE**2 * DIM**2 + 4 * SIDE**4 * DIM  # the last layer, without keys and values
    assert Cost(half).sampling_flops() == 5 * (forward - (head + last) // 2)
    seeing = small("sampling.sample_proportion=0.5", "sampling.strategy=confidence")
    assert Cost(seeing).sampling_flops() == 5 * forward
    guided = small("net.conditional=true", "net.num_classes=3", "net.class_dropout=0.1",
                   "sampling.guidance=2.0")  # fmt: skip
    assert Cost(guided).sampling_flops() == 2 * 5 * forward


def test_the_largest_face_network_has_its_known_size() -> None:
    assert Cost(load_config(CONFIGS / "ffhq1024.toml")).parameters == 973_441_024


def test_states_are_five_numbers_a_parameter_and_fewer_without_average() -> None:
    def numbers(*overrides: str, num_gpus: int = 1) -> float:
        cost = Cost(small(*overrides))
        return cost.state_bytes(num_gpus) / cost.parameters / 4

    assert numbers() == 5
    assert numbers("trainer.ema_decay=0") == 4
    assert numbers("trainer.optimizer_name=sgd") == 3
    assert 4 < numbers("trainer.optimizer_name=muon") < 4.5  # one moment of most, two of the rest
    assert numbers(num_gpus=2) == 6


def allocated(cfg: RunConfig, batch: int, *, bf16: bool, checkpointing: bool) -> int:
    """Bytes at the peak of a real pass on the CPU, as its allocator tells it."""
    net = build_network(cfg)
    net.to_logits = nn.Linear(DIM, 1)
    net.set_gradient_checkpointing(checkpointing)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    (tokens,) = Cost(cfg).inputs(batch)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = net(tokens).float().mean()
        loss.backward()
    events = profiled.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    now = peak = 0
    for _, change in changes:
        now += change
        peak = max(peak, now)
    return peak


@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_memory_is_what_the_allocator_of_a_real_run_hands_out(
    bf16: bool, checkpointing: bool
) -> None:
    real = allocated(small(), 16, bf16=bf16, checkpointing=checkpointing)
    counted = Cost(small()).pass_bytes(16, bf16=bf16, checkpointing=checkpointing)
    assert counted == pytest.approx(real, rel=0.1)


def test_memory_grows_linearly_with_the_batch_and_less_with_checkpointing() -> None:
    count = partial(Cost(small()).pass_bytes, bf16=True)
    plain = Growth.of(count)
    checkpointed = Growth.of(partial(count, checkpointing=True))
    for batch in (16, 64, 200):  # none of those it was made from
        assert plain.at(batch) == pytest.approx(count(batch), rel=0.02)
    assert checkpointed.per_sample < plain.per_sample / 2


def test_the_largest_batch_is_the_last_that_fits() -> None:
    growth = Growth(((100.0, 10.0), (0.0, 12.0)))
    assert growth.largest(1000) == 83
    assert growth.at(83) <= 1000 < growth.at(84)
    assert growth.largest(109) == 0


def test_live_bytes_forget_what_is_gone_and_count_no_views() -> None:
    known = torch.zeros(10)
    with LiveBytes([known]) as live:
        view = known[:5]
        large = torch.ones(1000)
        del large
        kept = torch.ones(10).view(2, 5)
    assert (live.peak, live.now) == (4000, 40)
    assert len(view) + len(kept) == 7


def test_the_codecs_parameters_and_decoding_are_counted() -> None:
    found = CodecCost.of(CONFIGS / "vqgan" / "emoji64.yaml", (16, 16), bf16=True)
    assert (found.parameters, found.size) == (2_993_579, (64, 64))
    assert 0 < found.encode_flops < found.decode_flops
    assert found.decode_bytes > 3 * 64 * 64 * 4


def test_a_codec_that_cannot_be_counted_is_passed_over_with_the_reason() -> None:
    text = describe(plan.Plan(small(), card(24)), "small.toml")
    assert "grey levels" in text
    gone = small("vqgan.checkpoint=x.ckpt", "vqgan.config=gone.yaml")
    text = describe(plan.Plan(gone, card(24)), "small.toml")
    assert "gone.yaml" in text and "decoding" not in text


# -- the plan --------------------------------------------------------------------------------------


def test_times_follow_from_flops_and_the_assumed_share() -> None:
    found = plan.Plan(small(), card(24), images=1600)
    step = found.step_seconds
    assert found.step_flops == 16 * 6 * flops_by_hand()
    assert step.expected == pytest.approx(found.step_flops / 40e12)
    assert (step.least, step.most) == pytest.approx(
        (found.step_flops / 45e12, found.step_flops / 25e12)
    )
    text = describe(found, "small.toml")
    assert "assumed, not measured on this GPU: 0.40" in text
    assert "an epoch of 1,600 images" in text and "10 epochs" in text
    two = plan.Plan(small(), card(24), gpus=2)
    assert two.step_seconds.expected == pytest.approx(step.expected / 2)


def test_a_mini_batch_that_does_not_fit_is_told_what_to_be() -> None:
    needed = Cost(small()).training_bytes(bf16=True)
    room = needed.at(9) / plan.GIB / plan.USABLE
    found = plan.Plan(small(), card(room))
    assert (found.plain.largest, found.plain.best) == (9, 8)
    assert not found.checkpointing
    text = describe(found, "small.toml")
    assert "does not fit" in text and "trainer.mini_batch_size = 8" in text
    assert "trainer.gradient_checkpointing = true" in text
    tight = (needed.at(1) - 1000) / plan.GIB / plan.USABLE
    found = plan.Plan(small(), card(tight))
    assert found.plain.largest == 0 and found.checkpointing
    assert found.step_flops == 16 * 8 * flops_by_hand()


def test_a_card_without_bf16_is_counted_in_float32() -> None:
    with_it, without = (plan.Plan(small(), card(24, bf16)) for bf16 in (100.0, None))
    assert without.plain.needed.per_sample > 1.3 * with_it.plain.needed.per_sample
    assert without.step_seconds.expected == pytest.approx(without.step_flops / 4e12)
    assert "float32" in describe(without, "small.toml")


def test_a_network_too_large_for_the_card_says_so_and_what_to_change(
    run: Callable[..., tuple[int, str, str]],
) -> None:
    code, out, err = run("--memory", "0.01", "--tflops", "10")
    assert (code, err) == (0, "")
    assert "too large for this card" in out and "net.dim" in out and "ema_decay = 0" in out
    assert "rtx3080" in out and "optimiser step" not in out


def test_an_unknown_gpu_is_refused_with_the_nearest_names(
    run: Callable[..., tuple[int, str, str]],
) -> None:
    code, out, err = run("--gpu", "rtx4900")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1 and "rtx4090" in err and "--tflops" in err
    assert run()[0] == 2
    assert run("--gpu", "h100", "--gpus", "0")[0] == 2
    assert "batch_size" in run("--gpu", "h100", "--gpus", "3")[2]


def test_what_speed_py_measured_replaces_the_assumption(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    path, numbers = tmp_path / "speed.json", tmp_path / "plan.json"
    source = "speed.json, 2026-01-01"
    entry = {"train": 0.5, "tflops": 700.0, "precision": "bf16", "source": source}
    path.write_text(json.dumps({"efficiency": {"NVIDIA H100 80GB HBM3": entry}, "rows": []}))
    code, out, err = run("--gpu", "h100", "--efficiency", str(path), "--json", str(numbers))
    assert (code, err) == (0, "")
    assert "measured: 50% of 700 TFLOP/s (speed.json, 2026-01-01), a tenth" in out
    assert "assumed, not measured" in out  # sampling
    found = json.loads(numbers.read_text())
    expected = 16 * 6 * flops_by_hand() / 350e12
    assert found["optimiser_step_seconds"]["expected"] == pytest.approx(expected)
    assert "measured on NVIDIA H100" in run("--gpu", "a100-80", "--efficiency", str(path))[2]
    assert "measured:" in run("--gpu", "H100", "--efficiency", str(path))[1]


def test_a_measured_machine_needs_no_entry_in_the_table(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    path = tmp_path / "speed.json"
    entry = {"train": 0.5, "tflops": 0.4, "precision": "bf16"}
    path.write_text(json.dumps({"Some CPU @ 2 GHz": entry}))
    code, out, err = run("--efficiency", str(path), "--memory", "16")
    assert (code, err) == (0, "")
    assert "Some CPU" in out and "measured: 50% of 0.4 TFLOP/s" in out
    assert "--memory" in run("--efficiency", str(path))[2]


@pytest.mark.parametrize(
    ("device", "key"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("NVIDIA A100-PCIE-40GB", "a100-40"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
    ],
)
def test_a_device_is_found_in_the_table_by_its_own_name(device: str, key: str) -> None:
    assert [name for name in plan.CARDS if plan.same_card(name, device)] == [key]


def test_measurements_that_are_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for content in ("[1]", "{", '{"cpu": 3}'):
        path.write_text(content)
        with pytest.raises(UserError, match="x.json"):
            plan.read_efficiency(path)
    assert isinstance(plan.read_efficiency(script.MEASURED), dict)


def test_every_card_of_the_table_can_be_planned_for() -> None:
    for name, entry in plan.CARDS.items():
        rate = plan.rate_of(entry, name, "train", {}, bf16=entry.bf16 is not None)
        assert 0 < rate.slow < rate.expected < rate.fast and math.isfinite(rate.fast)
        assert plan.rate_of(entry, name, "train", {}, bf16=False).fast > 0
