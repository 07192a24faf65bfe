"""Small grey images as token data, one token a pixel: MNIST and its relatives, and digits."""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sundae.codec.interface import PixelCodec
from sundae.common.errors import UserError
from sundae.common.files import make_folder, writing_to
from sundae.common.locking import folder_lock
from sundae.data.format import Manifest, read_manifest
from sundae.data.writer import is_finished, write_latents
from sundae.datasets.idx import IDX_FILES, idx_path, read_idx
from sundae.datasets.mnist import SET_NAMES, download_idx

_DIGIT_NAMES = tuple("0123456789")
_KMNIST_NAMES = tuple("o ki su tsu na ha ma ya re wo".split())
_FASHION_NAMES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
# name -> (class of torchvision.datasets, which is also the folder under data/; class names)
_IDX_DATASETS = {
    "mnist": ("MNIST", _DIGIT_NAMES),
    "kmnist": ("KMNIST", _KMNIST_NAMES),
    "fashionmnist": ("FashionMNIST", _FASHION_NAMES),
}
_ALIASES = {"fashion": "fashionmnist"}
_IDX_PREFIX = {"train": "train", "eval": "t10k"}

NAMES = (*_IDX_DATASETS, *_ALIASES, "digits")


@dataclass(frozen=True)
class GreyImages:
    """One side of a data set: (N, h, w) integers from 0 to `white`, N class indices and names."""

    pixels: np.ndarray
    labels: np.ndarray
    sources: tuple[str, ...]
    white: int


def write_pixel_dataset(
    name: str,
    out: Path,
    *,
    levels: int | None = None,
    data_dir: Path = Path("data"),
    overwrite: bool = False,
    skip_existing: bool = False,
    quiet: bool = False,
) -> bool:
    """Writes OUT/train and OUT/eval as packed latents.

    Args:
        name: one of NAMES.
        levels: grey levels, 2 to 256; None takes 17 for digits (all that it has) and 256 otherwise.
        data_dir: the folder of torchvision's downloads, e.g. data_dir/MNIST/raw.
        skip_existing: do nothing when out already holds the same data, complete.

    Returns:
        Whether it wrote; False when skip_existing found the data complete.

    Raises:
        UserError: out is finished already or being written by another process, the files are
            missing or damaged, levels are impossible.
    """
    name = _ALIASES.get(name, name)
    levels = (17 if name == "digits" else 256) if levels is None else levels
    if not 2 <= levels <= 256:
        raise UserError(f"--levels is {levels}, expected 2 to 256")
    origins = {side: f"{name} {side}, {levels} grey levels" for side in ("train", "eval")}
    if not overwrite and _already_written(out, origins, skip_existing):
        return False
    classes = _DIGIT_NAMES if name == "digits" else _IDX_DATASETS[name][1]
    sides = {  # all is read before any is written
        side: _load_digits(side) if name == "digits" else _load_idx(name, side, data_dir, quiet)
        for side in origins
    }
    with folder_lock(out):
        if not overwrite and _already_written(out, origins, skip_existing):
            return False  # by another process, meanwhile
        for side, images in sides.items():
            tokens = quantise(images.pixels, images.white, levels)
            manifest = Manifest(
                codec=PixelCodec(levels).identity,
                codebook_size=levels,
                latent_shape=(tokens.shape[1], tokens.shape[2]),
                mirrored=False,
                classes=classes,
                sources=images.sources,
                labels=tuple(images.labels.tolist()),
                origin=origins[side],
            )
            write_latents(out / side, tokens, manifest, overwrite=True)
    return True


def quantise(pixels: np.ndarray, white: int, levels: int) -> np.ndarray:
    """(N, h, w) integers in [0, white] -> the nearest of `levels` even steps, uint8."""
    return np.rint(pixels * ((levels - 1) / white)).astype(np.uint8)


def _already_written(out: Path, origins: dict[str, str], skip_existing: bool) -> bool:
    """True to skip; UserError when `out` is taken; False when it is free or unfinished."""
    found = {read_manifest(out / side).origin for side in origins if is_finished(out / side)}
    if skip_existing and found == set(origins.values()):
        return True
    if found < set(origins.values()):
        return False
    raise UserError(
        f"{out} already holds {' and '.join(sorted(found))}; choose another OUT or pass --overwrite"
    )


def _load_digits(side: str) -> GreyImages:
    """The 1,797 8x8 digits of scikit-learn; every fifth image of a class is held out."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    members = [np.flatnonzero(digits.target == label) for label in range(10)]
    held_out = np.concatenate([places[4::5] for places in members])
    chosen = np.flatnonzero(np.isin(np.arange(len(digits.target)), held_out) == (side == "eval"))
    sources = tuple(f"{index:04d}" for index in chosen)
    return GreyImages(digits.images[chosen].astype(np.uint8), digits.target[chosen], sources, 16)


def _load_idx(name: str, side: str, data_dir: Path, quiet: bool) -> GreyImages:
    """One side of a data set in IDX files of torchvision's layout, downloaded when missing."""
    folder, prefix = _IDX_DATASETS[name][0], _IDX_PREFIX[side]
    raw = data_dir / folder / "raw"
    if not all(idx_path(raw, file).is_file() for file in IDX_FILES):
        _download(folder, data_dir, quiet)
    pixels = read_idx(idx_path(raw, f"{prefix}-images-idx3-ubyte"))
    labels = read_idx(idx_path(raw, f"{prefix}-labels-idx1-ubyte"))
    if pixels.ndim != 3 or labels.shape != pixels.shape[:1] or labels.max(initial=0) > 9:
        raise UserError(
            f"{raw}: the {prefix} files hold images {pixels.shape} and labels "
            f"{labels.shape}, which do not belong together; replace them"
        )
    sources = tuple(f"{prefix}/{index:05d}" for index in range(len(pixels)))
    return GreyImages(pixels, labels, sources, 255)


def _download(folder: str, data_dir: Path, quiet: bool) -> None:
    """Downloads into a temporary folder first, so that a broken download leaves nothing behind."""
    raw = data_dir / folder / "raw"
    with _temporary_folder(data_dir) as temporary:
        try:
            source = download_idx(folder, Path(temporary), quiet)
        except UserError as error:
            command = f"python get-images.py {SET_NAMES.get(folder)} {data_dir}"
            fetch = f"run: {command}; or " if folder in SET_NAMES else ""
            files = ", ".join(IDX_FILES)
            raise UserError(f"{error}; {fetch}put {files} (or .gz) into {raw}") from error
        make_folder(raw)
        with writing_to(raw):
            for path in source.iterdir():
                path.replace(raw / path.name)


@contextlib.contextmanager
def _temporary_folder(data_dir: Path) -> Iterator[str]:
    """A folder inside data_dir, which goes as well if it was created for it and is left empty."""
    created = not data_dir.exists()
    make_folder(data_dir)
    try:
        with tempfile.TemporaryDirectory(dir=data_dir, prefix=".download-") as temporary:
            yield temporary
    finally:
        if created and not any(data_dir.iterdir()):
            data_dir.rmdir()
