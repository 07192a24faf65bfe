"""Token data of earlier tools: one .npy per image, flat or in one folder per class."""

from dataclasses import dataclass
from math import isqrt
from pathlib import Path

import numpy as np

from sundae.common.errors import UserError
from sundae.common.naming import is_mirror, natural_key, picture_name
from sundae.data.format import load_array, token_dtype


@dataclass(frozen=True)
class LooseLatents:
    """What a folder of small files holds; a picture and its mirror images are one source.

    Attributes:
        tokens: (rows, h, w), the smallest unsigned type that holds the largest token.
        pictures: (rows,) int64, the index into sources of each row.
        sources: relative path of each picture's unmirrored file (any file where there is none).
        classes: folder names in natural order, or None for a flat folder.
        labels: (pictures,) int64, or None for a flat folder.
    """

    tokens: np.ndarray
    pictures: np.ndarray
    sources: tuple[str, ...]
    classes: tuple[str, ...] | None
    labels: np.ndarray | None


def read_loose_latents(root: Path, latent_shape: tuple[int, int] | None) -> LooseLatents:
    """Reads all files into one array; each may be (h, w), (1, h, w), (h*w,) or (1, h*w) integers.

    Args:
        root: folder of .npy files, or of class folders of them.
        latent_shape: (h, w) of flat vectors; None takes them as square.

    Raises:
        UserError: no files, an empty class, a file that is not such an array, two different shapes.
    """
    classes, names = _list_files(root)
    names.sort(key=lambda name: (natural_key(picture_name(name)), is_mirror(name), name))
    index: dict[str, int] = {}
    sources: list[str] = []
    for name in names:
        if index.setdefault(picture_name(name), len(index)) == len(sources):
            sources.append(name)
    pictures = np.array([index[picture_name(name)] for name in names], dtype=np.int64)
    labels = None
    if classes is not None:
        number = {name: label for label, name in enumerate(classes)}
        labels = np.array([number[s.split("/")[0]] for s in sources], dtype=np.int64)
    tokens = _gather([root / name for name in names], latent_shape)
    return LooseLatents(tokens, pictures, tuple(sources), classes, labels)


def _list_files(root: Path) -> tuple[tuple[str, ...] | None, list[str]]:
    """Class names in natural order (None when flat) and relative paths of all files."""
    flat = _list_arrays(root)
    if flat:
        return None, flat
    folders = [p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")]
    folders.sort(key=natural_key)
    names = []
    for folder in folders:
        files = [f"{folder}/{name}" for name in _list_arrays(root / folder)]
        if not files:
            raise UserError(
                f"class '{folder}' has no token files: put .npy files into {root / folder}; "
                "if these are pictures, make tokens of them with generate-latents.py first"
            )
        names += files
    if not names:
        raise UserError(f"{root} is empty: expected what generate-latents.py writes, or .npy files")
    return tuple(folders), names


def _list_arrays(folder: Path) -> list[str]:
    return [path.name for path in folder.glob("*.npy") if not path.name.startswith(".")]


def _gather(paths: list[Path], latent_shape: tuple[int, int] | None) -> np.ndarray:
    first = _read_grid(paths[0], latent_shape)
    tokens = np.empty((len(paths), *first.shape), dtype=np.uint8)
    for row, path in enumerate(paths):
        grid = _read_grid(path, latent_shape)
        if grid.shape != first.shape:
            shapes = f"{path} has latent shape {grid.shape}, {paths[0]} has {first.shape}"
            raise UserError(f"{shapes}; all files of a data set must have the same")
        largest = int(grid.max())
        if largest > np.iinfo(tokens.dtype).max:
            tokens = tokens.astype(token_dtype(largest + 1))
        tokens[row] = grid
    return tokens


def _read_grid(path: Path, latent_shape: tuple[int, int] | None) -> np.ndarray:
    try:
        grid = load_array(path)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"{path} is not a readable array ({error}); delete or replace it"
        ) from error
    if not isinstance(grid, np.ndarray) or grid.dtype.kind not in "iu" or grid.size == 0:
        kind = getattr(grid, "dtype", "no array")
        raise UserError(f"{path} holds {kind}, expected integer tokens; delete or replace it")
    if grid.min() < 0 or grid.max() >= 2**32:
        raise UserError(f"{path} holds token {grid.min()}..{grid.max()}, expected 0 to 2^32 - 1")
    return _as_grid(path, grid, latent_shape)


def _as_grid(path: Path, grid: np.ndarray, latent_shape: tuple[int, int] | None) -> np.ndarray:
    if grid.ndim == 3 and grid.shape[0] == 1:
        grid = grid[0]
    if grid.ndim == 2 and grid.shape[0] > 1:
        return grid
    if grid.ndim > 2 or grid.ndim == 0:
        raise UserError(f"{path} has shape {grid.shape}, expected (h, w), (1, h, w) or (h*w,)")
    side = isqrt(grid.size)
    height, width = latent_shape or (side, side)
    if height * width != grid.size:
        raise UserError(
            f"{path} holds {grid.size} tokens, which are not {height}x{width}; set the latent shape"
        )
    return grid.reshape(height, width)
