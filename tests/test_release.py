"""A released folder: half the size, nothing else needed, the same images."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Ended, contents, poison, write_run_file
from vqgan_cases import CASES, CODES

from sundae.codec.interface import open_codec
from sundae.codec.vqgan import load_vqgan
from sundae.codec.vqgan.convert import save_codec
from sundae.common.naming import path_component
from sundae.data.format import Manifest
from sundae.data.writer import write_latents
from sundae.prior.checkpoint import open_checkpoint
from sundae.prior.release import _FILES, _portable, release
from sundae.prior.run import list_checkpoints

ROOT = Path(__file__).parents[1]
Script = Callable[..., Ended]


def trained(tmp_path: Path, script: Script, *, half: bool = True, **extra: Any) -> Path:
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
    run_file = write_run_file(tmp_path, tmp_path, changes | extra)
    run = tmp_path / "run"
    ended = script("train", "--cfg-path", run_file, "--run-dir", run, "--seed", 0)
    assert ended.code == 0, ended
    return run


def test_a_released_pair_needs_nothing_else_and_draws_the_same(
    tmp_path: Path, script: Script
) -> None:
    run, out = trained(tmp_path, script), tmp_path / "elsewhere" / "released"
    assert script("release", run, out).code == 0
    (tmp_path / "codec.safetensors").unlink()
    checkpoint, original = open_checkpoint(out), open_checkpoint(run)
    assert open_codec(checkpoint.config).identity == original.info.codec
    wanted = original.load_network().state_dict()
    for name, weight in checkpoint.load_network().state_dict().items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, wanted[name].half().float())
    ended = script("sample", "--resume", out, "--seed", 1, "--out-dir", tmp_path / "images")
    assert ended.code == 0, ended
    assert len(list((tmp_path / "images").glob("*.png"))) == 5
    last = list_checkpoints(run)[-1]
    assert (out / "model.safetensors").stat().st_size < (
        last / "model.safetensors"
    ).stat().st_size * 0.6


def test_a_codec_that_float16_changes_is_refused_with_the_way_out(
    tmp_path: Path, script: Script
) -> None:
    run = trained(tmp_path, script, half=False)
    assert "convert-vqgan.py --half" in script("release", run, tmp_path / "out").refusal()
    assert not (tmp_path / "out").exists()


def test_weights_that_are_not_finite_are_not_released(tmp_path: Path, script: Script) -> None:
    run = trained(tmp_path, script)
    (last,) = list_checkpoints(run)
    earlier = shutil.copytree(last, last.with_name("step-0000001"))

    def refusal(value: float) -> str:
        name = poison(last / "ema.safetensors", value)
        line = script("release", run, tmp_path / "out").refusal()
        assert not (tmp_path / "out").exists()
        return line.replace(name, "NAME")

    assert refusal(1e6) == f"error: {last}: NAME is beyond the range of float16\n"
    assert refusal(math.nan) == (
        f"error: {last}/ema.safetensors: NAME holds NaN or infinite values; "
        f"the last good checkpoint of the run is {earlier} (--resume {earlier})\n"
    )
    assert script("release", earlier, tmp_path / "out").code == 0


def test_a_release_replaces_only_when_asked_and_keeps_the_card(
    tmp_path: Path, script: Script
) -> None:
    run, out = trained(tmp_path, script), tmp_path / "out"
    out.mkdir()
    (out / "README.md").write_text("what this is")
    assert "--overwrite" in script("release", run, out).refusal()
    assert list(contents(out)) == ["README.md"]
    release(run, out, overwrite=True)
    assert (out / "README.md").read_text() == "what this is"
    assert (out / "vqgan.json").is_file()


def test_a_prior_on_pixels_has_no_codec_to_release(
    tmp_path: Path, script: Script, run_file: Callable[..., Path]
) -> None:
    ended = script("train", "--cfg-path", run_file(), "--run-dir", tmp_path / "run")
    assert ended.code == 0, ended
    assert "no codec to release" in script("release", tmp_path / "run", tmp_path / "out").refusal()


def test_a_folder_that_holds_anything_else_is_never_replaced(
    tmp_path: Path, script: Script
) -> None:
    run = trained(tmp_path, script)
    before = contents(run)
    assert "no part of a release" in script("release", run, run, "--overwrite").refusal()
    assert contents(run) == before


def test_a_released_folder_says_nothing_of_its_authors_machine(
    tmp_path: Path, script: Script
) -> None:
    extra = {
        "trainer.exp_name": "../../secret",
        "wandb.project": "mine",
        "wandb.entity": "me",
        "wandb.name": "mine",
    }
    run, out = trained(tmp_path, script, **extra), tmp_path / "out"
    release(run, out)
    text = (out / "checkpoint.json").read_text()
    assert str(tmp_path) not in text and str(tmp_path.parent) not in text
    config = json.loads(text)["config"]
    assert config["trainer"]["exp_name"] == path_component("../../secret") == "_.._secret"
    assert config["trainer"]["exp_dir"] == "exp"
    assert config["data"]["root"] == "latents"
    assert config["vqgan"] == {"checkpoint": "vqgan.safetensors", "latent_shape": [4, 4]}
    assert config["wandb"] == {"mode": "online"}
    # Whatever says how the network was trained is all there.
    ours, theirs = open_checkpoint(out).config, open_checkpoint(run).config
    assert (ours.net, ours.sampling) == (theirs.net, theirs.sampling)
    assert ours.trainer.learning_rate == theirs.trainer.learning_rate
    assert ours.data.split_sizes == theirs.data.split_sizes


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("data/emoji64-latents", "data/emoji64-latents"),
        ("exp", "exp"),
        ("/home/me/data", "data"),
        ("../data", "data"),
        ("data/../../me", "me"),
        ("~me/data", "data"),
        ("C:\\Users\\me\\data", "data"),
        ("\\\\server\\share\\data", "data"),
        ("/", "unnamed"),
        ("..", "unnamed"),
    ],
)
def test_paths_that_lead_elsewhere_keep_their_last_component(path: str, expected: str) -> None:
    assert _portable(path) == expected


def test_nothing_but_its_files_is_ever_in_a_released_folder(tmp_path: Path, script: Script) -> None:
    run, out = trained(tmp_path, script), tmp_path / "out"
    (list_checkpoints(run)[-1] / "private.txt").write_text("mine")
    release(run, out)
    assert contents(out).keys() == _FILES - {"README.md"}
    (out / "README.md").write_text("what this is")
    release(run, out, overwrite=True)
    assert contents(out).keys() == _FILES
    release(out, tmp_path / "again")  # a released folder is a checkpoint, too
    assert contents(tmp_path / "again").keys() == _FILES - {"README.md"}
    assert {path.name for path in tmp_path.iterdir() if path.name.startswith(".")} == set()


def test_links_in_out_are_not_followed_and_given_away(tmp_path: Path, script: Script) -> None:
    run, out = trained(tmp_path, script), tmp_path / "out"
    private = tmp_path / "private.txt"
    private.write_text("mine")
    out.mkdir()
    (out / "README.md").symlink_to(private)
    assert "README.md is no plain file" in script("release", run, out, "--overwrite").refusal()
    (out / "README.md").unlink()
    (out / "README.md").mkdir()
    assert "README.md is no plain file" in script("release", run, out, "--overwrite").refusal()
    (tmp_path / "link").symlink_to(out)
    assert (
        "link is a link; give" in script("release", run, tmp_path / "link", "--overwrite").refusal()
    )
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    assert "dangling is a link" in script("release", run, tmp_path / "dangling").refusal()
    assert "private.txt is no folder" in script("release", run, private, "--overwrite").refusal()
    line = script("release", run, tmp_path / "private.txt" / "\x1b[31m" / "out").refusal()
    assert r"\x1b[31m" in line and "\x1b" not in line
    assert private.read_text() == "mine"
    assert sorted(path.name for path in out.iterdir()) == ["README.md"]


def test_links_out_of_the_run_are_refused_and_a_run_behind_a_link_is_not(
    tmp_path: Path, script: Script
) -> None:
    run, out = trained(tmp_path, script), tmp_path / "out"
    (tmp_path / "link").symlink_to(run)
    release(tmp_path / "link", out)
    checkpoint = list_checkpoints(run)[-1]
    moved = tmp_path / "moved"
    for path in (checkpoint / "ema.safetensors", checkpoint / "checkpoint.json", checkpoint):
        path.rename(moved)
        path.symlink_to(moved)
        line = script("release", run, out, "--overwrite").refusal()
        assert f"leads out of {run}" in line and str(moved) in line
        if path == checkpoint:
            release(checkpoint, out, overwrite=True)  # what was named itself may be a link
        path.unlink()
        moved.rename(path)
    inside = run / "weights"
    (checkpoint / "model.safetensors").rename(inside)
    (checkpoint / "model.safetensors").symlink_to(inside)
    release(run, out, overwrite=True)


# Dies as soon as the old folder is out of its place, on a system that cannot exchange folders.
DYING = """
import os, signal, sys
from pathlib import Path
from sundae.common import folders
from sundae.prior import release

def replace(source, target):
    rename(source, target)
    if str(target).endswith(".replaced"):
        os.kill(os.getpid(), signal.SIGKILL)

rename, os.replace = os.replace, replace
folders._exchange = lambda first, second: False
release.release(*map(Path, sys.argv[1:]), overwrite=True)
"""


def test_killed_while_it_replaces_a_release_leaves_the_old_one(
    tmp_path: Path, script: Script
) -> None:
    run, out = trained(tmp_path, script), tmp_path / "out"
    release(run, out)
    (out / "README.md").write_text("what this is")
    before = contents(out)
    done = subprocess.run(
        [sys.executable, "-c", DYING, str(run), str(out)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL and not out.exists()
    assert "out exists; choose another OUT" in script("release", run, out).refusal()
    assert contents(out) == before
    assert open_checkpoint(out).info.step == 2
