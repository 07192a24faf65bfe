"""A tiny data set, run files for it, and scripts run inside the test's own process."""

import copy
import importlib
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tomli_w
import torch
from fake_cuda import FakeCuda, fake_cuda
from safetensors.torch import load_file, save_file

from sundae.config.run_file import RunConfig, parse_config
from sundae.config.sections import SamplingConfig
from sundae.data.format import Manifest
from sundae.data.writer import write_latents
from utils import run_cli

CLASSES = ("zero", "one", "two")
LEVELS = 5


def write_tiny_data(root: Path, count: int, classes: int = len(CLASSES)) -> Path:
    """Images of 4x4 pixels in 5 grey levels: the brighter, the later the class."""
    labels = np.arange(count) % classes
    noise = np.random.default_rng(count).integers(0, 2, (count, 4, 4))
    manifest = Manifest(
        codec=f"pixels-{LEVELS}",
        codebook_size=LEVELS,
        latent_shape=(4, 4),
        mirrored=False,
        classes=CLASSES,
        sources=tuple(f"{i}.png" for i in range(count)),
        labels=tuple(labels.tolist()),
    )
    write_latents(root, (labels[:, None, None] + noise).astype(np.uint8), manifest)
    return root


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train (24 images) and eval (12), three classes each."""
    root = tmp_path_factory.mktemp("data")
    write_tiny_data(root / "train", 24)
    write_tiny_data(root / "eval", 12)
    return root


def tiny_values(data: Path, exp_dir: Path) -> dict[str, Any]:
    """Two steps of a network of a few thousand parameters."""
    return {
        "unroll_steps": 2,
        "trainer": {
            "exp_name": "tiny",
            "exp_dir": str(exp_dir),
            "batch_size": 8,
            "nb_batches": [2, 0],
            "max_steps": 2,
            "learning_rate": 1e-2,
            "checkpoint_frequency": 2,
            "ema_decay": 0.5,
            "use_amp": False,  # the same arithmetic on every machine
        },
        "data": {
            "train_root": str(data / "train"),
            "eval_root": str(data / "eval"),
            "vocab_size": LEVELS,
            "sequence_length": 16,
        },
        "sampling": {"steps": 3, "nb_samples": 5, "min_steps": 1},
        "net": {
            "dim": 8,
            "nb_heads": 2,
            "depth": [1, 1, 1],
            "conditional": True,
            "num_classes": len(CLASSES),
        },
    }


def changed(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy with dotted keys set; None takes a key out."""
    values = copy.deepcopy(values)
    for dotted, value in changes.items():
        *sections, last = dotted.split(".")
        table = values
        for section in sections:
            table = table.setdefault(section, {})
        if value is None:
            table.pop(last)
        else:
            table[last] = value
    return values


@pytest.fixture
def config(tiny_data: Path, tmp_path: Path) -> Callable[..., RunConfig]:
    """config({"net.dim": 4}) -> the tiny configuration with those changes."""

    def make(changes: dict[str, Any] | None = None) -> RunConfig:
        values = tiny_values(tiny_data, tmp_path / "exp")
        return parse_config(changed(values, changes or {}), "tiny.toml")

    return make


def write_run_file(folder: Path, data: Path, changes: dict[str, Any]) -> Path:
    """The tiny configuration with some changes, as FOLDER/tiny.toml; its runs go to FOLDER/exp."""
    path = folder / "tiny.toml"
    values = changed(tiny_values(data, folder / "exp"), changes)
    path.write_text(tomli_w.dumps(values), encoding="utf-8")
    return path


@pytest.fixture
def run_file(tiny_data: Path, tmp_path: Path) -> Callable[..., Path]:
    """run_file({"net.dim": 4}) -> a TOML file, the tiny configuration with those changes."""
    return lambda changes=None: write_run_file(tmp_path, tiny_data, changes or {})


@pytest.fixture
def cuda() -> Iterator[FakeCuda]:
    """A CUDA device that is not there, on which everything but autocast works."""
    with fake_cuda() as mode:
        yield mode


def make_schedule(
    steps: int = 100,
    temperature: float = 1.0,
    end_temperature: float = 1.0,
    sample_proportion: float = 1.0,
    end_sample_proportion: float = 1.0,
    min_steps: int = 0,
    early_stop: bool = True,
    strategy: Any = "random",
    **settings: Any,
) -> SamplingConfig:
    """[sampling] with defaults that make every token take every draw."""
    return SamplingConfig(
        steps=steps,
        temperature=temperature,
        end_temperature=end_temperature,
        sample_proportion=sample_proportion,
        end_sample_proportion=end_sample_proportion,
        min_steps=min_steps,
        early_stop=early_stop,
        strategy=strategy,
        **settings,
    )


class Ended(NamedTuple):
    """How a script ended."""

    code: int
    out: str
    err: str

    def refusal(self) -> str:
        """The one line that a user's mistake is answered with."""
        assert self.code == 2, self
        assert self.err.startswith("error: "), self
        assert self.err.count("\n") == 1, self
        return self.err


@pytest.fixture
def script(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ended]:
    """script("train", "--seed", 0) runs train.py on the CPU, without the start of a process."""

    def run(name: str, *arguments: object) -> Ended:
        without = ("convert-vqgan", "get-weights", "release")
        flags = () if name in without else ("--no-cuda", "--quiet")
        words = [f"{name}.py", *map(str, arguments), *flags]
        monkeypatch.setattr(sys, "argv", words)
        capsys.readouterr()
        code = 0
        try:
            run_cli(importlib.import_module(name).main)
        except SystemExit as end:
            code = int(end.code or 0)
        return Ended(code, *capsys.readouterr())

    return run


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def poison(path: Path, value: float = math.nan) -> str:
    """Put a value that is not finite into a checkpoint's weights or moments; returns its name."""
    if path.suffix == ".pt":
        state = torch.load(path)
        state["optimizer"].setdefault("state", {})[0] = {"exp_avg": torch.tensor([0.0, value])}
        torch.save(state, path)
        return "optimizer.state.0.exp_avg"
    weights = load_file(path)
    name = sorted(weights)[-1]
    weights[name].flatten()[-1] = value
    save_file(weights, path)
    return name
