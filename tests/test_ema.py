"""The averaged twin of a network."""

import pytest
import torch
from torch import nn

from sundae.training.ema import EMA


class Counter(nn.Module):
    """One weight, and a buffer as batch normalisation has."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.register_buffer("seen", torch.tensor(0))


def updated(decay: float, values: list[float]) -> tuple[Counter, EMA]:
    """A network whose weight takes these values, one an update, and its twin."""
    net = Counter()
    ema = EMA(net, decay)
    for value in values:
        net.weight.data.fill_(value)
        net.seen += 1
        ema.update(net)
    return net, ema


def test_the_average_follows_its_definition() -> None:
    values = [1.0, -2.0, 5.0, 3.0]
    expected, decay = 0.0, 0.35
    for count, value in enumerate(values, start=1):
        kept = min(decay, (1 + count) / (10 + count))
        expected = kept * expected + (1 - kept) * value
    _, ema = updated(decay, values)
    assert ema.net.weight.tolist() == pytest.approx([expected] * 3)
    assert ema.updates == 4


def test_the_first_updates_leave_the_initial_weights_behind() -> None:
    _, ema = updated(0.9999, [1.0] * 50)
    assert ema.net.weight[0] > 0.99  # at a decay of 0.9999 it would be 0.005


def test_a_long_average_forgets_at_its_own_decay() -> None:
    net, ema = updated(0.9, [1.0] * 200)
    net.weight.data.zero_()
    ema.update(net)
    assert ema.net.weight[0].item() == pytest.approx(0.9, abs=1e-5)


def test_buffers_are_copied_not_averaged() -> None:
    _, ema = updated(0.9, [1.0] * 5)
    assert ema.net.seen == 5


def test_the_twin_is_apart_from_the_network_and_never_trained() -> None:
    net, ema = updated(0.9, [1.0])
    before = ema.net.weight.clone()
    net.weight.data.fill_(7.0)
    assert torch.equal(ema.net.weight, before)
    assert not ema.net.training and not any(p.requires_grad for p in ema.net.parameters())
    assert net.training and net.weight.requires_grad
