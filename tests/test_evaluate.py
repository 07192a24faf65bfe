"""evaluate.py on data with known answers: sides, floor, statistics, copies, refusals."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import LEVELS, Ended, write_tiny_data
from PIL import Image

Script = Callable[..., Ended]


def write_images(root: Path, count: int, seed: int, classes: int = 2, size: int = 16) -> Path:
    """Noise whose mean brightness is that of the class; file names continue over classes."""
    generator = np.random.default_rng(seed)
    for number in range(count):
        folder = root / f"class{number % classes}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 100, (size, size, 3)) + 150 * (number % classes)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{seed}-{number:03d}.png")
    return root


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images", 60, seed=0)


@pytest.fixture
def evaluate(script: Script, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """evaluate(SAMPLES, REFERENCE ...) -> what evaluation.json says."""

    def run(*arguments: object) -> dict[str, Any]:
        out = tmp_path / "out"
        ended = script("evaluate", *arguments, "--features", "pixels", "--overwrite",
                       "--out-dir", out)  # fmt: skip
        assert ended.code == 0, ended
        found: dict[str, Any] = json.loads((out / "evaluation.json").read_text("utf-8"))
        return found

    return run


def test_a_folder_beside_itself_is_at_no_distance(
    evaluate: Callable[..., dict[str, Any]], images: Path, tmp_path: Path
) -> None:
    found = evaluate(images, images, "--split", "all")
    figures = found["figures"]["samples"]
    assert figures["frechet_distance"] == pytest.approx(0, abs=1e-6)
    assert figures["precision"] == figures["recall"] == figures["coverage"] == 1
    assert "floor" not in found["figures"]
    assert found["protocol"]["images on each side of a distance"] == 60
    assert found["protocol"]["features"]["title"] == "pixels"
    with Image.open(tmp_path / "out" / "samples.png") as grid:
        assert grid.width > 16


def test_copies_are_found_and_held_out_images_are_none(
    evaluate: Callable[..., dict[str, Any]], images: Path, tmp_path: Path
) -> None:
    held_out = write_images(tmp_path / "held-out", 40, seed=1)
    found = evaluate(images, held_out, "--training", images)["figures"]
    assert found["samples"]["near_copies"] == 1
    assert found["samples"]["nearest_similarity"] == pytest.approx(1, abs=1e-5)
    assert found["floor"]["near_copies"] <= 0.05
    assert found["samples"]["frechet_distance"] == pytest.approx(
        found["floor"]["frechet_distance"], rel=0.3
    )


def test_the_split_is_that_of_the_file_names_and_has_no_image_on_both_sides(
    evaluate: Callable[..., dict[str, Any]], images: Path
) -> None:
    found = evaluate(images, images, "--eval-fraction", 0.3)["protocol"]
    counts = found["reference"]["features of"], found["training"]["features of"]
    assert found["images on each side of a distance"] == counts[0] < counts[1]
    assert sum(counts) == 60


def test_saved_statistics_stand_in_for_the_images(
    evaluate: Callable[..., dict[str, Any]], images: Path, tmp_path: Path, script: Script
) -> None:
    samples, file = write_images(tmp_path / "samples", 10, seed=2), tmp_path / "real.safetensors"
    flags = ("--eval-fraction", 0.3, "--features", "pixels")
    assert script("evaluate", images, "--save-statistics", file, *flags).code == 0
    direct = evaluate(samples, images, "--eval-fraction", 0.3)["figures"]
    saved = evaluate(samples, file)
    for column in ("samples", "floor"):
        for name in ("frechet_distance", "recall", "near_copies"):
            assert saved["figures"][column][name] == pytest.approx(direct[column][name])
    assert saved["protocol"]["reference"]["statistics"] == str(file)
    refusal = script("evaluate", samples, file, "--features", "efficientnet-lite0").refusal()
    assert "holds features of pixels" in refusal and "--features pixels" in refusal
    again = script("evaluate", images, "--save-statistics", file, *flags).refusal()
    assert "exists" in again


def test_statistics_of_another_protocol_are_refused(
    images: Path, tmp_path: Path, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sundae.features.pixels import Pixels

    file, flags = tmp_path / "real.safetensors", ("--features", "pixels")
    assert script("evaluate", images, "--save-statistics", file, *flags).code == 0
    monkeypatch.setattr(Pixels, "protocol", Pixels.protocol | {"resize": "nearest"})
    assert "another protocol" in script("evaluate", images, file, *flags).refusal()


@pytest.fixture
def run(script: Script, run_file: Callable[..., Path], tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    ended = script("train", "--cfg-path", run_file(), "--seed", 0, "--run-dir", folder)
    assert ended.code == 0, ended
    return folder


def test_a_run_on_grey_levels_is_sampled_and_compared_with_its_own_data(
    evaluate: Callable[..., dict[str, Any]], run: Path
) -> None:
    found = evaluate(run, "--nb-samples", 9, "--steps", 2, "--seed", 5, "--temperature", 0.5)
    assert set(found["figures"]) == {"samples", "floor"}
    subject = found["protocol"]["subject"]
    assert subject["kind"] == "prior" and subject["images"] == 9 and subject["seed"] == 5
    assert subject["classes"] == "those of the reference images"
    assert subject["strategy"] == "renoise" and subject["[sampling]"]["temperature"] == 0.5
    assert found["protocol"]["reference"]["codec"] == f"pixels-{LEVELS}"
    assert found["protocol"]["images on each side of a distance"] == 9
    again = evaluate(run, "--nb-samples", 9, "--steps", 2, "--seed", 5, "--temperature", 0.5)
    assert again["figures"] == found["figures"]


def test_grey_levels_are_a_side_of_their_own(
    evaluate: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    for name in ("train", "eval"):
        write_tiny_data(tmp_path / "grey" / name, 24)
    found = evaluate(tmp_path / "grey" / "train", tmp_path / "grey")["figures"]
    assert found["samples"]["frechet_distance"] == pytest.approx(0, abs=1e-6)
    assert found["samples"]["near_copies"] == 1


def test_what_cannot_be_compared_is_refused_before_anything_is_sampled(
    script: Script, images: Path, run: Path, tmp_path: Path
) -> None:
    def refusal(*arguments: object) -> str:
        return script("evaluate", *arguments, "--features", "pixels").refusal()

    assert "does not exist" in refusal(tmp_path / "nowhere", images)
    assert "REFERENCE" in refusal(images)
    assert "is a prior" in refusal(images, run)
    assert "sampling.steps" in refusal(images, images, "--steps", 3)
    assert "--size" in refusal(run, images, "--size", 8)
    assert "has 60 images" in refusal(images, images, "--nb-samples", 61)
    Image.new("RGB", (8, 8)).save(images / "class0" / "small.png")
    assert "small.png" in refusal(images, images)
    done = tmp_path / "done"
    done.mkdir()
    (done / "evaluation.json").write_text("{}")
    assert "--overwrite" in refusal(run, "--out-dir", done)
    assert not (tmp_path / "samples").exists()
