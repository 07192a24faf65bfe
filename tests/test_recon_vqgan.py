"""recon-vqgan.py and the scores it prints."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor
from vqgan_cases import CASES

from sundae.codec.interface import PixelCodec
from sundae.common import memory
from sundae.common.errors import UserError
from sundae.common.fitting import fit_image
from sundae.evaluation.reconstruction import reconstruct, side_by_side

SCRIPT = Path(__file__).parents[1] / "recon-vqgan.py"


def noise_image(height: int, width: int, seed: int = 0) -> Image.Image:
    """Smooth colours with some noise, so that no two places are alike."""
    rows, columns = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(seed).integers(0, 40, (height, width))
    channels = [rows * 200 // height + noise, columns * 200 // width, noise * 6]
    return Image.fromarray(np.stack(channels, axis=2).astype(np.uint8))


class GreyPatches(PixelCodec):
    """Patches of 4x4 pixels, known by the grey of their top left corner."""

    factor = 4

    def encode(self, images: Tensor) -> Tensor:
        return super().encode(images)[:, ::4, ::4]

    def decode(self, tokens: Tensor) -> Tensor:
        return super().decode(tokens).repeat_interleave(4, 2).repeat_interleave(4, 3)


@pytest.mark.parametrize(
    ("fit", "size", "shape", "visible"),
    [
        ("resize", None, (20, 32), (20, 32)),
        ("resize", 8, (8, 12), (8, 12)),
        ("pad", None, (24, 32), (21, 30)),
        ("pad", 9, (12, 16), (9, 13)),
        ("crop", None, (20, 28), (20, 28)),
        ("crop", 16, (16, 16), (16, 16)),
    ],
)
def test_every_way_to_fit_gives_whole_patches(
    fit: str, size: int | None, shape: tuple[int, int], visible: tuple[int, int]
) -> None:
    fitted = fit_image(noise_image(21, 30), 4, size, fit)
    assert tuple(fitted.pixels.shape) == (3, *shape)
    assert (fitted.height, fitted.width) == visible
    assert tuple(fitted.visible(fitted.pixels).shape[1:]) == visible


@pytest.mark.parametrize("fit", ["resize", "pad", "crop"])
def test_an_image_that_fits_is_not_touched(fit: str) -> None:
    image = noise_image(16, 24)
    expected = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    assert torch.equal(fit_image(image, 8, None, fit).pixels, expected)


def test_padding_repeats_the_border_and_crop_takes_the_centre() -> None:
    image = noise_image(5, 6)
    whole = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    padded = fit_image(image, 4, None, "pad").pixels
    assert torch.equal(padded[:, :5, :6], whole)
    assert torch.equal(padded[:, 5:, :6], whole[:, 4:5].expand(3, 3, 6))
    cropped = fit_image(image, 4, None, "crop").pixels
    assert torch.equal(cropped, whole[:, 0:4, 1:5])
    with pytest.raises(UserError, match="5x6 is smaller than a patch"):
        fit_image(image, 8, None, "crop")


def test_scores_are_those_of_scikit_image(tmp_path: Path) -> None:
    noise_image(40, 24).save(tmp_path / "a.png")
    report = reconstruct(GreyPatches(256), [tmp_path / "a.png"])
    original, decoded = (p.permute(1, 2, 0).double().numpy() for p in report.pairs[0])
    psnr = peak_signal_noise_ratio(original, decoded, data_range=1)
    assert report.psnr == pytest.approx(psnr, abs=1e-3)
    _, ssim = structural_similarity(
        original,
        decoded,
        data_range=1,
        channel_axis=2,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    # Over the whole map, as torchmetrics averages; the two differ in how they mirror the border.
    assert report.ssim == pytest.approx(ssim.mean(), abs=0.01)
    tokens = GreyPatches(256).encode(report.pairs[0][0][None])
    assert report.codes_used == len(tokens.unique())


def test_padding_does_not_count_in_the_scores(tmp_path: Path) -> None:
    Image.new("RGB", (13, 13), (255, 255, 255)).save(tmp_path / "white.png")
    report = reconstruct(GreyPatches(2), [tmp_path / "white.png"], fit="pad")
    assert tuple(report.pairs[0][1].shape) == (3, 13, 13)
    assert report.psnr == float("inf")
    assert (report.codes_used, report.perplexity) == (1, 1)


def test_images_of_all_sizes_in_batches_and_only_the_first_are_kept(tmp_path: Path) -> None:
    sizes = [(16, 16), (16, 16), (16, 16), (12, 20), (16, 16)]
    paths = [tmp_path / f"{index}.png" for index in range(len(sizes))]
    for index, (path, size) in enumerate(zip(paths, sizes, strict=True)):
        noise_image(*size, seed=index).save(path)
    (tmp_path / "bad.png").write_bytes(b"not an image")
    report = reconstruct(
        GreyPatches(256), [*paths, tmp_path / "bad.png"], batch_size=2, max_pairs=4
    )
    assert report.num_images == 5
    assert [tuple(pair[0].shape[1:]) for pair in report.pairs] == sizes[:4]
    assert [error.path.name for error in report.unreadable] == ["bad.png"]
    grid = side_by_side(report.pairs)
    assert tuple(grid.shape) == (8, 3, 16, 20)
    assert torch.equal(grid[7, :, :12], report.pairs[3][1])
    assert (grid[7, :, 12:] == 1).all()


def test_large_images_are_encoded_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Recording(GreyPatches):
        def encode(self, images: Tensor) -> Tensor:
            batches.append((len(images), images.shape[3]))
            return super().encode(images)

    batches: list[tuple[int, int]] = []
    for index, side in enumerate((8, 8, 8, 16, 16)):
        noise_image(side, side).save(tmp_path / f"{index}.png")
    monkeypatch.setattr(memory, "PIXELS", 2 * 8 * 8)
    reconstruct(Recording(16), sorted(tmp_path.glob("*.png")))
    assert batches == [(2, 8), (1, 8), (1, 16), (1, 16)]


def test_no_readable_image_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"no image is readable; the first: .*bad\.png"):
        reconstruct(GreyPatches(256), [tmp_path / "bad.png"])


def run_script(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments), "--no-cuda"])
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_script_reconstructs_a_folder_into_one_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = CASES["taming"](tmp_path)
    (tmp_path / "in").mkdir()
    for index in range(3):
        noise_image(32, 64, seed=index).save(tmp_path / "in" / f"{index}.png")
    arguments = [tmp_path / "in", "--ckpt-path", case.checkpoint, "--cfg-path", case.config]
    arguments += ["--out", tmp_path / "out.png", "--rows", "2", "--legacy-cfg", "--seed", "1"]
    assert run_script(monkeypatch, *arguments) == 0
    output = capsys.readouterr().out
    assert "3 images: PSNR" in output and "of 64 codes used" in output
    assert "originals left, reconstructions right, 2 of 3 images" in output
    with Image.open(tmp_path / "out.png") as image:
        shown = np.array(image)
    first = np.array(Image.open(tmp_path / "in" / "0.png")).repeat(2, 0).repeat(2, 1)
    assert np.array_equal(shown[2:66, 2:130], first)
    assert run_script(monkeypatch, *arguments) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert run_script(monkeypatch, *arguments, "--overwrite", "--quiet") == 0
    assert capsys.readouterr().out.count("\n") == 1


def test_script_says_in_one_line_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.ckpt").write_text("version https://git-lfs.github.com/spec/v1\n")
    noise_image(8, 8).save(tmp_path / "a.png")
    arguments = [tmp_path / "a.png", "--ckpt-path", tmp_path / "x.ckpt"]
    assert run_script(monkeypatch, *arguments, "--out", tmp_path / "o.png", "--quiet") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "git lfs pull" in error
    assert not (tmp_path / "o.png").exists()
