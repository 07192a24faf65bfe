"""Near codes and clusters of a codebook."""

import torch

from sundae.prior.code_tables import cluster_codes, near_codes


def test_near_codes_are_the_nearest_ones_and_never_the_code_itself() -> None:
    near = near_codes(torch.arange(30.0)[:, None] * 7)
    assert near.codes.shape == near.cumulative.shape == (30, 16)
    assert set(near.codes[10, :4].tolist()) == {8, 9, 11, 12}
    assert near.codes[0].tolist() == list(range(1, 17))
    weights = torch.exp(-torch.arange(1.0, 17.0))  # in units of the distance to the nearest code
    torch.testing.assert_close(near.cumulative[0], (weights / weights.sum()).cumsum(0))


def test_a_draw_inverts_the_cumulative_distribution() -> None:
    near = near_codes(torch.arange(5.0)[:, None])
    tokens = torch.zeros(2, 2, dtype=torch.long)
    uniforms = torch.tensor([[0.0, 0.64], [0.66, 1.0]])
    assert near.draw(tokens, uniforms).tolist() == [[1, 1], [2, 4]]


def test_equal_codes_give_finite_chances() -> None:
    near = near_codes(torch.zeros(3, 2))
    torch.testing.assert_close(near.cumulative, torch.tensor([[0.5, 1.0]]).expand(3, 2))
    assert cluster_codes(torch.zeros(3, 2), 2).tolist() == [0, 0, 0]


def test_clusters_are_the_groups_of_near_codes_and_always_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(8, 4, generator=generator) * 100
    codebook = (centres[:, None] + torch.randn(8, 5, 4, generator=generator)).flatten(0, 1)
    clusters = cluster_codes(codebook, 8)
    assert torch.equal(clusters, cluster_codes(codebook, 8))
    assert (clusters.view(8, 5) == clusters.view(8, 5)[:, :1]).all()
    assert clusters.unique().tolist() == list(range(8))
