"""What training on several devices has to agree on beyond gradients."""

import torch.distributed as dist
from torch import Tensor


def several() -> bool:
    """Whether this process is one of several that train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def summed(tensor: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    if several():
        dist.all_reduce(tensor)
    return tensor


def shared(tensor: Tensor) -> Tensor:
    """The first process's values, in place."""
    if several():
        dist.broadcast(tensor.detach(), 0)
    return tensor
