"""A folder of real images, in every form people have them, all the way to samples."""

import csv
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from conftest import Ended
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor
from vqgan_cases import CASES, CODES, Case

from sundae.codec.interface import Codec
from sundae.codec.vqgan import load_vqgan
from sundae.data.dataset import Latents, open_latents
from sundae.prior.checkpoint import open_checkpoint

ROOT = Path(__file__).parents[1]
SIDE, GRID = 64, 16
BROKEN = "10/broken.jpg"
IN_ORDER = [
    *("2/1.png", "2/2.png", "2/10.png", "2/cmyk.jpg", "2/grey.png", "2/palette.png"),
    *("10/1.png", "10/deep.png", "10/turned.jpg", "10/wide.png"),
]

Pixels = np.ndarray[Any, np.dtype[np.uint8]]  # (H, W, 3)


def write_images(root: Path) -> dict[str, Pixels]:
    """Cuts of two photographs, one class each; returns what a viewer shows of each file."""
    temple, flower = load_sample_images().images
    (root / "2").mkdir(parents=True)
    (root / "10").mkdir()
    shown = {f"2/{name}.png": cut(temple, 60 * i) for i, name in enumerate((1, 2, 10))}
    shown["10/1.png"] = cut(flower, 150)
    for name, pixels in shown.items():
        Image.fromarray(pixels).save(root / name)
    shown |= write_grey(root, cut(temple, 200)[..., 1], cut(flower, 300)[..., 0])
    shown |= write_colour(root, cut(temple, 300), cut(flower, 350), cut(flower, 380))
    wide = flower[100 : 100 + SIDE, 200 : 200 + SIDE + 32]
    Image.fromarray(wide).save(root / "10/wide.png")
    shown["10/wide.png"] = wide[:, 16:-16]
    Image.fromarray(cut(flower, 40)).save(root / BROKEN, quality=95)
    (root / BROKEN).write_bytes((root / BROKEN).read_bytes()[:-500])
    return shown


def cut(photograph: Pixels, left: int) -> Pixels:
    return photograph[150 : 150 + SIDE, left : left + SIDE]


def write_grey(root: Path, grey: Pixels, deep: Pixels) -> dict[str, Pixels]:
    """8 bits, and 16 bits of which the upper half is enough to tell the grey."""
    Image.fromarray(grey).save(root / "2/grey.png")
    Image.fromarray(deep.astype(np.uint16) * 257).save(root / "10/deep.png")
    assert Image.open(root / "10/deep.png").mode.startswith("I")
    return {"2/grey.png": grey[..., None].repeat(3, 2), "10/deep.png": deep[..., None].repeat(3, 2)}


def write_colour(root: Path, few: Pixels, ink: Pixels, turned: Pixels) -> dict[str, Pixels]:
    """A palette of 16 colours, printer's inks, and a camera held sideways."""
    indexed = Image.fromarray(few).quantize(16)
    indexed.save(root / "2/palette.png")
    palette = np.array(indexed.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
    Image.fromarray(ink).convert("CMYK").save(root / "2/cmyk.jpg", quality=95)
    printed = np.array(Image.open(root / "2/cmyk.jpg").convert("RGB"))
    assert np.abs(printed.astype(int) - ink).mean() < 8  # inks are often stored inverted
    sideways = Image.fromarray(np.rot90(turned))
    exif = sideways.getexif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    sideways.save(root / "10/turned.jpg", exif=exif, quality=95)
    return {
        "2/palette.png": palette[np.array(indexed)],
        "2/cmyk.jpg": printed,
        "10/turned.jpg": np.rot90(np.array(Image.open(root / "10/turned.jpg")), -1),
    }


def run_values(case: Case, latents: Path, exp_dir: Path) -> dict[str, Any]:
    """Two steps of a network of a few thousand parameters."""
    return {
        "unroll_steps": 2,
        "trainer": {
            "exp_name": "images",
            "exp_dir": str(exp_dir),
            "batch_size": 4,
            "nb_batches": [2, 0],
            "max_steps": 2,
            "checkpoint_frequency": 2,
        },
        "data": {
            "root": str(latents),
            "split_sizes": [0.7, 0.3],
            "vocab_size": CODES,
            "sequence_length": GRID**2,
        },
        "vqgan": {
            "config": str(case.config),
            "checkpoint": str(case.checkpoint),
            "latent_shape": [GRID, GRID],
        },
        "sampling": {"steps": 2, "nb_samples": 3, "min_steps": 1},
        "net": {
            "dim": 16,
            "nb_heads": 2,
            "depth": [1, 1, 1],
            "conditional": True,
            "num_classes": 2,
        },
    }


def tensor_of(pixels: Pixels) -> Tensor:
    """(1, 3, H, W) in [0, 1]."""
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255


def share_of_equal(tokens: np.ndarray, codec: Codec, pixels: Pixels) -> float:
    """How many of a row's tokens are what the codec itself says to the image.

    All but one in a hundred counts as all: sums round differently in batches of different sizes,
    and a latent between two codes may fall to either.
    """
    return float((tokens == codec.encode(tensor_of(pixels))[0].numpy()).mean())


def check_latents(latents: Latents, codec: Codec, shown: dict[str, Pixels]) -> None:
    """Every readable image and its mirror image, in natural order, and nothing else."""
    assert list(latents.sources) == IN_ORDER
    assert latents.classes == ("2", "10")
    assert latents.labels is not None
    assert latents.labels.tolist() == [0] * 6 + [1] * 4
    assert latents.tokens.shape == (2 * len(IN_ORDER), GRID, GRID)
    assert latents.codec_identity == codec.identity
    for row, name in enumerate(IN_ORDER):
        assert share_of_equal(latents.tokens[2 * row], codec, shown[name]) > 0.99, name
        mirrored = shown[name][:, ::-1]
        assert share_of_equal(latents.tokens[2 * row + 1], codec, mirrored) > 0.99, name
    assert len(np.unique(latents.tokens)) > CODES // 2  # else equality says little


def check_run(run: Path, codec: Codec) -> None:
    """Trained for two steps from the loss of a network that knows nothing."""
    with (run / "curves.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert int(float(row["step"])) == 2
    assert float(row["train/loss"]) == pytest.approx(math.log(CODES), rel=0.1)
    info = open_checkpoint(run).info
    assert (info.step, info.classes, info.codec) == (2, ["2", "10"], codec.identity)
    (grid,) = (run / "samples").iterdir()
    assert Image.open(grid).size == (2 * (SIDE + 2) + 2, 2 * (SIDE + 2) + 2)


def check_samples(folder: Path, count: int) -> None:
    """As many images as requested, each of the right size, none flat, no two alike."""
    images = [np.array(Image.open(path)) for path in sorted(folder.glob("*.png"))]
    assert len(images) == count
    assert {image.shape for image in images} == {(SIDE, SIDE, 3)}
    assert min(image.std() for image in images) > 1
    assert len({image.tobytes() for image in images}) == count


def psnr_of(codec: Codec, pixels: Pixels) -> float:
    """Of an image's way through the codec, in decibels."""
    images = tensor_of(pixels)
    error = codec.decode(codec.encode(images)) - images
    return -10 * math.log10(error.square().mean())


def test_from_a_folder_of_images_to_samples(
    tmp_path: Path, script: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The same arithmetic on every machine, so that tokens can be compared one by one.
    monkeypatch.setattr("sundae.common.precision.has_bf16", lambda device: False)
    case = CASES["taming"](tmp_path)
    codec = load_vqgan(case.checkpoint, case.config)
    vqgan = ["--cfg-path", case.config, "--ckpt-path", case.checkpoint]
    images, latents, run = (tmp_path / name for name in ("images", "latents", "run"))
    shown = write_images(images)

    ended = script(
        *("generate-latents", *vqgan, "--dataset-in", images, "--latents-out", latents),
        *("--use-class", "--size", SIDE, "--batch-size", 3),
    )
    assert ended.code == 0, ended
    check_latents(open_latents(latents), codec, shown)
    (skipped,) = (latents / "skipped.txt").read_text().splitlines()
    assert re.fullmatch(rf"{BROKEN}\t.*truncated.*", skipped)

    run_file = tmp_path / "images.toml"
    run_file.write_text(tomli_w.dumps(run_values(case, latents, tmp_path)), encoding="utf-8")
    ended = script("train", "--cfg-path", run_file, "--run-dir", run, "--seed", 0)
    assert ended.code == 0, ended
    check_run(run, codec)

    # As a user does: another process, another folder, nothing but the checkpoint.
    command = [sys.executable, str(ROOT / "sample.py"), "--resume", str(run), "--no-cuda"]
    command += ["--nb-samples", "5", "--out-dir", "samples", "--batch-size", "2", "--quiet"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=60)
    check_samples(tmp_path / "samples", 5)

    ended = script("recon-vqgan", images, *vqgan, "--out", tmp_path / "all.png", "--rows", 3)
    assert ended.out.startswith(f"{len(IN_ORDER)} images: PSNR ")
    assert f"skipped {images / BROKEN}: " in ended.out
    assert Image.open(tmp_path / "all.png").size == (2 * (SIDE + 2) + 2, 3 * (SIDE + 2) + 2)
    ended = script("recon-vqgan", images / "2/1.png", *vqgan, "--out", tmp_path / "one.png")
    assert f"PSNR {psnr_of(codec, shown['2/1.png']):.2f} dB" in ended.out


def test_a_checkpoint_that_does_not_say_its_range_is_encoded_as_stated(
    tmp_path: Path, script: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sundae.common.precision.has_bf16", lambda device: False)
    (tmp_path / "vqgan").mkdir()
    case = CASES["diffusers"](tmp_path / "vqgan")
    shown = cut(load_sample_images().images[0], 0)
    (tmp_path / "images").mkdir()
    Image.fromarray(shown).save(tmp_path / "images/1.png")
    command = ["generate-latents", "--ckpt-path", case.checkpoint, "--size", SIDE, "--no-aug"]
    command += ["--dataset-in", tmp_path / "images", "--latents-out", tmp_path / "latents"]
    assert "input_range" in script(*command).refusal()
    for stated in ("signed", "unit"):
        assert script(*command, "--input-range", stated, "--overwrite").code == 0
        codec = load_vqgan(case.checkpoint, input_range=stated)
        (tokens,) = open_latents(tmp_path / "latents").tokens
        assert share_of_equal(tokens, codec, shown) > 0.99, stated
    signed = load_vqgan(case.checkpoint, input_range="signed")
    assert share_of_equal(tokens, signed, shown) < 0.9
