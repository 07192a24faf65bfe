"""Converted checkpoints: the same codec, without the YAML."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Ended
from safetensors.torch import load_file, save_file
from vqgan_cases import CASES, Case, random_images

from sundae.codec.vqgan import load_vqgan
from sundae.codec.vqgan.convert import save_codec
from sundae.common.errors import UserError

Script = Callable[..., Ended]


@pytest.mark.parametrize("name", ["taming", "gumbel", "ldm-no-attention-tanh", "llamagen"])
def test_a_converted_file_is_the_same_codec(name: str, tmp_path: Path) -> None:
    case = CASES[name](tmp_path)
    source = load_vqgan(case.checkpoint, case.config, precision="fp32", **case.keywords)
    save_codec(source, tmp_path / "converted")
    converted = load_vqgan(tmp_path / "converted", precision="fp32")
    assert converted.identity == source.identity
    assert (converted.rules, converted.family) == (source.rules, source.family)
    assert converted.resolution == source.resolution
    tokens = source.encode(random_images())
    assert torch.equal(converted.encode(random_images()), tokens)
    assert torch.equal(converted.decode(tokens), source.decode(tokens))


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return CASES["taming"](tmp_path)


def test_the_command_line_converts_and_does_not_overwrite(
    case: Case, tmp_path: Path, script: Script
) -> None:
    target = tmp_path / "small.safetensors"
    arguments = ["convert-vqgan", case.checkpoint, target, "--config", case.config]
    ended = script(*arguments)
    assert ended.code == 0 and load_vqgan(target).identity in ended.out
    description = json.loads((tmp_path / "small.json").read_text())
    assert description["rules"] == {"distance": "l2", "input_range": "signed", "tanh_out": False}
    assert (description["codebook_size"], description["factor"]) == (64, 4)
    before = target.read_bytes()
    refusal = script(*arguments).refusal()
    assert "exists; choose another destination or pass --overwrite" in refusal
    assert target.read_bytes() == before
    assert script(*arguments, "--overwrite").code == 0


def test_a_failed_conversion_writes_nothing(case: Case, tmp_path: Path, script: Script) -> None:
    assert script("convert-vqgan", case.checkpoint, tmp_path / "out").refusal()
    line = script("convert-vqgan", tmp_path / "\x1b[31m.ckpt", tmp_path / "out").refusal()
    assert r"\x1b[31m.ckpt" in line and "\x1b" not in line
    assert not (tmp_path / "out").exists()


def test_what_float16_cannot_hold_and_what_is_not_finite_are_named(
    case: Case, tmp_path: Path, script: Script
) -> None:
    def refused(value: float, *flags: str) -> str:
        save_codec(load_vqgan(case.checkpoint, case.config), tmp_path / "x", overwrite=True)
        weights = tmp_path / "x" / "vqgan.safetensors"
        tensors = load_file(weights)
        tensors["quant_conv.bias"][2] = value
        save_file(tensors, weights)
        (tmp_path / "x" / "vqgan.json").unlink()
        rules = ("--distance", "l2", "--input-range", "signed")
        line = script("convert-vqgan", weights, tmp_path / "out", *rules, *flags).refusal()
        assert not (tmp_path / "out").exists()
        return line

    assert refused(1e6, "--half") == (
        "error: quant_conv.bias is beyond the range of float16; leave out --half\n"
    )
    for flags in ([], ["--half"]):
        assert refused(float("nan"), *flags) == (
            f"error: {tmp_path}/x/vqgan.safetensors: quant_conv.bias holds NaN or infinite values; "
            "use another checkpoint\n"
        )


def test_weights_and_json_of_different_codecs_are_refused(case: Case, tmp_path: Path) -> None:
    save_codec(load_vqgan(case.checkpoint, case.config), tmp_path / "x")
    weights = tmp_path / "x" / "vqgan.safetensors"
    tensors = load_file(weights)
    tensors["quant_conv.bias"] = tensors["quant_conv.bias"] + 1
    save_file(tensors, weights)
    with pytest.raises(UserError, match="do not belong together"):
        load_vqgan(tmp_path / "x")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": 9}, "has version 9, expected 1"),
        ({"rules": {"distance": "l2"}}, "is damaged"),
        ({"architecture": {"stem": 32}}, "is damaged"),
        ({"architecture": None}, "is damaged"),
        ({"rules": {"distance": "no", "input_range": "unit", "tanh_out": False}}, "distance must"),
    ],
)
def test_a_json_that_is_not_ours_is_refused(
    change: dict[str, object], says: str, case: Case, tmp_path: Path
) -> None:
    save_codec(load_vqgan(case.checkpoint, case.config), tmp_path / "x")
    path = tmp_path / "x" / "vqgan.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=says):
        load_vqgan(tmp_path / "x")


def test_rules_stated_against_a_converted_file_stop(case: Case, tmp_path: Path) -> None:
    save_codec(load_vqgan(case.checkpoint, case.config), tmp_path / "x")
    assert load_vqgan(tmp_path / "x", distance="l2").rules.distance == "l2"
    with pytest.raises(UserError, match="input_range was stated as unit, .* has signed"):
        load_vqgan(tmp_path / "x", input_range="unit")
