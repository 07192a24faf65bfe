"""The bundled model: small, whole, and the default of the scripts."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Ended
from PIL import Image

from sundae.codec.interface import open_codec
from sundae.prior import pretrained
from sundae.prior.checkpoint import open_checkpoint
from sundae.prior.pretrained import BUNDLED, checkpoint_or_bundled

Script = Callable[..., Ended]


def test_the_bundled_model_is_small_and_belongs_together() -> None:
    files = [path for path in BUNDLED.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 24e6
    assert {path.suffix for path in files} == {".safetensors", ".json", ".md"}
    checkpoint = checkpoint_or_bundled(None)
    codec = open_codec(checkpoint.config)
    assert codec.identity == checkpoint.info.codec
    height, width = checkpoint.config.grid_shape
    image = codec.decode(torch.zeros(1, height, width, dtype=torch.int64))
    assert image.shape == (1, 3, height * codec.factor, width * codec.factor)
    card = (BUNDLED / "README.md").read_text(encoding="utf-8")
    for fact in ("MIT", "seed", "PSNR", "Known weaknesses", f"{checkpoint.info.step:,} steps"):
        assert fact in card, fact


def test_sample_draws_from_it_without_being_told_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: Script
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = script("sample", "--nb-samples", 2, "--steps", 1, "--seed", 0, "--out-dir", "out")
    assert ended.code == 0, ended
    with Image.open(tmp_path / "out" / "00001.png") as image:
        assert image.size == (64, 64)


def test_what_resume_names_comes_first_and_missing_weights_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: Script, run_file: Callable[..., Path]
) -> None:
    assert script("train", "--cfg-path", run_file(), "--run-dir", tmp_path / "run").code == 0
    named = checkpoint_or_bundled(tmp_path / "run")
    assert named.folder == open_checkpoint(tmp_path / "run").folder
    monkeypatch.setattr(pretrained, "BUNDLED", tmp_path / "nowhere")
    assert "--resume RUN" in script("sample").refusal()
