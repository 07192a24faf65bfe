"""generate-discrete-mnist: grey levels become tokens, and a broken source leaves nothing behind."""

import gzip
import runpy
import struct
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from sklearn.datasets import load_digits

from sundae.common.errors import UserError
from sundae.data.dataset import open_latents
from sundae.datasets.digits import quantise, write_pixel_dataset
from sundae.datasets.idx import read_idx

SCRIPT = Path(__file__).parent.parent / "generate-discrete-mnist.py"


def idx(array: np.ndarray) -> bytes:
    """IDX bytes of an array of unsigned bytes."""
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """Twenty training and ten held-out 4x5 images in torchvision's layout, half of it gzipped."""
    raw = tmp_path / "data" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, count in (("train", 20), ("t10k", 10)):
        pixels = np.arange(count * 20).reshape(count, 4, 5) % 256
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(idx(pixels))
        labels = gzip.compress(idx(np.arange(count) % 10))
        (raw / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(labels)
    return tmp_path / "data"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise URLError("no\nroute")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", refuse)


@pytest.mark.parametrize(
    ("white", "levels", "expected"),
    [
        (255, 256, [0, 1, 127, 128, 254, 255]),
        (255, 2, [0, 0, 0, 1, 1, 1]),
        (255, 4, [0, 0, 1, 2, 3, 3]),
    ],
)
def test_pixels_become_the_nearest_of_even_levels(
    white: int, levels: int, expected: list[int]
) -> None:
    pixels = np.array([0, 1, 127, 128, 254, 255], dtype=np.uint8)
    assert quantise(pixels, white, levels).tolist() == expected


def test_digits_are_those_of_scikit_learn_each_on_one_side(tmp_path: Path) -> None:
    assert write_pixel_dataset("digits", tmp_path / "out")
    sides = [open_latents(tmp_path / "out" / side) for side in ("train", "eval")]
    digits = load_digits()
    chosen = [np.array([int(source) for source in side.sources]) for side in sides]
    assert sorted(np.concatenate(chosen)) == list(range(1797))
    for side, rows in zip(sides, chosen):
        np.testing.assert_array_equal(side.tokens, digits.images[rows])
        np.testing.assert_array_equal(side.labels, digits.target[rows])
        assert side.classes == tuple("0123456789")
        assert (side.codebook_size, side.codec_identity) == (17, "pixels-17")
    held_out = np.bincount(digits.target[chosen[1]]) / np.bincount(digits.target)
    np.testing.assert_allclose(held_out, 0.2, atol=0.01)  # of every class


def test_idx_files_already_there_need_no_network(
    tmp_path: Path, data_dir: Path, no_network: None
) -> None:
    write_pixel_dataset("fashion", tmp_path / "out", data_dir=data_dir)
    train, held_out = (open_latents(tmp_path / "out" / side) for side in ("train", "eval"))
    assert (len(train), len(held_out), train.latent_shape) == (20, 10, (4, 5))
    np.testing.assert_array_equal(train.tokens.ravel(), np.arange(400) % 256)
    assert train.classes is not None and train.labels is not None
    assert [train.classes[label] for label in train.labels[[0, 19]]] == [
        "T-shirt/top",
        "Ankle boot",
    ]
    assert train.codec_identity == "pixels-256"


def test_missing_files_are_downloaded_and_kept(
    tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(url: str, download_root: str, **_: object) -> None:
        name = url.rsplit("/", 1)[1].removesuffix(".gz")
        source = next((data_dir / "FashionMNIST" / "raw").glob(f"{name}*"))
        content = source.read_bytes()
        content = gzip.decompress(content) if source.suffix == ".gz" else content
        (Path(download_root) / name).write_bytes(content)

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", fetch)
    write_pixel_dataset("mnist", tmp_path / "out", data_dir=tmp_path / "fresh", quiet=True)
    assert len(open_latents(tmp_path / "out" / "train")) == 20
    assert [path.name for path in (tmp_path / "fresh").iterdir()] == ["MNIST"]
    assert len(list((tmp_path / "fresh" / "MNIST" / "raw").iterdir())) == 4


def test_failed_download_says_what_to_put_where_and_leaves_nothing(
    tmp_path: Path, no_network: None
) -> None:
    with pytest.raises(UserError) as error:
        write_pixel_dataset("kmnist", tmp_path / "out", data_dir=tmp_path / "data")
    assert "train-images-idx3-ubyte" in str(error.value)
    assert str(tmp_path / "data" / "KMNIST" / "raw") in str(error.value)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (idx(np.zeros((20, 4, 5)))[:-1], "says it holds"),
        (b"<html>", "not an IDX file"),
        (idx(np.zeros((19, 4, 5))), "do not belong together"),
        (b"\x00\x00\x08\x03\x00", "not an IDX file"),
    ],
)
def test_damaged_idx_files_leave_no_output(
    tmp_path: Path, data_dir: Path, content: bytes, message: str
) -> None:
    path = data_dir / "FashionMNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        write_pixel_dataset("fashion", tmp_path / "out", data_dir=data_dir)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", [slice(None, -9), slice(0, 4), slice(5, None)])
def test_damaged_gzip(tmp_path: Path, damage: slice) -> None:
    (tmp_path / "x.gz").write_bytes(gzip.compress(idx(np.arange(10)))[damage])
    with pytest.raises(UserError, match="cannot be unpacked"):
        read_idx(tmp_path / "x.gz")


def test_existing_output_is_skipped_refused_or_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert write_pixel_dataset("digits", out, levels=4)
    assert not write_pixel_dataset("digits", out, levels=4, skip_existing=True)
    with pytest.raises(UserError, match="--overwrite"):
        write_pixel_dataset("digits", out, levels=4)
    with pytest.raises(UserError, match="digits train, 4 grey levels"):
        write_pixel_dataset("digits", out, levels=5, skip_existing=True)
    assert open_latents(out / "eval").codebook_size == 4
    assert write_pixel_dataset("digits", out, levels=5, overwrite=True)
    assert open_latents(out / "eval").codebook_size == 5


def test_output_that_a_kill_left_half_written_is_written_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_pixel_dataset("digits", out)
    (out / "eval" / "latents.json").unlink()
    assert write_pixel_dataset("digits", out, skip_existing=True)
    assert len(open_latents(out / "eval")) == 355


def test_impossible_levels(tmp_path: Path) -> None:
    for levels in (0, 1, 257):
        with pytest.raises(UserError, match=f"--levels is {levels}"):
            write_pixel_dataset("digits", tmp_path / "out", levels=levels)


def test_script_writes_skips_and_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(SCRIPT), "digits", str(tmp_path / "out")]
    for flags, said in ([], "wrote {}\n"), (["--skip-existing"], "{} is already there\n"):
        monkeypatch.setattr(sys, "argv", [*arguments, *flags])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        assert capsys.readouterr().out == said.format(tmp_path / "out")
    refused = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: ") and refused.stderr.count("\n") == 1
