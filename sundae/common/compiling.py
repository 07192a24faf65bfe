"""torch.compile where it works; where it does not, the same network uncompiled, and why."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

# Shapes and kinds of a function that may be compiled before the compiler gives up on it.
_VARIANTS = 64

# Steps of sampling, of all batches together, that take longer on a GPU than compiling them does.
_STEPS_TO_PAY = 500


def should_compile(setting: bool | None, device: torch.device, steps: int) -> bool:
    """Whether to compile the sampling steps: as set, else on a GPU from 500 steps on.

    `steps` counts those of all batches; 0 where each would have another shape.
    """
    return device.type == "cuda" and steps >= _STEPS_TO_PAY if setting is None else setting


class Compiled:
    """Runs functions of tensors compiled, where that fails as they are, saying why unless quiet.

    On CUDA they become CUDA graphs where the main thread calls. A function is compiled when it is
    first run with some shapes.
    """

    def __init__(self, device: torch.device, *, quiet: bool = False, **options: Any) -> None:
        """options: for torch.compile, instead of what suits the device."""
        self.graphs = device.type == "cuda" and not options
        self.quiet, self.works = quiet, True
        self._options = options
        self._made: dict[tuple[Callable[..., Any], bool], Callable[..., Any]] = {}

    def __call__(
        self, function: Callable[..., tuple[Tensor, ...]], *arguments: Any
    ) -> tuple[Tensor, ...]:
        """function(*arguments): tensors that later calls do not overwrite.

        The function writes to none of its arguments, so that it can be run once more.
        """
        if self.works:
            try:
                return self._run(function, arguments)
            except Exception as error:  # as many types as the compiler has ways to fail
                self.works = False
                if not self.quiet:
                    _say(_reason(error))
        return function(*arguments)

    def _run(
        self, function: Callable[..., tuple[Tensor, ...]], arguments: tuple[Any, ...]
    ) -> tuple[Tensor, ...]:
        # torch stores graphs by thread, and a page runs each sampling in whichever it has.
        graphs = self.graphs and threading.current_thread() is threading.main_thread()
        if (function, graphs) not in self._made:
            options = {"mode": "reduce-overhead"} if graphs else self._options
            self._made[function, graphs] = torch.compile(function, dynamic=False, **options)
        if graphs:
            torch.compiler.cudagraph_mark_step_begin()
        with torch._dynamo.config.patch(recompile_limit=_VARIANTS):
            made = self._made[function, graphs](*arguments)
        # The next replay of a graph writes where this one did.
        return tuple(part.clone() for part in made) if graphs else made


def compile_modules(*modules: nn.Module, quiet: bool = False) -> bool:
    """Compile modules in place, for the device they are on; their state dicts keep their names.

    Go back through a compiled module once a forward pass: doing so overwrites what it needs.

    Returns:
        Whether they were. If not, the modules stay as they are, and one line on stderr says why
        unless quiet.
    """
    device = next((p.device for module in modules for p in module.parameters()), None)
    problem = _problem(str(device or "cpu"))
    if problem:
        if not quiet:
            _say(problem)
        return False
    for module in modules:
        module.compile()
    return True


@functools.cache
def _problem(device: str) -> str:
    """Why a function of a few operations cannot be compiled for a device; empty when it can."""
    try:
        torch.compile(lambda x: (x * 2).relu().sum())(torch.ones(64, device=device))
    except Exception as error:  # the compiler's own types, a missing C++ compiler, a missing Triton
        return _reason(error)
    return ""


def _reason(error: Exception) -> str:
    """An exception, or the one that the compiler has wrapped in it, in less than a line."""
    error = getattr(error, "inner_exception", error)
    first, *_ = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {first[:120]}"


def _say(problem: str) -> None:
    print(f"torch.compile does not work here ({problem}); going on without", file=sys.stderr)
