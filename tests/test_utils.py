"""How scripts end, seed and choose a device."""

import argparse
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

import utils
from sundae.common.errors import UserError
from sundae.config.flags import values_of
from sundae.config.run_file import RunConfig, update_config
from sundae.config.sections import FEW_STEPS, SamplingConfig

ROOT = Path(__file__).parents[1]


def run_script(body: str) -> subprocess.CompletedProcess[str]:
    script = f"import utils\ndef main():\n    {body}\nutils.run_cli(main)"
    return subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def test_a_users_mistake_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise UserError("no data in\nx; make some")

    with pytest.raises(SystemExit, match="2"):
        utils.run_cli(main)
    assert capsys.readouterr().err == "error: no data in x; make some\n"


def test_names_in_an_error_or_a_report_cannot_control_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def main() -> None:
        utils.say("skipped \x1b[2J\nx\udce9.png")
        raise UserError("class \x1b[31mred\u202e\x85: expected another")

    with pytest.raises(SystemExit, match="2"):
        utils.run_cli(main)
    assert capsys.readouterr() == (
        "skipped \\x1b[2J\\nx\\udce9.png\n",
        "error: class \\x1b[31mred\\u202e\\x85: expected another\n",
    )


def test_ctrl_c_is_one_line_and_exit_code_130(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="130"):
        utils.run_cli(lambda: signal.raise_signal(signal.SIGINT))
    assert capsys.readouterr().err == "interrupted\n"


def test_our_own_bugs_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        utils.run_cli(lambda: print(1 / 0))


def test_a_reader_that_went_away_is_no_traceback() -> None:
    body = "import os; r, w = os.pipe(); os.close(r); os.dup2(w, 1); print('x' * 10)"
    result = run_script(body)
    assert (result.returncode, result.stderr) == (141, "")


def test_the_same_seed_repeats_every_source_of_randomness() -> None:
    def draw(seed: int) -> tuple[float, float, float]:
        utils.seed_everything(seed)
        return random.random(), float(np.random.rand()), torch.rand(()).item()

    assert draw(0) == draw(0)
    assert all(a != b for a, b in zip(draw(0), draw(1), strict=True))
    assert 0 <= utils.seed_everything(None) < 2**32


def test_without_cuda_the_cpu_is_chosen_and_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    utils._say_once.cache_clear()
    devices = [
        utils.choose_device(no_cuda, quiet) for no_cuda, quiet in [(True, False), (False, True)]
    ]
    assert capsys.readouterr().err == ""
    devices += [utils.choose_device(False), utils.choose_device(False)]
    assert capsys.readouterr().err == "no CUDA device found; running on the CPU\n"
    assert devices == [torch.device("cpu")] * 4
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert utils.choose_device(False) == torch.device("cuda")
    assert utils.choose_device(True) == torch.device("cpu")


def test_common_flags_parse_and_an_explicit_zero_is_a_value() -> None:
    parser = argparse.ArgumentParser()
    utils.add_common_flags(parser)
    args = parser.parse_args(["--seed", "0", "--set", "a=1", "--set", "b=2", "--legacy-cfg"])
    assert (args.seed, args.overrides, args.legacy_cfg) == (0, ["a=1", "b=2"], True)
    assert parser.parse_args([]).overrides == []
    for seed in ("-1", "1.5", "x", str(2**32)):
        with pytest.raises(SystemExit, match="2"):
            parser.parse_args([f"--seed={seed}"])


def test_precision_has_an_older_spelling() -> None:
    parser = argparse.ArgumentParser()
    utils.add_common_flags(parser, "--precision")
    words = ([], ["--precision", "bf16"], ["--no-amp"])
    assert [parser.parse_args(given).precision for given in words] == ["auto", "bf16", "fp32"]
    utils.add_training_flags(parser)
    assert parser.parse_args([]).precision is None  # the run file's


def test_common_flags_can_be_chosen_and_made_required() -> None:
    parser = argparse.ArgumentParser()
    utils.add_common_flags(parser, "--cfg-path", required=True)
    assert vars(parser.parse_args(["--cfg-path", "x"])) == {"cfg_path": "x"}
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args([])


# -- flags of sampling ----------------------------------------------------------------------------


def parse_sampling(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    utils.add_sampling_flags(parser)
    return parser.parse_args(words)


def test_the_help_says_what_auto_means() -> None:
    parser = argparse.ArgumentParser()
    utils.add_sampling_flags(parser)
    text = " ".join(parser.format_help().split())
    assert f"auto is renoise for up to {FEW_STEPS} steps, else random" in text


def with_flags(cfg: RunConfig, *words: str) -> RunConfig:
    return update_config(cfg, values_of(parse_sampling(*words), SamplingConfig))


def test_a_flag_can_select_auto_and_something_else(config: Callable[..., RunConfig]) -> None:
    named = config({"sampling.strategy": "halton"})
    assert with_flags(named, "--strategy", "auto") == config()
    assert with_flags(config(), "--strategy", "halton") == named


def test_every_key_of_sampling_has_a_flag_of_its_name() -> None:
    keys = {field.name for field in fields(SamplingConfig)}
    flags = vars(parse_sampling())
    assert flags.keys() - {"resume", "raw_weights", "cuda_vqgan"} == keys - {"nb_samples"}
    assert all(flags[key] is None for key in keys - {"nb_samples"})


def test_sampling_flags_win_and_what_is_not_given_stays(config: Callable[..., RunConfig]) -> None:
    cfg = config({"sampling.temperature": 0.5, "net.class_dropout": 0.1})
    words = "--strategy halton --top-k 0 --guidance 2 --guidance-curve cosine --temperature 0"
    assert with_flags(cfg, *words.split(), "--no-early-stop").sampling == replace(
        cfg.sampling,
        strategy="halton",
        guidance=2.0,
        guidance_curve="cosine",
        temperature=0.0,
        early_stop=False,
    )
    assert with_flags(cfg) == cfg
    assert with_flags(cfg, "--no-compile").sampling.compile is False
    assert values_of(argparse.Namespace(nb_samples=9), SamplingConfig)["sampling.nb_samples"] == 9
    with pytest.raises(UserError, match="--choice-temperature: expected a number at least 0"):
        with_flags(cfg, "--choice-temperature", "-1")
