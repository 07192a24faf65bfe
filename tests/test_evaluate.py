"""evaluate.py on data with known answers: sides, floor, statistics, copies, refusals."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import LEVELS, Ended, write_tiny_data
from PIL import Image
from pixel_reader import read_pixels
from torch import Tensor
from vqgan_cases import CASES

from sundae.common.errors import UserError
from sundae.config.sections import SamplingConfig
from sundae.evaluation import evaluation, protocol
from sundae.evaluation.protocol import versions
from sundae.evaluation.sweep import evaluations
from sundae.prior.pretrained import BUNDLED

Script = Callable[..., Ended]


@pytest.fixture(scope="session")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of fitted classifiers, which several tests use."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _nothing_is_downloaded(classifiers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean difference of pixels in the place of LPIPS; classifiers read the first pixels."""

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return (a - b).abs().mean((1, 2, 3))

    read_pixels(monkeypatch, classifiers)
    monkeypatch.setattr(evaluation, "load_lpips", lambda net, device, quiet: distance)


def write_images(root: Path, count: int, seed: int, classes: int = 2, size: int = 16) -> Path:
    """Noise as bright as its class, whose first pixel is the class; names continue over classes."""
    generator = np.random.default_rng(seed)
    for number in range(count):
        folder = root / f"class{number % classes}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 100, (size, size, 3)) + 150 * (number % classes)
        pixels[0, 0] = number % classes
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
    found = evaluate(images, images, "--split", "all",
                     "--figures", "distance", "manifold", "nearest")  # fmt: skip
    figures = found["figures"]["samples"]
    assert figures["frechet_distance"] == pytest.approx(0, abs=1e-6)
    assert figures["precision"] == figures["recall"] == figures["coverage"] == 1
    assert "floor" not in found["figures"]
    assert list(found["protocol"]["left out"]) == ["nearest"]  # named, but of what training images?
    assert found["protocol"]["images on each side of a distance"] == 60
    assert found["protocol"]["features"]["title"] == "pixels"
    with Image.open(tmp_path / "out" / "samples.png") as grid:
        assert grid.width > 16


def test_copies_are_found_and_held_out_images_are_none(
    evaluate: Callable[..., dict[str, Any]], images: Path, tmp_path: Path
) -> None:
    held_out = write_images(tmp_path / "held-out", 40, seed=1)
    found = evaluate(images, held_out, "--training", images,
                     "--figures", "distance", "nearest")["figures"]  # fmt: skip
    assert found["samples"]["near_copies"] == 1
    assert found["samples"]["nearest_similarity"] == pytest.approx(1, abs=1e-5)
    assert found["floor"]["near_copies"] <= 0.05
    assert found["samples"]["frechet_distance"] == pytest.approx(
        found["floor"]["frechet_distance"], rel=0.3
    )


def test_the_split_is_that_of_the_file_names_and_has_no_image_on_both_sides(
    evaluate: Callable[..., dict[str, Any]], images: Path
) -> None:
    found = evaluate(images, images, "--eval-fraction", 0.3, "--figures", "nearest")["protocol"]
    counts = found["reference"]["images in all"], found["training"]["images in all"]
    assert found["images on each side of a distance"] == counts[0]
    assert sum(counts) == 60


def test_collapsed_samples_have_no_diversity_and_missing_weights_leave_it_out(
    evaluate: Callable[..., dict[str, Any]],
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: Script,
) -> None:
    same = tmp_path / "same" / "class0"
    same.mkdir(parents=True)
    for number in range(6):
        Image.new("RGB", (16, 16), "red").save(same / f"{number}.png")
    found = evaluate(same.parent, images, "--eval-fraction", 0.5)["figures"]
    assert found["samples"]["diversity"] == 0 < found["floor"]["diversity"]

    def missing(net: str, device: object, *, quiet: bool) -> None:
        raise UserError("the weights are missing")

    monkeypatch.setattr(evaluation, "load_lpips", missing)
    without = evaluate(same.parent, images, "--eval-fraction", 0.5)
    assert "diversity" not in without["figures"]["samples"]
    assert without["protocol"]["left out"] == {"LPIPS": "the weights are missing"}
    named = script("evaluate", same.parent, images, "--features", "pixels", "--figures",
                   "diversity", "--out-dir", tmp_path / "none")  # fmt: skip
    assert "weights are missing" in named.refusal()


def test_saved_statistics_stand_in_for_the_images(
    evaluate: Callable[..., dict[str, Any]], images: Path, tmp_path: Path, script: Script
) -> None:
    samples, file = write_images(tmp_path / "samples", 10, seed=2), tmp_path / "real.safetensors"
    flags = ("--eval-fraction", 0.3, "--features", "pixels")
    assert script("evaluate", images, "--save-statistics", file, *flags).code == 0
    some = ("--figures", "distance", "manifold", "nearest")
    direct = evaluate(samples, images, "--eval-fraction", 0.3, *some)["figures"]
    saved = evaluate(samples, file, *some)
    for column in ("samples", "floor"):
        for name in ("frechet_distance", "recall", "near_copies"):
            assert saved["figures"][column][name] == pytest.approx(direct[column][name])
    assert saved["protocol"]["reference"]["statistics"] == str(file)
    refusal = script("evaluate", samples, file, "--features", "efficientnet-lite0").refusal()
    assert "holds features of pixels" in refusal and "--features pixels" in refusal
    again = script("evaluate", images, "--save-statistics", file, *flags).refusal()
    assert "exists" in again


def test_the_commit_is_this_projects_not_that_of_a_repository_around_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    author = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], [*author, "commit", "-q", "--allow-empty", "-m", "another"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    file = tmp_path / "unpacked" / "sundae" / "evaluation" / "protocol.py"
    file.parent.mkdir(parents=True)
    monkeypatch.setattr(protocol, "__file__", str(file))
    assert versions()["sundae"] == "unknown"


def test_statistics_of_another_protocol_are_refused(
    images: Path, tmp_path: Path, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sundae.features.pixels import Pixels

    file, flags = tmp_path / "real.safetensors", ("--features", "pixels")
    assert script("evaluate", images, "--save-statistics", file, *flags).code == 0
    monkeypatch.setattr(Pixels, "protocol", Pixels.protocol | {"resize": "nearest"})
    assert "another protocol" in script("evaluate", images, file, *flags).refusal()


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the run is that several tests evaluate."""
    return tmp_path_factory.mktemp("trained")


@pytest.fixture
def run(script: Script, run_file: Callable[..., Path], trained: Path) -> Path:
    folder = trained / "run"
    if not folder.exists():
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


def test_a_prior_on_tokens_of_a_vqgan_has_its_codec_and_its_split_beside_it(
    evaluate: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    images = write_images(tmp_path / "images", 30, seed=0, size=8)
    for number, name in enumerate(("flags", "symbols")):  # classes of the bundled model
        (images / f"class{number}").rename(images / name)
    found = evaluate(BUNDLED, images, "--nb-samples", 3, "--steps", 1,
                     "--figures", "distance", "classes")  # fmt: skip
    assert all("class_accuracy" in column for column in found["figures"].values())
    assert list(found["figures"]) == ["samples", "codec", "floor"]
    values = [column["frechet_distance"] for column in found["figures"].values()]
    assert len(set(values)) == 3 and min(values) > 0
    assert found["protocol"]["split"] == "by file names, [0.9, 0.1]"
    assert found["protocol"]["subject"]["classes"] == "those of the reference images"
    assert found["protocol"]["subject"]["size"] == [64, 64]


def test_grey_levels_are_a_side_of_their_own(
    evaluate: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    for name in ("train", "eval"):
        write_tiny_data(tmp_path / "grey" / name, 24)
    found = evaluate(tmp_path / "grey" / "train", tmp_path / "grey")["figures"]
    assert found["samples"]["frechet_distance"] == pytest.approx(0, abs=1e-6)
    assert found["samples"]["near_copies"] == found["samples"]["exact_copies"] == 1


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
    assert "--sweep" in refusal(images, images, "--seeds", 0, 1)
    assert "as --training" in refusal(images, images, "--training", images)
    assert "give one" in refusal(images, images, "--training", images, "--eval-fraction", 0.5)
    assert "divided already" in refusal(run, "--eval-fraction", 0.5)
    Image.new("RGB", (8, 8)).save(images / "class0" / "small.png")
    assert "small.png" in refusal(images, images)
    done = tmp_path / "done"
    done.mkdir()
    (done / "evaluation.json").write_text("{}")
    assert "--overwrite" in refusal(run, "--out-dir", done)
    assert not (tmp_path / "samples").exists()


def test_a_link_that_leads_nowhere_is_named_and_no_traceback(
    script: Script, images: Path, tmp_path: Path
) -> None:
    (images / "class0" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert "gone.png" in script("evaluate", images, images, "--features", "pixels").refusal()


def test_class_accuracy_is_at_chance_where_classes_are_shuffled(
    evaluate: Callable[..., dict[str, Any]], images: Path, tmp_path: Path
) -> None:
    real = write_images(tmp_path / "held-out", 40, seed=1)
    flags = ("--training", images, "--figures", "classes")
    found = evaluate(write_images(tmp_path / "right", 40, seed=2), real, *flags)
    assert found["figures"]["samples"]["class_accuracy"] > 0.9
    assert found["figures"]["floor"]["class_accuracy"] > 0.9
    assert found["protocol"]["classifiers"]["classes"]["fitted on"] == 60
    wrong = write_images(tmp_path / "wrong", 40, seed=3)
    half = sorted((wrong / "class0").iterdir())[::2]
    for path in half:  # dark images among the bright class, bright ones among the dark
        other = sorted((wrong / "class1").iterdir())[0]
        other.rename(wrong / "class0" / f"x{other.name}")
        path.rename(wrong / "class1" / f"x{path.name}")
    found = evaluate(wrong, real, *flags)
    assert found["figures"]["samples"]["class_accuracy"] == pytest.approx(0.5, abs=0.1)


def test_attributes_are_read_where_they_lie_beside_the_images(
    evaluate: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    root, shades = tmp_path / "flat", ("0 dark", "1 bright")
    root.mkdir()
    for number, path in enumerate(sorted(write_images(tmp_path / "made", 90, 0).rglob("*.png"))):
        path.rename(root / f"{number}.png")  # the first half is dark
    attributes = {str(number): {"shade": shades[number // 45]} for number in range(90)}
    (root / "attributes.json").write_text(json.dumps({"attributes": attributes}))
    found = evaluate(root, root, "--eval-fraction", 0.3, "--figures", "attributes")
    assert found["figures"]["samples"]["known_combinations"] == 1
    assert found["figures"]["floor"]["known_combinations"] == 1
    about = found["protocol"]["classifiers"]
    assert about["attributes"]["held-out accuracy"]["shade"] > 0.9
    assert about["unreadable attributes"] == []


def test_a_codec_is_scored_image_by_image_and_beside_the_floor(
    evaluate: Callable[..., dict[str, Any]], images: Path, tmp_path: Path
) -> None:
    case, out = CASES["taming"](tmp_path), tmp_path / "out"
    found = evaluate(case.checkpoint, images, "--config", case.config, "--eval-fraction", 0.3,
                     "--size", 32, "--nb-samples", 8,
                     "--figures", "distance", "diversity")["figures"]  # fmt: skip
    assert 0 < found["codec"]["psnr"] < 30  # of random weights
    assert 0 < found["codec"]["codes_used"] <= 1 <= found["codec"]["perplexity"]
    assert found["codec"]["frechet_distance"] > found["floor"]["frechet_distance"]
    assert found["codec"]["reconstruction_distance"] > 0 < found["codec"]["lpips"]
    with Image.open(out / "reconstructions.png") as grid:
        assert grid.height > 16


def test_a_sweep_scores_every_point_with_every_seed_and_goes_on_where_it_was_stopped(
    script: Script, run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "sweep"
    flags = ("--features", "pixels", "--figures", "distance", "--nb-samples", 6, "--out-dir", out)
    axes = ("--sweep", "steps=1,3", "--sweep", "strategy=random,renoise")
    ended = script("evaluate", run, *axes, "--seeds", 0, 1, *flags)
    assert ended.code == 0, ended
    first = json.loads((out / "sweep.json").read_text("utf-8"))["rows"]
    assert [row["evaluations"] for row in first] == [1, 1, 1, 1, 3, 3, 3, 3]
    assert {row["seed"] for row in first} == {0, 1}
    assert (out / "sweep.png").stat().st_size > 1000
    lines = ended.out.splitlines()
    assert lines[0].split()[:3] == ["steps", "strategy", "evaluations"]
    assert sum("renoise" in line and "±" in line for line in lines) == 2

    kept = json.dumps({"protocol": json.loads((out / "sweep.json").read_text())["protocol"],
                       "rows": first[:5]})  # fmt: skip
    (out / "sweep.json").write_text(kept)  # as after a kill
    assert script("evaluate", run, *axes, "--seeds", 0, 1, *flags).code == 0
    again = json.loads((out / "sweep.json").read_text("utf-8"))["rows"]
    assert again[:5] == first[:5] and len(again) == 8
    for before, after in zip(first, again):
        assert before["figures"] == after["figures"]
    other = script("evaluate", run, *axes, *flags, "--temperature", 0.5).refusal()
    assert "another subject" in other


def test_a_wrong_sweep_is_refused_before_anything_is_sampled(
    script: Script, run: Path, images: Path
) -> None:
    def refusal(*arguments: object) -> str:
        return script("evaluate", run, "--features", "pixels", "--sweep", *arguments).refusal()

    assert "KEY=VALUE" in refusal("steps")
    assert "strategy" in refusal("stratgy=random")
    assert "strategy" in refusal("strategy=random,halten")
    assert "given twice" in refusal("steps=1", "--sweep", "steps=2")
    assert "nb_samples" in refusal("nb_samples=4")
    both = script("evaluate", images, images, "--features", "pixels", "--sweep", "steps=1")
    assert "is for a prior" in both.refusal()
    assert "--save-statistics" in refusal("steps=1", "--save-statistics", "s.safetensors")


def test_a_sweep_of_other_figures_has_a_plot_and_draws_equal_values_once(
    script: Script, run: Path, tmp_path: Path
) -> None:
    ended = script("evaluate", run, "--sweep", "steps=1,1", "--figures", "manifold", "--features",
                   "pixels", "--nb-samples", 6, "--out-dir", tmp_path / "sweep")  # fmt: skip
    assert ended.code == 0, ended
    assert len(json.loads((tmp_path / "sweep" / "sweep.json").read_text("utf-8"))["rows"]) == 1
    assert (tmp_path / "sweep" / "sweep.png").stat().st_size > 1000


def test_evaluations_count_guidance_twice_and_idle_steps_not_at_all() -> None:
    assert evaluations(SamplingConfig(steps=5)) == 5
    assert evaluations(SamplingConfig(steps=5, guidance=2.0)) == 10
    assert (
        evaluations(SamplingConfig(steps=5, sample_proportion=1.0, end_sample_proportion=0.0)) == 4
    )
