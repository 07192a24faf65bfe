"""A released folder: half the size, nothing else needed, the same pictures."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Ended, contents, poison, write_run_file
from vqgan_cases import CASES, CODES

from sundae.checkpoint import list_checkpoints, open_checkpoint
from sundae.codecs import open_codec
from sundae.latent_format import Manifest
from sundae.latent_writer import write_latents
from sundae.release import main, release
from sundae.vqgan import load_vqgan
from sundae.vqgan.convert import save_codec

Script = Callable[..., Ended]


def trained(tmp_path: Path, script: Script, *, half: bool = True) -> Path:
    """A run of two steps on tokens of a codec that float16 holds, or does not."""
    case = CASES["taming"](tmp_path)
    codec_file = tmp_path / "codec.safetensors"
    save_codec(load_vqgan(case.checkpoint, case.config), codec_file, half=half)
    codec = load_vqgan(codec_file)
    tokens = np.random.default_rng(0).integers(0, CODES, (12, 4, 4))
    manifest = Manifest(
        codec=codec.identity,
        codebook_size=CODES,
        latent_shape=(4, 4),
        mirrored=False,
        classes=("a", "b", "c"),
        sources=tuple(f"{i}.png" for i in range(12)),
        labels=tuple(i % 3 for i in range(12)),
    )
    write_latents(tmp_path / "latents", tokens, manifest)
    changes = {
        "data.train_root": None,
        "data.eval_root": None,
        "data.root": str(tmp_path / "latents"),
        "data.split_sizes": [0.7, 0.3],
        "data.vocab_size": CODES,
        "vqgan.checkpoint": str(codec_file),
        "vqgan.latent_shape": [4, 4],
    }
    run_file = write_run_file(tmp_path, tmp_path, changes)
    run = tmp_path / "run"
    ended = script("train", "--cfg-path", run_file, "--run-dir", run, "--seed", 0)
    assert ended.code == 0, ended
    return run


def test_a_released_pair_needs_nothing_else_and_draws_the_same(
    tmp_path: Path, script: Script
) -> None:
    run, out = trained(tmp_path, script), tmp_path / "elsewhere" / "released"
    assert main([str(run), str(out)]) == 0
    (tmp_path / "codec.safetensors").unlink()
    checkpoint, original = open_checkpoint(out), open_checkpoint(run)
    assert open_codec(checkpoint.config).identity == original.info.codec
    wanted = original.load_network().state_dict()
    for name, weight in checkpoint.load_network().state_dict().items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, wanted[name].half().float())
    ended = script("sample", "--resume", out, "--seed", 1, "--out-dir", tmp_path / "pictures")
    assert ended.code == 0, ended
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 5
    last = list_checkpoints(run)[-1]
    assert (out / "model.safetensors").stat().st_size < (
        last / "model.safetensors"
    ).stat().st_size * 0.6


def test_a_codec_that_float16_changes_is_refused_with_the_way_out(
    tmp_path: Path, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(tmp_path, script, half=False)
    assert main([str(run), str(tmp_path / "out")]) == 2
    assert "convert --half" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_weights_that_are_not_finite_are_not_released(
    tmp_path: Path, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(tmp_path, script)
    (last,) = list_checkpoints(run)
    earlier = shutil.copytree(last, last.with_name("step-0000001"))

    def refusal(value: float) -> str:
        name = poison(last / "ema.safetensors", value)
        assert main([str(run), str(tmp_path / "out")]) == 2
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err.replace(name, "NAME")

    assert refusal(1e6) == f"error: {last}: NAME is beyond the range of float16\n"
    assert refusal(math.nan) == (
        f"error: {last}/ema.safetensors: NAME holds NaN or infinite values; "
        f"the last good checkpoint of the run is {earlier} (--resume {earlier})\n"
    )
    assert main([str(earlier), str(tmp_path / "out")]) == 0


def test_a_release_replaces_only_when_asked_and_keeps_the_card(
    tmp_path: Path, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = trained(tmp_path, script), tmp_path / "out"
    out.mkdir()
    (out / "README.md").write_text("what this is")
    assert main([str(run), str(out)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert list(contents(out)) == ["README.md"]
    release(run, out, overwrite=True)
    assert (out / "README.md").read_text() == "what this is"
    assert (out / "vqgan.json").is_file()


def test_a_prior_on_pixels_has_no_codec_to_release(
    tmp_path: Path, script: Script, run_file: Callable[..., Path]
) -> None:
    ended = script("train", "--cfg-path", run_file(), "--run-dir", tmp_path / "run")
    assert ended.code == 0, ended
    assert main([str(tmp_path / "run"), str(tmp_path / "out")]) == 2


def test_a_folder_that_holds_anything_else_is_never_replaced(
    tmp_path: Path, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(tmp_path, script)
    before = contents(run)
    assert main([str(run), str(run), "--overwrite"]) == 2
    assert "no part of a release" in capsys.readouterr().err
    assert contents(run) == before
