"""benchmarks/holes.py: the loss in a hole, and completions beside the originals."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import holes
import pytest
import torch
from conftest import LEVELS, Ended
from PIL import Image
from torch import Tensor, nn

from sundae.config.run_file import RunConfig

Script = Callable[..., Ended]
RunFile = Callable[..., Path]


class Fake:
    """What `hole_loss` needs of a sampler, with a network that believes what it is given."""

    device = torch.device("cpu")

    def __init__(self, cfg: RunConfig, sure: float) -> None:
        self.cfg, self.sure = cfg, sure

    def _denoise(self, tokens: Tensor, classes: Tensor | None) -> Tensor:
        assert classes is not None and classes.tolist() == [3] * len(tokens)
        return nn.functional.one_hot(tokens, LEVELS).float() * self.sure

    def class_rows(self, classes: None, count: int, *, null_default: bool) -> Tensor:
        assert null_default
        return torch.full((count,), 3)


def test_the_hole_is_the_middle_half() -> None:
    hole = holes.central_hole((4, 8))
    assert hole[1:3, 2:6].all() and hole.sum() == 8


@pytest.mark.parametrize(("rate", "noise"), [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)])
def test_the_loss_is_that_of_the_tokens_in_the_hole(
    config: Callable[..., RunConfig], rate: float, noise: float
) -> None:
    tokens = torch.arange(16_000).view(-1, 4, 4) % LEVELS
    sampler: Any = Fake(config(), sure=2.0)
    found = holes.hole_loss(sampler, tokens, holes.central_hole((4, 4)), 0, rate)
    total = math.log(math.exp(2) + LEVELS - 1)
    right = 1 - noise * (LEVELS - 1) / LEVELS  # some noise is the token that it replaces
    assert found == pytest.approx(total - 2 * right, abs=0.05)


def test_a_table_an_image_and_figures_of_two_runs(
    run_file: RunFile, script: Script, tmp_path: Path
) -> None:
    runs = []
    for name, share in (("plain", 0.0), ("holes", 1.0)):
        changes = {"objective.hole_share": share, "net.class_dropout": 0.1}
        runs.append(tmp_path / name)
        ended = script("train", "--cfg-path", run_file(changes), "--run-dir", runs[-1])
        assert ended.code == 0, ended
    out = tmp_path / "holes.json", tmp_path / "holes.png"
    ended = script(
        "holes", *runs, "--features", "pixels", "--nb-images", 5, "--json", out[0],
        "--image", out[1], "--sampling", "steps=2", "strategy=renoise", "--sampling", "steps=3",
    )  # fmt: skip
    assert ended.code == 0, ended
    assert "steps=2 strategy=renoise" in ended.out
    written = json.loads(out[0].read_text())
    assert list(written["runs"]) == [str(run) for run in runs]
    for found in written["runs"].values():
        assert 0 < found["loss"] < 10
        assert 0 <= found["steps=3"]["right"] <= 1
        assert found["steps=3"]["frechet_distance"] >= 0
    width, height = Image.open(out[1]).size
    assert width > 0 and abs(width / height - 1) < 0.1  # 5 originals, and 2 columns of 2 runs
    wrong = script("holes", runs[0], "--features", "pixels", "--sampling", "stepz=2")
    assert "stepz" in wrong.refusal()
    run = tmp_path / "no-null"
    assert script("train", "--cfg-path", run_file(), "--run-dir", run).code == 0
    assert "null class" in script("holes", run, "--features", "pixels").refusal()
