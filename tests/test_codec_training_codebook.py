import math

import pytest
import torch
from torch import Tensor

from sundae.codec.vqgan.quantise import Quantiser, perplexity
from sundae.codec_training.codebook import (
    CodebookManager,
    kmeans,
    nearest,
    restart,
)
from sundae.common.finite import NonFiniteError

CENTRES = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clusters(each: int = 64) -> Tensor:
    """(4 * each, 2): points around four centres."""
    return (CENTRES[:, None] + 0.1 * torch.randn(4, each, 2, generator=generator())).flatten(0, 1)


def as_latents(rows: Tensor) -> Tensor:
    """(n, D) -> (1, D, n, 1)."""
    return rows.T[None, :, :, None]


def distance_to_codes(quantiser: Quantiser, rows: Tensor) -> Tensor:
    return (rows - quantiser.embedding.weight[nearest(quantiser, rows)]).norm(dim=1)


@torch.no_grad()
def test_kmeans_finds_the_centres_though_one_code_begins_far_away() -> None:
    quantiser = Quantiser(4, 2)
    quantiser.embedding.weight.copy_(CENTRES + 2)
    quantiser.embedding.weight[3] = 1e3
    kmeans(quantiser, clusters(), generator())
    found = quantiser.embedding.weight
    order = (found[:, 0] / 10).round() + 2 * (found[:, 1] / 10).round()
    torch.testing.assert_close(found[order.argsort()], CENTRES, atol=0.1, rtol=0)


@torch.no_grad()
def test_restart_revives_dead_codes_where_they_are_missed() -> None:
    quantiser, rows = Quantiser(4, 2), clusters()
    quantiser.embedding.weight.copy_(torch.tensor([[0.0, 0.0], [10.0, 0.0], [1e3, 0], [0, 1e3]]))
    alive_before = quantiser.embedding.weight[:2].clone()
    assert set(nearest(quantiser, rows).tolist()) == {0, 1}
    restart(quantiser, torch.tensor([False, False, True, True]), rows, generator())
    torch.testing.assert_close(quantiser.embedding.weight[:2], alive_before)
    assert set(nearest(quantiser, rows).tolist()) == {0, 1, 2, 3}


@torch.no_grad()
def test_latents_that_have_exploded_do_not_crash_the_restart() -> None:
    """Their squared distances are infinite, which ended in a traceback of torch.multinomial."""
    with pytest.raises(NonFiniteError, match="too large to restart codes"):
        restart(Quantiser(4, 2), torch.ones(4, dtype=torch.bool), clusters() * 1e30, generator())


@pytest.mark.parametrize("init", ["kmeans", "data"])
def test_initial_codes_lie_among_the_latents(init: str) -> None:
    quantiser, manager = Quantiser(16, 2), CodebookManager(16, 2, init=init)
    manager.reinit_dead(quantiser, as_latents(clusters(16)), 0, generator())
    with torch.no_grad():
        codes = quantiser.embedding.weight
        assert torch.cdist(codes, CENTRES).min(1).values.max() < 1
        assert distance_to_codes(quantiser, clusters(16)).max() < 1


def test_initialisation_goes_on_until_enough_latents_are_known() -> None:
    quantiser, manager = Quantiser(16, 2), CodebookManager(16, 2, init="kmeans")
    parts = clusters(16).split(16)  # one cluster a batch, a quarter of what is remembered
    for batch, part in enumerate(parts):
        manager.reinit_dead(quantiser, as_latents(part), batch, generator(batch))
    with torch.no_grad():
        assert distance_to_codes(quantiser, clusters(16)).max() < 1
        before = quantiser.embedding.weight.clone()
        manager.reinit_dead(quantiser, as_latents(parts[0] + 99), 4, generator())
        torch.testing.assert_close(quantiser.embedding.weight, before)


def test_uniform_initialisation_is_tamings() -> None:
    quantiser, manager = Quantiser(16, 2), CodebookManager(16, 2, init="uniform")
    manager.reinit_dead(quantiser, as_latents(clusters()), 0, generator())
    codes = quantiser.embedding.weight.detach()
    assert codes.abs().max() <= 1 / 16
    assert float(codes.std()) == pytest.approx(1 / 16 / math.sqrt(3), rel=0.3)


def test_only_codes_unused_for_long_enough_start_over() -> None:
    quantiser, manager = Quantiser(4, 2), CodebookManager(4, 2, restart_every=3)
    latents = as_latents(clusters(4))
    manager.reinit_dead(quantiser, latents, 0, generator())
    with torch.no_grad():
        quantiser.embedding.weight[3] = 1e3
    for batch in range(1, 3):
        manager.reinit_dead(quantiser, latents, batch, generator(batch))
        manager.update_usage(quantiser(latents))
        assert quantiser.embedding.weight[3, 0] == 1e3
    manager.update_usage(torch.tensor([0, 1, 2]))
    assert manager.age.tolist() == [0, 0, 0, 3]
    assert manager.alive() == 0.75
    living = quantiser.embedding.weight[:3].clone()
    manager.reinit_dead(quantiser, latents, 3, generator(3))
    torch.testing.assert_close(quantiser.embedding.weight[:3], living)
    assert quantiser.embedding.weight[3].max() < 11
    assert manager.age.tolist() == [0, 0, 0, 0]


def test_nothing_starts_over_after_the_last_restart() -> None:
    quantiser, manager = Quantiser(4, 2), CodebookManager(4, 2, restart_every=1, restart_until=5)
    manager.reinit_dead(quantiser, as_latents(clusters(4)), 0, generator())
    manager.age.fill_(9)
    before = quantiser.embedding.weight.clone()
    manager.reinit_dead(quantiser, as_latents(clusters(4)), 5, generator())
    torch.testing.assert_close(quantiser.embedding.weight, before)
    manager.reinit_dead(quantiser, as_latents(clusters(4)), 4, generator(1))
    assert not torch.equal(quantiser.embedding.weight, before)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([5, 5, 5, 5], 4.0),
        ([9, 0, 0, 0], 1.0),
        ([2, 1, 1, 0], 2.828427),
        ([2, 2, 0, 0, 0, 0, 0, 0], 2.0),
    ],
)
def test_perplexity_counts_codes(counts: list[int], expected: float) -> None:
    assert float(perplexity(torch.tensor(counts).float())) == pytest.approx(expected)
