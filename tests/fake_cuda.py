"""A CUDA device that is not there: its tensors say "cuda" and compute on the CPU.

Within `fake_cuda` tensors are made on "cuda" and moved there as on a machine with a GPU, and hold
the CPU's results. What a GPU refuses is refused, and what makes the host wait for it is noted.
torch's own FakeTensorMode checks devices likewise. But its tensors have no values, so nothing that
looks at one can go on, and without a driver nothing can go backward through them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

from sundae.sampling.strategies import halton_order

CPU, CUDA = torch.device("cpu"), torch.device("cuda")

# What the C++ side of torch takes the device for. "lazy" can go backward without a driver. Only
# with "cuda" is autocast in effect, and then without going backward.
BACKWARD, AUTOCAST = torch.device("lazy", 0), torch.device("cuda", 0)

# Operations with a result, or a shape of it, that the host has to know.
_WAITING = {
    *("_local_scalar_dense", "nonzero", "_unique", "_unique2", "unique_dim", "unique_consecutive"),
    *("masked_select", "equal", "bincount"),
}
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}


class MixedDevicesError(RuntimeError):
    """An operation got tensors of several devices, or another device's generator."""


class CudaTensor(Tensor):
    """A tensor on the pretended device.

    Attributes:
        inner: what it holds, on the CPU.
        place: what the C++ side of torch takes its device for.
    """

    inner: Tensor
    place: torch.device

    @staticmethod
    def __new__(cls, inner: Tensor, place: torch.device) -> CudaTensor:
        tensor = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=place,
        )
        tensor.inner, tensor.place = inner, place
        return tensor

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: torch.device("cuda", 0))
    is_cuda = property(lambda self: True)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def untyped_storage(self) -> Any:
        return self.inner.untyped_storage()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.inner.__reduce_ex__(protocol)

    def __repr__(self, **_: Any) -> str:
        return f"CudaTensor({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, *_: Any) -> Any:
        raise RuntimeError(f"{func} of a pretended tensor, outside of fake_cuda")


def leaves(value: Any) -> list[Any]:
    """What nested lists, tuples and dictionaries hold."""
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, (list, tuple)):
        return [value]
    return [leaf for inner in value for leaf in leaves(inner)]


def mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """Nested lists, tuples and dictionaries of what a function makes of the leaves."""
    if isinstance(value, dict):
        return {name: mapped(function, inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        made = [mapped(function, inner) for inner in value]
        return made if isinstance(value, list) else tuple(made)
    return function(value)


_TO = Tensor.to


def _to(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`Tensor.to`, which would query a driver for the number of "cuda".

    What is on the device already is moved to where the C++ side takes it to be, and so stays.
    """
    place = self.place if isinstance(self, CudaTensor) else AUTOCAST

    def placed(value: Any) -> Any:
        named = isinstance(value, (str, torch.device)) and _is_cuda(value)
        return place if named else value

    return _TO(self, *mapped(placed, args), **mapped(placed, kwargs))


def _is_cuda(device: str | torch.device) -> bool:
    return torch.device(device).type in (CUDA.type, BACKWARD.type)


class FakeCuda(TorchDispatchMode):
    """Runs every operation on the CPU, and sees what a GPU would.

    Attributes:
        waits: what makes the host wait for the device, in turn; for a test to clear.
        operations: how many there were.
    """

    def __init__(self, place: torch.device) -> None:
        super().__init__()
        self._mode_key = torch._C._TorchDispatchModeKey.FAKE  # torch then looks for no driver
        self.place = place
        self.waits: list[str] = []
        self.operations = 0
        self.arriving: list[Tensor] = []  # in pinned memory, from the device

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled within, and to skip it costs an import of seconds

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.operations += 1
        kwargs = dict(kwargs or {})
        given, device = leaves((args, kwargs)), kwargs.get("device")
        there = [value for value in given if isinstance(value, CudaTensor)]
        to_cuda = bool(there) if device is None else _is_cuda(device)
        name = func.overloadpacket.__name__
        self._check(func, given, there, to_cuda)
        self._note(name, args, kwargs, there, to_cuda)
        if there and name == "_fused_sdp_choice":
            return 0  # by plain products, which every device has
        if device is not None and _is_cuda(device):
            kwargs["device"] = CPU
        pinned = kwargs.pop("pin_memory", False)
        result = self._run(func, args, kwargs, there, to_cuda)
        if pinned:
            result.pinned = True
        return result

    def _check(self, func: Any, given: list[Any], there: list[CudaTensor], to_cuda: bool) -> None:
        """Refuse what comes from several devices, or has not arrived."""
        here = [v for v in given if isinstance(v, Tensor) and not isinstance(v, CudaTensor)]
        if here and there and func.overloadpacket.__name__ != "copy_":
            raise MixedDevicesError(f"{func} got tensors on cuda and on the CPU")
        if any(tensor is late for tensor in here for late in self.arriving):
            raise RuntimeError(f"{func} got a tensor that has not arrived from the device")
        for generator in given:
            if isinstance(generator, _GENERATOR):
                # torch hands on another object for the same generator.
                place = getattr(_MADE.get(generator._cdata), "device", CPU)
                if _is_cuda(place) != to_cuda:
                    raise MixedDevicesError(f"{func} got a generator on {place}")

    def _run(
        self, func: Any, args: Any, kwargs: Any, there: list[CudaTensor], to_cuda: bool
    ) -> Any:
        """The operation on the values; what it has written to comes back as what was given."""
        given = {id(tensor.inner): tensor for tensor in there}
        if there:
            args, kwargs = mapped(_value, args), mapped(_value, kwargs)
        with no_dispatch():
            result = func(*args, **kwargs)
        if not to_cuda:
            return result

        def wrapped(made: Any) -> Any:
            if not isinstance(made, Tensor) or id(made) in given:
                return given.get(id(made), made)
            return CudaTensor(made, self.place)

        return mapped(wrapped, result)

    def _note(
        self, name: str, args: Any, kwargs: Any, there: list[CudaTensor], to_cuda: bool
    ) -> None:
        """A copy between devices is waited for, unless it is from or to pinned memory and may go on
        alone."""
        if name in ("copy_", "_to_copy"):
            source, target = (args[1], args[0]) if name == "copy_" else (args[0], None)
            to_cuda = to_cuda if target is None else isinstance(target, CudaTensor)
            alone = kwargs.get("non_blocking") or args[2:3] == (True,)
            if isinstance(source, CudaTensor) == to_cuda:
                return
            if not alone or not hasattr(source if to_cuda else target, "pinned"):
                self.waits.append(f"{name} {'to' if to_cuda else 'from'} cuda")
            elif not to_cuda:
                self.arriving.append(target)
        elif there and (name in _WAITING or _masks(name, args)):
            self.waits.append(name)


def _masks(name: str, args: Any) -> bool:
    """Whether an operation indexes by a mask, which the host turns into places first."""
    return name in _INDEXING and any(
        index is not None and index.dtype == torch.bool for index in args[1]
    )


_GENERATOR = torch.Generator
_MADE: WeakValueDictionary[int, FakeGenerator] = WeakValueDictionary()


class FakeGenerator(_GENERATOR):
    """Draws a CPU's numbers for either device."""

    def __new__(cls, device: str | torch.device = CPU) -> FakeGenerator:
        generator = super().__new__(cls)
        generator.place = AUTOCAST if _is_cuda(device) else CPU
        _MADE[generator._cdata] = generator
        return generator

    device = property(lambda self: self.place)


class FakeEvent:
    """Recorded after copies to pinned memory; they have arrived when it was waited for.

    With operations between, the host has better things to do and finds them there: no wait.
    """

    def __init__(self, mode: FakeCuda) -> None:
        self.mode = mode
        self.copies: list[Tensor] = []
        self.number = 0

    def record(self) -> None:
        self.copies, self.number = list(self.mode.arriving), self.mode.operations

    def synchronize(self) -> None:
        if self.number == self.mode.operations:
            self.mode.waits.append("synchronize")
        left = [c for c in self.mode.arriving if not any(c is mine for mine in self.copies)]
        self.mode.arriving[:] = left


@contextmanager
def fake_cuda(place: torch.device = BACKWARD) -> Iterator[FakeCuda]:
    """A CUDA device for as long as the context lasts; place: BACKWARD or AUTOCAST."""
    if place == AUTOCAST and not torch.backends.cuda.is_built():
        pytest.skip("torch was built without CUDA")
    mode, convert = FakeCuda(place), torch.__future__.get_swap_module_params_on_conversion()
    lifts = torch._C._only_lift_cpu_tensors()
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(Tensor, "to", _to)
        patch.setattr(torch, "Generator", FakeGenerator)
        patch.setattr(torch.cuda, "Event", partial(FakeEvent, mode))
        patch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        halton_order.cache_clear()
        stack.callback(halton_order.cache_clear)
        # Modules keep their parameters when they are moved, as they do without a subclass.
        torch.__future__.set_swap_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_swap_module_params_on_conversion, convert)
        if place == AUTOCAST:
            torch._C._ensureCUDADeviceGuardSet()  # does nothing, where there is no driver
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(.., device="cuda") is a copy
        stack.callback(torch._C._set_only_lift_cpu_tensors, lifts)
        stack.enter_context(mode)
        yield mode


def _value(leaf: Any) -> Any:
    return leaf.inner if isinstance(leaf, CudaTensor) else leaf


def values(result: Any) -> Any:
    """What tensors hold, all of which must be on the device."""
    for leaf in leaves(result):
        assert isinstance(leaf, CudaTensor) or not isinstance(leaf, Tensor), f"on the CPU: {leaf}"
    return mapped(_value, result)


@contextmanager
def on_the_cpu() -> Iterator[None]:
    """What is run herein is computed as torch would, by the attention that `FakeCuda` chooses."""
    with no_dispatch(), sdpa_kernel(SDPBackend.MATH):
        yield


def assert_same(compute: Callable[[torch.device], Any], **tolerance: float) -> None:
    """What is computed on the device is there, and equals what the CPU computes."""
    found = values(compute(CUDA))
    with on_the_cpu():
        torch.testing.assert_close(found, compute(CPU), **tolerance)


def assert_fetched(
    cuda: FakeCuda, compute: Callable[[torch.device], Any], **tolerance: float
) -> None:
    """What is computed on the device is brought to the CPU, and equals what that computes."""
    cuda.waits.clear()
    found = compute(CUDA)
    assert "_to_copy from cuda" in cuda.waits
    assert not any(isinstance(leaf, CudaTensor) for leaf in leaves(found))
    with on_the_cpu():
        torch.testing.assert_close(found, compute(CPU), **tolerance)
