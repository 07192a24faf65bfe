"""Compiled or not, the same network; where nothing compiles, that is said and work goes on."""

import threading
from typing import Any

import pytest
import torch
from torch import nn

from sundae.common import compiling
from sundae.common.compiling import Compiled, compile_modules, should_compile


@pytest.fixture(autouse=True)
def forget() -> None:
    compiling._problem.cache_clear()


def test_a_compiled_module_keeps_its_names_and_its_results() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.SiLU())
    names, x = list(net.state_dict()), torch.ones(2, 4)
    wanted = net(x)
    if not compile_modules(net, quiet=True):
        pytest.skip("no C++ compiler on this machine")
    made = net(x)
    torch.testing.assert_close(made, wanted)
    assert list(net.state_dict()) == names


def test_without_a_compiler_the_reason_is_said_once_and_the_network_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(function: object) -> object:
        raise RuntimeError("no compiler\nand a long story")

    monkeypatch.setattr(torch, "compile", broken)
    net = nn.Linear(2, 2)
    assert not compile_modules(net)
    error = capsys.readouterr().err
    assert "RuntimeError: no compiler" in error
    assert error.count("\n") == 1
    assert not compile_modules(net, quiet=True)
    assert capsys.readouterr().err == ""
    assert net(torch.ones(1, 2)).shape == (1, 2)


def test_sampling_is_compiled_when_asked_or_where_a_gpu_has_long_to_go() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for wanted in (True, False):
        assert should_compile(wanted, cpu, 1) is should_compile(wanted, cuda, 10**6) is wanted
    assert not should_compile(None, cpu, 10**6)
    assert not should_compile(None, cuda, 100)
    assert should_compile(None, cuda, 1000)


def test_cuda_graphs_are_for_the_main_thread_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch keeps them by thread, and a web page samples in whichever thread it has."""
    modes: list[str | None] = []

    def noted(function: Any, *, dynamic: bool, mode: str | None = None) -> Any:
        modes.append(mode)
        return function

    monkeypatch.setattr(torch, "compile", noted)
    run = Compiled(torch.device("cuda"))
    made = [run(lambda x: (x + 1,), torch.ones(1))]
    other = threading.Thread(target=lambda: made.append(run(lambda x: (x + 1,), torch.ones(1))))
    other.start()
    other.join()
    assert modes == ["reduce-overhead", None]
    assert [part.item() for (part,) in made] == [2, 2]
