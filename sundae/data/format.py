"""The packed format of token data: one folder with tokens.npy and latents.json.

tokens.npy is (rows, h, w), the smallest unsigned type that holds the codebook. latents.json
describes the rows. It is written last: a folder without it is unfinished.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sundae.common.errors import UserError
from sundae.common.files import write_text

TOKENS_NAME = "tokens.npy"
MANIFEST_NAME = "latents.json"
SKIPPED_NAME = "skipped.txt"
SHARDS_NAME = "shards"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Manifest:
    """The content of latents.json.

    Attributes:
        codec: identity of the codec whose tokens these are.
        codebook_size: tokens are in [0, codebook_size).
        latent_shape: (h, w) of one token grid.
        mirrored: row 2i is image i and row 2i + 1 its mirror image; otherwise row i is image i.
        classes: class names, indexed by label; None when there are no classes.
        sources: one relative path per image, in natural order.
        labels: one class index per image; None exactly when classes is.
        origin: source and preparation of the images, in one line.
    """

    codec: str
    codebook_size: int
    latent_shape: tuple[int, int]
    mirrored: bool
    classes: tuple[str, ...] | None
    sources: tuple[str, ...]
    labels: tuple[int, ...] | None
    origin: str = ""

    @property
    def rows(self) -> int:
        """Number of token grids."""
        return len(self.sources) * (2 if self.mirrored else 1)


# Not pydantic: it refuses file names that are not UTF-8, which are lone surrogates in `sources`.
_KEY_TYPES: dict[str, tuple[type, ...]] = {
    "codec": (str,),
    "codebook_size": (int,),
    "latent_shape": (list,),
    "mirrored": (bool,),
    "classes": (list, type(None)),
    "sources": (list,),
    "labels": (list, type(None)),
    "origin": (str,),
}


def token_dtype(codebook_size: int) -> np.dtype[Any]:
    """The smallest unsigned type that holds tokens in [0, codebook_size)."""
    return np.min_scalar_type(codebook_size - 1)


def load_array(path: Path) -> np.ndarray:
    """Memory-maps a .npy file.

    Raises:
        ValueError: it is no array, or not as long as its header says.
        OSError: it cannot be read.
    """
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.memmap):
        raise ValueError("no .npy file")
    expected, found = array.offset + array.nbytes, path.stat().st_size
    if found != expected:
        raise ValueError(f"{found} bytes, its header says {expected}")
    return array


def write_manifest(root: Path, manifest: Manifest) -> None:
    """Writes latents.json atomically, one line a key, so that the head of it is readable."""
    values = {"format": "sundae-latents", "version": FORMAT_VERSION} | asdict(manifest)
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in values.items()]
    write_text(root / MANIFEST_NAME, "{\n" + ",\n".join(lines) + "\n}\n")


def read_manifest(root: Path) -> Manifest:
    """Reads and checks latents.json.

    Raises:
        UserError: not JSON, another version, or a key that is missing, mistyped or contradictory.
    """
    path, again = root / MANIFEST_NAME, "generate the data again"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); {again}") from error
    if not isinstance(values, dict) or values.get("format") != "sundae-latents":
        raise UserError(f"{path} does not describe latents; point the data folder elsewhere")
    if values.get("version") != FORMAT_VERSION:
        found = values.get("version")
        raise UserError(f"{path} has version {found}, expected {FORMAT_VERSION}; generate it again")
    for key, types in _KEY_TYPES.items():
        if not isinstance(values.get(key), types):
            raise UserError(f"{path}: key '{key}' is missing or mistyped; {again}")
    content: dict[str, Any] = {key: values[key] for key in _KEY_TYPES}
    lists = {key: tuple(value) for key, value in content.items() if isinstance(value, list)}
    manifest = Manifest(**(content | lists))
    contradiction = _contradiction(manifest)
    if contradiction:
        raise UserError(f"{path}: {contradiction}; {again}")
    return manifest


def _contradiction(manifest: Manifest) -> str | None:
    shape, classes, labels = manifest.latent_shape, manifest.classes, manifest.labels
    if len(shape) != 2 or not all(isinstance(side, int) and side > 0 for side in shape):
        return f"latent_shape is {list(shape)}, expected [height, width]"
    if classes is None or labels is None:
        both = classes is None and labels is None
        return None if both else "classes and labels must both be given or both be null"
    if len(labels) != len(manifest.sources):
        return f"{len(labels)} labels for {len(manifest.sources)} sources"
    wrong = set(labels) - set(range(len(classes)))
    return f"label {min(map(str, wrong))} with {len(classes)} classes" if wrong else None
