"""train-vqgan.py from end to end, on images and a network that are as small as they can be."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import contents, poison
from safetensors.torch import load_file
from test_codec_training_config import crop_values, values

from sundae.codec.vqgan import load_vqgan
from sundae.codec_training import experiment
from sundae.common import images
from sundae.common.images import load_image, save_image
from sundae.prior.checkpoint import open_checkpoint
from sundae.prior.run import list_checkpoints, mark_best

SCRIPT = Path(__file__).parents[1] / "train-vqgan.py"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with images/ and run.yaml, as the working directory."""
    (tmp_path / "images").mkdir()
    generator = torch.Generator().manual_seed(0)
    for index in range(20):
        image = torch.rand(3, 4, 4, generator=generator).repeat_interleave(4, 1)
        save_image(image.repeat_interleave(4, 2), tmp_path / "images" / f"{index}.png")
    training = {
        "max_steps": 4, "mini_batch_size": 2, "nb_batches": [2, 1], "checkpoint_frequency": 2,
        "keep_checkpoints": 0, "ema_decay": 0.9, "disc_start": 1, "disc_width": 8,
        "disc_layers": 2, "restart_every": 1, "eval_fraction": 0.2,
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values(**training)))
    crops = crop_values(**training | {"size": 12, "crops": 2})
    (tmp_path / "crops.yaml").write_text(yaml.safe_dump(crops))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The script's exit code."""
    spec = importlib.util.spec_from_file_location("train_vqgan", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    base = ["--dataset-in", "images", "--no-cuda", "--quiet", "--seed", "3"]
    monkeypatch.setattr(sys, "argv", [SCRIPT.name, *base, *arguments])
    try:
        script.run_cli(script.main)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_a_run_leaves_a_codec_that_loads_and_everything_to_look_at(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(monkeypatch, "--cfg-path", "run.yaml", "--run-dir", "run") == 0
    codec = load_vqgan(folder / "run")
    assert (codec.codebook_size, codec.factor, codec.resolution) == (16, 2, 16)
    averaged = load_file(folder / "run" / "checkpoints" / "step-0000004" / "ema.safetensors")
    weights = dict(codec.model.state_dict())
    expected = {n[6:]: t for n, t in averaged.items() if n.startswith("vqgan.")}
    torch.testing.assert_close(weights, expected, rtol=0, atol=0)
    assert (folder / "run" / "reconstructions" / "step-0000004.png").is_file()
    header = (folder / "run" / "curves.csv").read_text().splitlines()[0]
    assert {"train/adaptive_weight", "eval/perplexity"} <= set(header.split(","))


def test_a_codec_learns_from_crops_of_images_of_all_sizes_and_is_for_whole_ones(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment, "_GRID_PIXELS", 2 * 2 * 12**2)
    monkeypatch.setattr(images, "_CELL_SIDE", 1)
    for index in range(0, 20, 3):
        save_image(torch.rand(3, 12 + index, 14), folder / "images" / f"{index}.png")
    crops = ("--cfg-path", "crops.yaml", "--set", "training.nb_pictures=2")
    assert run(monkeypatch, *crops, "--run-dir", "run") == 0
    assert load_vqgan(folder / "run").resolution is None
    shown = load_image(folder / "run" / "reconstructions" / "step-0000004.png")
    assert max(shown.size) == 2 * (12 + 2) + 2
    assert run(monkeypatch, *crops, "--run-dir", "even", "--set", "training.eval_size=24") == 0
    even = folder / "even"
    for codec in (load_vqgan(even), load_vqgan(even / "vqgan.ckpt", even / "vqgan.yaml")):
        assert (codec.resolution, codec.family) == (24, "ldm")


@pytest.mark.parametrize("name", ["run.yaml", "crops.yaml"])
def test_a_resumed_run_equals_an_unbroken_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    assert run(monkeypatch, "--cfg-path", name, "--run-dir", "whole") == 0
    assert run(
        monkeypatch, "--cfg-path", name, "--run-dir", "broken",
        "--set", "training.max_steps=2", "--set", "training.restart_until=1",
    ) == 0  # fmt: skip
    assert run(
        monkeypatch, "--resume", "broken", "--set", "training.max_steps=4",
        "--set", "training.restart_until=0.8",
    ) == 0  # fmt: skip
    for weights in ("model.safetensors", "ema.safetensors"):
        whole, broken = (
            load_file(folder / which / "checkpoints" / "step-0000004" / weights)
            for which in ("whole", "broken")
        )
        torch.testing.assert_close(whole, broken, rtol=0, atol=0)
    identities = [
        json.loads((folder / which / "vqgan.json").read_text())["identity"]
        for which in ("whole", "broken")
    ]
    assert identities[0] == identities[1]


def test_a_run_whose_best_checkpoint_is_not_its_last_goes_on_from_the_last(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(monkeypatch, "--cfg-path", "run.yaml", "--run-dir", "run") == 0
    first, last = list_checkpoints(Path("run"))
    mark_best(Path("run"), first, "loss", 0.5)
    assert open_checkpoint(Path("run"), kind="vqgan").folder == first
    written = last.stat().st_mtime_ns
    assert run(monkeypatch, "--resume", "run", "--set", "training.max_steps=6") == 0
    names = [path.name for path in list_checkpoints(Path("run"))]
    assert names == ["step-0000002", "step-0000004", "step-0000006"]
    assert last.stat().st_mtime_ns == written  # going on from the first would write it again


def test_a_codec_that_explodes_is_not_exported_and_the_last_good_checkpoint_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--cfg-path", "run.yaml", "--run-dir", "run") == 0
    before = contents(Path("run"))
    explosive = ("--set", "training.learning_rate=1e30", "--set", "training.max_steps=6")
    capsys.readouterr()
    assert run(monkeypatch, "--resume", "run", *explosive) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: the encoder produced NaN or infinite latents at step 5; likely")
    assert "learning_rate = 1e+30 (raised from " in line
    assert line.endswith(
        "; the last good checkpoint is run/checkpoints/step-0000004: lower training.learning_rate, "
        "set training.clip_grad or add --no-amp, and go on with --resume run\n"
    )
    after = contents(Path("run"))
    weights = [name for name in before if name.startswith(("checkpoints", "vqgan"))]
    assert [name for name in after if name.startswith(("checkpoints", "vqgan"))] == weights
    assert all(after[name] == before[name] for name in weights)
    assert run(monkeypatch, "--resume", "run", "--set", "training.max_steps=5") == 0


def test_a_codec_run_does_not_go_on_from_what_is_not_finite(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--cfg-path", "run.yaml", "--run-dir", "run") == 0
    earlier, last = list_checkpoints(Path("run"))
    tensor = poison(last / "ema.safetensors")
    capsys.readouterr()
    assert run(monkeypatch, "--resume", "run", "--set", "training.max_steps=6") == 2
    line = capsys.readouterr().err
    assert line.startswith(f"error: {last}/ema.safetensors: {tensor} holds NaN or infinite values")
    flags = line.rsplit("go on with ", 1)[1].split()
    assert flags == ["--resume", str(earlier), "--run-dir", "NEW"]
    assert run(monkeypatch, *flags, "--set", "training.max_steps=3") == 0
    assert [path.name for path in list_checkpoints(Path("NEW"))] == ["step-0000003"]


def test_nothing_is_written_with_no_save(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "--cfg-path", "run.yaml", "--no-save") == 0
    assert sorted(path.name for path in folder.iterdir()) == ["crops.yaml", "images", "run.yaml"]


def test_what_a_user_gets_wrong_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*arguments: str) -> str:
        assert run(monkeypatch, *arguments) == 2
        error = capsys.readouterr().err.strip()
        assert "\n" not in error
        return error

    assert "give --cfg-path FILE, or --resume RUN" in refused()
    assert "did you mean 'mirror'" in refused("--cfg-path", "run.yaml", "--set", "training.miror=1")
    assert "does not exist" in refused("--cfg-path", "run.yaml", "--dataset-in", "nowhere")
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    assert "is not installed" in refused(
        "--cfg-path", "run.yaml", "--set", "training.perceptual=efficientnet-lite0"
    )
    assert sorted(path.name for path in folder.iterdir()) == ["crops.yaml", "images", "run.yaml"]
