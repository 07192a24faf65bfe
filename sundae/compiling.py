"""torch.compile where it works; where it does not, the same network uncompiled, and why."""

from __future__ import annotations

import functools
import sys

import torch
from torch import nn


def compile_modules(*modules: nn.Module, quiet: bool = False) -> bool:
    """Compile modules in place, for the device they are on; their state dicts keep their names.

    Go back through a compiled module once a forward pass: doing so overwrites what it needs.

    Returns whether they were. When nothing can be compiled here, that is said once on stderr unless
    quiet, and the modules stay as they are.
    """
    device = next((p.device for module in modules for p in module.parameters()), None)
    problem = _problem(str(device or "cpu"))
    if problem:
        if not quiet:
            print(
                f"torch.compile does not work here ({problem}); going on without", file=sys.stderr
            )
        return False
    for module in modules:
        module.compile()
    return True


@functools.cache
def _problem(device: str) -> str:
    """Why a function of a few operations cannot be compiled for a device; empty when it can."""
    try:
        torch.compile(_probe)(torch.ones(64, device=device))
    except Exception as error:  # the compiler's own types, a missing C++ compiler, a missing Triton
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:120]}"
    return ""


def _probe(x: torch.Tensor) -> torch.Tensor:
    return (x * 2).relu().sum()
