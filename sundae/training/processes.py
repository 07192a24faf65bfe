"""What several processes that train together exchange beyond gradients."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from accelerate.utils import broadcast_object_list
from torch import Tensor


def is_distributed() -> bool:
    """Whether this process is one of several that train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def broadcast_from_main(*values: Any) -> list[Any]:
    """The main process's values, in every process."""
    return broadcast_object_list(list(values))


def broadcast_tensor(tensor: Tensor) -> None:
    """Replace a tensor in place by the main process's values."""
    if is_distributed():
        dist.broadcast(tensor.detach(), 0)


def sum_over_processes(tensor: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    if is_distributed():
        dist.all_reduce(tensor)
    return tensor
