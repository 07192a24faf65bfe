"""IDX files of bytes, the form of MNIST and its relatives, plain or gzipped."""

import gzip
import zlib
from pathlib import Path

import numpy as np

from sundae.common.errors import UserError

# What a data set consists of, in the folder that torchvision calls raw.
IDX_FILES = tuple(
    f"{p}-{kind}-ubyte" for p in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)


def idx_path(raw: Path, file: str) -> Path:
    """The plain file, else the gzipped one."""
    return raw / file if (raw / file).is_file() else raw / f"{file}.gz"


def read_idx(path: Path) -> np.ndarray:
    """Reads unsigned bytes of any shape from an IDX file, plain or gzipped.

    Raises:
        UserError: not an IDX file of bytes, or shorter than it says.
    """
    data = read_bytes(path)
    header = 4 + 4 * data[3] if data[:3] == b"\x00\x00\x08" and len(data) > 3 else 0
    if not 0 < header <= len(data):
        raise UserError(f"{path} is not an IDX file of bytes; replace it")
    shape = tuple(np.frombuffer(data[4:header], dtype=">u4").tolist())
    if len(data) != header + int(np.prod(shape)):
        raise UserError(
            f"{path} says it holds {shape} bytes but has {len(data) - header}; replace it"
        )
    return np.frombuffer(data, dtype=np.uint8, offset=header).reshape(shape)


def read_bytes(path: Path) -> bytes:
    """What a file holds, unpacked when it is gzipped; UserError when that fails."""
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be unpacked ({error}); replace it") from error
