"""inpaint.py as a shell sees it, with a prior of 4x4 grey pixels."""

import importlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import LEVELS, Ended, contents, write_run_file
from PIL import Image
from torch import Tensor

from sundae.codec.interface import PixelCodec
from sundae.common.images import load_image, resize_and_crop, to_tensor
from sundae.common.naming import path_component
from sundae.editing.files import name_images

Run = Callable[..., Ended]


@pytest.fixture(scope="module")
def prior(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps; its samples mean nothing, but they are samples."""
    root = tmp_path_factory.mktemp("prior")
    words = ["--cfg-path", write_run_file(root, tiny_data, {}), "--run-dir", root / "run"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sundae.training.logbook.draw_curves", lambda rows, path: None)
        patch.setattr(
            sys, "argv", ["train.py", *map(str, words), "--seed", "0", "--no-cuda", "--quiet"]
        )
        importlib.import_module("train").main()
    return root / "run"


@pytest.fixture
def inpaint(script: Run, prior: Path, tmp_path: Path) -> Run:
    """inpaint(image, flags ...) writes to tmp_path/out."""

    def run(image: Path, *flags: object, out: str = "out") -> Ended:
        common = ("--resume", prior, "--seed", 1, "--steps", 3, "--out-dir", tmp_path / out)
        return script("inpaint", image, *common, *flags)

    return run


def draw(path: Path, height: int = 4, width: int = 4, seed: int = 0) -> Path:
    """An image of coloured noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def draw_mask(path: Path, mask: list[list[int]]) -> Path:
    Image.fromarray(np.array(mask, dtype=np.uint8) * 255).save(path)
    return path


def seen(path: Path) -> Tensor:
    return to_tensor(load_image(path))


LEFT_HALF = [[1, 1, 0, 0]] * 4


def test_an_image_gets_its_samples_and_a_grid(inpaint: Run, tmp_path: Path) -> None:
    image = draw(tmp_path / "cat.png")
    ended = inpaint(image, "--nb-samples", 3)
    where = tmp_path / "out"
    message = f"3 samples of each of 1 images in {where} (step 2, seed 1, strategy renoise)\n"
    assert ended == Ended(0, message, "")
    names = {f"cat/0000{number}.png" for number in range(3)} | {"cat-grid.png"}
    assert set(contents(tmp_path / "out")) == names
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[1:3, 1:3] = True
    samples = torch.stack([seen(tmp_path / "out/cat" / f"0000{n}.png") for n in range(3)])
    assert torch.equal(samples[:, :, ~mask], seen(image)[:, ~mask].expand(3, 3, -1))
    inside = samples[:, :, mask]
    assert (inside == inside[:, :1]).all()  # grey levels, as the codec has them
    assert len(inside.unique(dim=0)) > 1
    grid = seen(tmp_path / "out/cat-grid.png")
    cells = [grid[:, 2:66:16, 2 + 66 * n : 66 + 66 * n : 16] for n in range(5)]
    assert torch.equal(cells[0], seen(image))
    assert torch.equal(cells[1], to_8bit(seen(image).masked_fill(mask, 0.5)))
    assert torch.equal(torch.stack(cells[2:]), samples)


def to_8bit(image: Tensor) -> Tensor:
    return (image * 255).round() / 255


def test_the_seed_fixes_the_samples_whatever_the_batch_size(inpaint: Run, tmp_path: Path) -> None:
    draw(tmp_path / "in/a.png"), draw(tmp_path / "in/b.png", seed=1)
    common = (tmp_path / "in", "--inpaint-strategy", "random", "--nb-samples", 3)
    inpaint(*common, out="whole")
    inpaint(*common, "--batch-size", 2, out="parts")
    inpaint(*common, "--seed", 2, out="other")
    whole = contents(tmp_path / "whole")
    assert whole == contents(tmp_path / "parts") != contents(tmp_path / "other")


def test_the_first_images_of_a_folder_keep_their_names(inpaint: Run, tmp_path: Path) -> None:
    for name in ("a/2.png", "a/10.png", "b.png", "b.bmp", "c.png"):
        draw(tmp_path / "in" / name)
    (tmp_path / "in/a/3.png").write_text("no image")
    ended = inpaint(tmp_path / "in", "--nb-samples", 1, "--nb-inpaint", 5)
    assert ended.code == 0
    assert ended.out.startswith(f"skipped {tmp_path}/in/a/3.png: ")
    assert "1 samples of each of 4 images" in ended.out
    grids = {name for name in contents(tmp_path / "out") if name.endswith("-grid.png")}
    assert grids == {"a/2-grid.png", "a/10-grid.png", "b.bmp-grid.png", "b.png-grid.png"}


@pytest.mark.parametrize("size", [(4, 4), (9, 14), (2, 2)])
@pytest.mark.parametrize("mask_size", [4, 12])
def test_masked_pixels_do_not_matter(
    inpaint: Run, tmp_path: Path, size: tuple[int, int], mask_size: int
) -> None:
    height, width = size
    mask = draw_mask(tmp_path / "mask.png", np.kron(LEFT_HALF, np.ones((mask_size // 4,) * 2)))
    samples = []
    for name, colour in (("x", 0), ("y", 255)):
        photo = draw(tmp_path / name / "p.png", height, width)
        with Image.open(photo) as image:
            image.paste((colour,) * 3, (0, 0, (width + 1) // 2, height))
            image.save(photo)
        assert inpaint(photo, "--mask", mask, "--nb-samples", 2, out=f"out-{name}").code == 0
        samples.append(contents(tmp_path / f"out-{name}" / "p"))
    assert samples[0] == samples[1]


@pytest.mark.parametrize("size", [(1, 1), (10, 10_000), (10_000, 10), (4, 4)])
@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--inpaint-strategy", "block"),
        ("--inpaint-strategy", "random"),
        ("--inpaint-strategy", "grid", "--grid-count", 2),
        ("--mask", "MASK"),
        ("--outpaint", "0,3,0,0"),
        ("--image-to-image", 0.5),
    ],
)
def test_images_of_any_proportions_get_samples(
    inpaint: Run, tmp_path: Path, size: tuple[int, int], flags: tuple[object, ...]
) -> None:
    image = draw(tmp_path / "p.png", *size)
    mask = draw_mask(tmp_path / "mask.png", [[1]])  # all white, of another size
    flags = tuple(mask if flag == "MASK" else flag for flag in flags)
    assert inpaint(image, *flags, "--nb-samples", 1).code == 0
    expected = (4, 7) if "--outpaint" in flags else (4, 4)
    assert seen(tmp_path / "out/p/00000.png").shape[1:] == expected


def test_a_white_mask_gives_fresh_samples(
    inpaint: Run, script: Run, prior: Path, tmp_path: Path
) -> None:
    mask = draw_mask(tmp_path / "mask.png", [[1, 1]])
    flags = ("--class", "two", "--nb-samples", 3)
    assert inpaint(draw(tmp_path / "p.png"), "--mask", mask, *flags).code == 0
    fresh = ("--resume", prior, "--seed", 1, "--steps", 3, "--out-dir", tmp_path / "fresh")
    assert script("sample", *fresh, *flags).code == 0
    assert contents(tmp_path / "out/p") == contents(tmp_path / "fresh")


def test_known_pixels_can_be_seen_as_decoded(inpaint: Run, tmp_path: Path) -> None:
    image = draw(tmp_path / "p.png")
    assert inpaint(image, "--nb-samples", 1, "--no-composite").code == 0
    codec = PixelCodec(LEVELS)
    decoded = to_8bit(codec.decode(codec.encode(seen(image)[None]))[0])
    raw = seen(tmp_path / "out/p/00000.png")
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[1:3, 1:3] = True
    assert torch.equal(raw[:, ~mask], decoded[:, ~mask])
    assert not torch.equal(raw[:, ~mask], seen(image)[:, ~mask])


def test_image_to_image_of_strength_zero_is_the_reconstruction(
    inpaint: Run, tmp_path: Path
) -> None:
    image = draw(tmp_path / "p.png")
    assert inpaint(image, "--nb-samples", 1, "--image-to-image", 0).code == 0
    codec = PixelCodec(LEVELS)
    decoded = codec.decode(codec.encode(seen(image)[None]))[0]
    assert torch.equal(seen(tmp_path / "out/p/00000.png"), to_8bit(decoded))


def test_more_of_an_image_is_kept_on_a_canvas(inpaint: Run, tmp_path: Path) -> None:
    image = draw(tmp_path / "p.png", 4, 11)
    mask = torch.zeros(4, 11, dtype=torch.bool)
    mask[1:3, 2:8] = True  # the middle half of 11, and of 4
    assert inpaint(image, "--nb-samples", 1, "--whole").code == 0
    sample = seen(tmp_path / "out/p/00000.png")
    assert torch.equal(sample[:, :, :2], seen(image)[:, :, :2])
    assert torch.equal(sample[:, :, 8:], seen(image)[:, :, 8:])
    assert inpaint(image, "--nb-samples", 1, "--canvas", "6x8px", out="canvas").code == 0
    sample = seen(tmp_path / "canvas/p/00000.png")
    scaled = to_tensor(resize_and_crop(load_image(image), (6, 8)))
    assert torch.equal(sample[:, 0], scaled[:, 0])


def test_samples_on_a_canvas(script: Run, prior: Path, tmp_path: Path) -> None:
    flags = ("--resume", prior, "--steps", 2, "--out-dir", tmp_path / "o", "--nb-samples", 2)
    assert script("sample", *flags, "--canvas", "5x9").code == 0
    assert seen(tmp_path / "o/00001.png").shape == (3, 5, 9)
    more = ("--overwrite", "--canvas")
    line = script("sample", *flags, *more, "3x9").refusal()
    assert "canvas of 3x9 tokens is smaller than the 4x4" in line
    assert "expected HEIGHTxWIDTH" in script("sample", *flags, *more, "3").refusal()


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--mask", "black.png"], "black.png masks nothing"),
        (["--mask", "nowhere.png"], "nowhere.png"),
        (["--mask", "text.png"], "text.png: "),
        (["--mask", "corner.png"], "p.png: the mask covers nothing of the centre that is cut out"),
        (["--mask", "white.png", "--outpaint", "1,0,0,0"], "--mask and --outpaint cannot be"),
        (["--inpaint-strategy", "hole"], "--inpaint-strategy hole: expected one of block, random"),
        (["--block-height", "0.5"], "--block-height needs --inpaint-strategy block"),
        (
            ["--inpaint-strategy", "grid", "--grid-count", "0"],
            "--grid-count: expected an integer at least 1",
        ),
        (["--outpaint", "1,2,3"], "--outpaint 1,2,3: expected LEFT,RIGHT,TOP,BOTTOM"),
        (["--outpaint", "0,0,0,0"], "at least one side must be above 0"),
        (["--outpaint=-1,0,0,0"], "left is -1"),
        (["--image-to-image", "1.5"], "strength is 1.5, expected a fraction"),
        (["--nb-samples", "0"], "must be at least 1"),
        (["--feather", "-1"], "feather is -1, expected at least 0"),
        (["--image-to-image", "0.5", "--no-composite"], "--no-composite is about the edge"),
        (["--canvas", "400x400"], "pixels are written with px"),
        (["--canvas", "3x8"], "smaller than the 4x4"),
        (["--class", "three"], "class three: expected one of zero, one, two"),
        (["--strategy", "best"], "--strategy"),
        (["--resume", "nowhere"], "nowhere does not exist"),
        (["--out-dir", "text.png"], "cannot write to text.png"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_written(
    inpaint: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    complaint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    image = draw(tmp_path / "p.png", 4, 12)
    draw_mask(tmp_path / "black.png", [[0, 0]])
    draw_mask(tmp_path / "white.png", [[1]])
    draw_mask(tmp_path / "corner.png", [[1, 0, 0, 0, 0, 0]])
    (tmp_path / "text.png").write_text("no image")
    before = contents(tmp_path)
    assert complaint in inpaint(image, *flags).refusal()
    assert contents(tmp_path) == before and not (tmp_path / "out").exists()


def test_nothing_to_work_on_is_one_line(inpaint: Run, script: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("no image")
    assert "empty holds no images" in inpaint(tmp_path / "empty").refusal()
    assert "nowhere does not exist" in inpaint(tmp_path / "nowhere").refusal()
    assert "give an image that can be read" in inpaint(tmp_path / "text.png").refusal()
    assert "as a whole" in inpaint(draw(tmp_path / "long.png", 1, 999), "--whole").refusal()
    assert not (tmp_path / "out").exists()


def test_samples_are_kept_unless_overwriting_is_requested(inpaint: Run, tmp_path: Path) -> None:
    image = draw(tmp_path / "p.png")
    assert inpaint(image, "--nb-samples", 1).code == 0
    before = contents(tmp_path)
    line = inpaint(image, "--nb-samples", 2, "--seed", 5).refusal()
    assert "p-grid.png exists; choose another --out-dir, or pass --overwrite" in line
    assert contents(tmp_path) == before
    assert inpaint(image, "--nb-samples", 2, "--seed", 5, "--overwrite").code == 0
    assert contents(tmp_path) != before


# -- names from files -----------------------------------------------------------------------------


def renamed(prior: Path, run: Path, **changes: object) -> Path:
    """A copy of a run whose checkpoint says something else of [trainer] or its classes."""
    shutil.copytree(prior, run)
    for path in run.glob("checkpoints/*/checkpoint.json"):
        values = json.loads(path.read_text())
        values["classes"] = changes.pop("classes", values["classes"])
        values["config"]["trainer"] |= changes
        path.write_text(json.dumps(values))
    return run


@pytest.mark.parametrize(
    "name",
    ["../../x", "/abs/x", "a/b", "..", "con", ".mask", "a\x1b[31m\n\0", "\ud800", "x" * 300],
)
def test_a_runs_name_is_one_folder_whatever_the_checkpoint_says(
    script: Run, prior: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    name = name.replace("/abs", str(tmp_path / "abs"))
    run = renamed(prior, tmp_path / "run", exp_name=name)
    image = draw(tmp_path / "p.png")
    here = tmp_path / "work" / "here"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    before = contents(tmp_path)
    flags = ("--resume", run, "--nb-samples", 1, "--steps", 1)
    for words, folder in ((["sample"], "samples"), (["inpaint", image], "inpainted")):
        ended = script(*words, *flags)
        assert (ended.code, ended.out.count("\n")) == (0, 1) and "\x1b" not in ended.out
        made = {Path(path) for path in contents(tmp_path).keys() - before.keys()}
        assert {path.parts[:3] for path in made} == {("work", "here", folder)}
        assert all(path.parts[3].startswith(f"{path_component(name)}_20") for path in made)
        shutil.rmtree(here / folder)
    assert contents(tmp_path) == before


def test_a_run_without_a_name_is_one_line(script: Run, prior: Path, tmp_path: Path) -> None:
    run = renamed(prior, tmp_path / "run", exp_name="")
    assert "trainer.exp_name: expected a string" in script("sample", "--resume", run).refusal()


@pytest.mark.parametrize(
    ("name", "folder"), [("...png", "unnamed"), ("con.png", "_con"), (".a.png", "a")]
)
def test_samples_stay_below_the_folder_whatever_the_image_is_called(
    inpaint: Run, tmp_path: Path, name: str, folder: str
) -> None:
    image = draw(tmp_path / "in.png").rename(tmp_path / name)
    before = contents(tmp_path)
    assert inpaint(image, "--nb-samples", 1, out="new/out").code == 0
    made = contents(tmp_path).keys() - before.keys()
    assert made == {f"new/out/{folder}/00000.png", f"new/out/{folder}-grid.png"}


@pytest.mark.parametrize(
    "names",
    [
        {"x.png": "x.png", "x.jpg": "x.jpg", "x.png.gif": "x.png.gif"},  # three, not two of them
        {"x*.png": "x_.png", "x?.png": "x_.png-2", "x|.jpg": "x_.jpg"},
        {"a/x.png": "a/x.png", "a ./x.png": "a/x.png-2", "b/...png": None},
        {"X.png": "X.png", "x.png": "x.png-2"},  # one file where letter case does not count
        {"y.png": "y", "y-grid.png.jpg": "y-grid.png_", "y/00001.png.jpg": "y/00001.png_"},
        {"con/nul.png": "_con/_nul", ".mask/x.png": None, "e\x1b[0m.png": "e_[0m"},
    ],
    ids=str,
)
def test_two_images_never_share_the_folder_of_their_samples(
    tmp_path: Path, names: dict[str, str | None]
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = name_images(tmp_path, 9)
    assert {str(path.relative_to(tmp_path)): name for name, path in found.items()} == {
        image: name for image, name in names.items() if name
    }


def test_names_on_the_terminal_are_escaped(
    script: Run, inpaint: Run, prior: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(tmp_path / "in" / "good.png")
    (tmp_path / "in" / "caf\udce9\x1b[31m.png").write_text("no image")
    ended = inpaint(tmp_path / "in", "--nb-samples", 1)
    assert ended.code == 0
    assert r"in/caf\udce9\x1b[31m.png: " in ended.out and "\x1b" not in ended.out
    run = renamed(prior, tmp_path / "run", classes=["\x1b[31mred", "two\nlines", "\u202eright"])
    line = script("sample", "--resume", run, "--class", "x").refusal()
    assert r"expected one of \x1b[31mred, two lines, \u202eright, or 0 to 2" in line
