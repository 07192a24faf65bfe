"""NaN and infinite values: found with one pass over a tensor, refused by the tensor's name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
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
    bad = {name for group in by_device.values() for name in _non_finite(group)}
    return next((name for name in tensors if name in bad), None)


def _non_finite(tensors: dict[str, Tensor]) -> Iterator[str]:
    """The names of those that are not finite, among tensors of one device."""
    bounds = [bound.double() for tensor in tensors.values() for bound in _extremes(tensor)]
    finite = torch.isfinite(torch.stack(bounds)).view(-1, 2).all(1).tolist()
    yield from (name for name, fine in zip(tensors, finite, strict=True) if not fine)


def _extremes(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Minimum and maximum, both NaN where any value is.

    `torch.isfinite` of a whole tensor takes several times as long, and memory for copies of it.
    """
    if tensor.element_size() == 1:  # torch cannot compare eight-bit floats
        tensor = tensor.float()
    low, high = tensor.aminmax()
    return low, high


def check_finite(tensors: Mapping[str, Tensor], source: Path | None = None) -> None:
    """Make sure that tensors hold numbers.

    Args:
        source: the file they come from, if they do.

    Raises:
        NonFiniteError: naming the file and the first tensor that holds NaN or an infinite value.
    """
    name = first_non_finite(tensors)
    if name is not None:
        place = "" if source is None else f"{source}: "
        raise NonFiniteError(f"{place}{name} holds NaN or infinite values")


def named_tensors(values: Any, name: str) -> dict[str, Tensor]:
    """The tensors in nested dictionaries and lists, such as an optimiser's state.

    Args:
        name: what the names begin with; the keys on the way to a tensor follow, with dots between.
    """
    return dict(_named(values, name))


def _named(values: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(values, Tensor):
        yield name, values
        return
    pairs: Iterable[tuple[Any, Any]] = ()
    if isinstance(values, Mapping):
        pairs = values.items()
    elif isinstance(values, (list, tuple)):
        pairs = enumerate(values)
    for key, inner in pairs:
        yield from _named(inner, f"{name}.{key}")
