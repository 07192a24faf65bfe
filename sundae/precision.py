"""Which arithmetic a device is good at."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        able = torch.cpu.get_capabilities()
        return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
    return False


def autocast(device: torch.device, use_amp: bool) -> AbstractContextManager[object]:
    """bfloat16 autocast where it is wanted and the device has it; otherwise float32 as it is."""
    if use_amp and has_bf16(device):
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()
