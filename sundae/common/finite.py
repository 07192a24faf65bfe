"""NaN and infinite values: found with one pass over a tensor, refused by the tensor's name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sundae.common.errors import UserError


class NonFiniteError(UserError):
    """A value is NaN or infinite: a training has diverged, or a file holds what one has left."""


@torch.no_grad()
def first_non_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor that holds NaN or an infinite value.

    Integers are finite. The host waits once for each device, however many tensors there are.
    """
    by_device: dict[torch.device, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel():
            by_device.setdefault(tensor.device, {})[name] = tensor
    bad: set[str] = set()
    for group in by_device.values():
        bounds = [bound.double() for tensor in group.values() for bound in _extremes(tensor)]
        finite = torch.isfinite(torch.stack(bounds)).view(-1, 2).all(1).tolist()
        bad |= {name for name, fine in zip(group, finite, strict=True) if not fine}
    return next((name for name in tensors if name in bad), None)


def _extremes(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Minimum and maximum, both NaN where any value is.

    `torch.isfinite` of a whole tensor takes several times as long, and memory for copies of it.
    """
    if tensor.element_size() == 1:  # torch cannot compare eight-bit floats
        tensor = tensor.float()
    low, high = tensor.aminmax()
    return low, high


def check_finite(tensors: Mapping[str, Tensor], source: Path | None = None) -> None:
    """Raises NonFiniteError naming the first tensor that is not finite, and the file it is from."""
    name = first_non_finite(tensors)
    if name is not None:
        place = "" if source is None else f"{source}: "
        raise NonFiniteError(f"{place}{name} holds NaN or infinite values")


def named_tensors(values: Any, name: str) -> dict[str, Tensor]:
    """The tensors in nested dictionaries and lists, such as an optimiser's state.

    Their names are `name` and the keys on the way to them, with dots between.
    """
    if isinstance(values, Tensor):
        return {name: values}
    if isinstance(values, (list, tuple)):
        values = dict(enumerate(values))
    tensors: dict[str, Tensor] = {}
    for key, inner in values.items() if isinstance(values, Mapping) else ():
        tensors |= named_tensors(inner, f"{name}.{key}")
    return tensors
