"""NaN and infinite values are found wherever they are, by name, without a wait for each tensor."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sundae.common.finite import NonFiniteError, check_finite, first_non_finite, named_tensors

BROKEN = (math.nan, math.inf, -math.inf)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("place", [0, 7, 8, 40, 99])  # within and beyond a vector of the CPU
def test_one_broken_value_is_found_wherever_it_is(dtype: torch.dtype, place: int) -> None:
    for value in BROKEN:
        tensors = {name: torch.randn(100).to(dtype) for name in "abc"}
        assert first_non_finite(tensors) is None
        tensors["b"][place] = tensors["c"][place] = value
        assert first_non_finite(tensors) == "b"


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_eight_bit_floats_are_compared_too(dtype: torch.dtype) -> None:
    assert first_non_finite({"a": torch.ones(3).to(dtype)}) is None
    assert first_non_finite({"a": torch.tensor([1.0, math.nan]).to(dtype)}) == "a"


def test_what_has_no_broken_value_is_finite() -> None:
    largest = torch.finfo(torch.float64).max
    tensors = {
        "integers": torch.tensor([2**62]),
        "empty": torch.empty(0, 3),
        "largest": torch.tensor([largest, -largest], dtype=torch.float64),
        "scalar": torch.tensor(0.0),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    check_finite(tensors)
    check_finite({})


def test_the_host_does_not_wait_for_each_tensor() -> None:
    """On a GPU reading a scalar makes the host wait for the device."""
    read: list[object] = []

    class DonePoller(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func is torch.ops.aten._local_scalar_dense.default:
                read.append(func)
            return func(*args, **(kwargs or {}))

    tensors = {str(i): torch.ones(3) for i in range(50)} | {"half": torch.ones(3).half()}
    with DonePoller():
        assert first_non_finite(tensors) is None
        assert read == []
        assert bool(torch.isfinite(tensors["0"]).all()) and len(read) == 1  # what is counted


def test_an_optimisers_state_is_named_by_the_way_to_its_tensors() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    optimizer.state[parameter]["exp_avg_sq"][1] = math.inf
    tensors = named_tensors(optimizer.state_dict(), "optimizer")
    assert sorted(tensors) == [
        f"optimizer.state.0.{key}" for key in ("exp_avg", "exp_avg_sq", "step")
    ]
    with pytest.raises(NonFiniteError, match=r"^optimizer\.state\.0\.exp_avg_sq holds NaN or inf"):
        check_finite(tensors)
    assert named_tensors([1, {"a": (parameter, None)}], "x") == {"x.1.a.0": parameter}
