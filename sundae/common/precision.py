"""Which arithmetic a network computes in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal, TypeAlias, get_args

import torch
from torch import nn

# "auto" is bf16 on a device that multiplies bfloat16 matrices in hardware, else fp32.
Precision: TypeAlias = Literal["auto", "fp32", "bf16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        able = torch.cpu.get_capabilities()
        return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
    return False


def uses_bf16(precision: Precision, device: torch.device) -> bool:
    """Whether a precision means bfloat16 autocast on a device."""
    return precision == "bf16" or (precision == "auto" and has_bf16(device))


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """bfloat16 autocast where the precision means that on the device, else a null context."""
    if uses_bf16(precision, device):
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def cast_linears_to_bf16(net: nn.Module) -> None:
    """Cast the linear maps of a network to bfloat16 in place, for use under autocast only.

    Autocast casts their weights in every forward pass instead; the results are equal bit for bit.
    Norms, embeddings and tables stay in float32.
    """
    for module in net.modules():
        if isinstance(module, nn.Linear):
            module.to(torch.bfloat16)
