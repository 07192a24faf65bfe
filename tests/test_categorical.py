"""Draws of tokens, and noise by counting, against distributions with a known answer."""

import pytest
import torch
from torch import Tensor

from sundae.prior.categorical import draw_seeds, draw_tokens, keep_likely, seeded_uniforms

ALMOST_ONE = 1 - 2**-24
# Quantiles of chi-square at 0.9999 for the degrees of freedom used below.
CHI_SQUARE = {6: 27.86, 15: 44.26}


def chi_square(counts: Tensor, expected: Tensor) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


def test_draws_follow_softmax_at_every_temperature() -> None:
    logits = torch.tensor([0.0, 1.5, -2.0, 0.3, 1.0, -1.0, 0.1])
    generator = torch.Generator().manual_seed(0)
    for temperature in (0.5, 1.0, 3.0):
        uniforms = torch.rand(20_000, generator=generator)
        drawn = draw_tokens(logits.expand(20_000, 7), uniforms, temperature)
        expected = torch.softmax(logits / temperature, 0) * 20_000
        assert chi_square(drawn.bincount(minlength=7), expected) < CHI_SQUARE[6]


def test_a_token_is_drawn_over_a_stretch_of_uniforms_as_long_as_its_probability() -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(1))
    count = 10_000
    grid = (torch.arange(count) + 0.5) / count
    drawn = draw_tokens(logits.expand(count, 50), grid)
    assert (drawn.diff() >= 0).all()
    error = drawn.bincount(minlength=50) - count * torch.softmax(logits, 0)
    assert error.abs().max() <= 1.01


@pytest.mark.parametrize(
    ("top_k", "top_p", "kept"),
    [
        (0, 1.0, [0, 1, 2, 3, 4]),
        (5, 1.0, [0, 1, 2, 3, 4]),
        (9, 1.0, [0, 1, 2, 3, 4]),
        (3, 1.0, [0, 2, 3]),
        (1, 1.0, [2]),
        (0, 0.01, [2]),
        (0, 0.39, [2]),
        (0, 0.41, [0, 2]),
        (0, 0.64, [0, 2]),
        (0, 0.66, [0, 2, 3]),
        (0, 0.999, [0, 1, 2, 3, 4]),
        (3, 0.50, [0, 2]),  # of 0.4, 0.25 and 0.2 the two are 0.76
        (3, 0.77, [0, 2, 3]),  # without top_k the two and 0.12 would do, but it is not among them
        (2, 0.999, [0, 2]),
    ],
)
def test_top_k_and_top_p_keep_exactly_the_right_codes(
    top_k: int, top_p: float, kept: list[int]
) -> None:
    probabilities = torch.tensor([0.25, 0.03, 0.40, 0.20, 0.12])
    logits = probabilities.log() + 3
    left = keep_likely(torch.stack((logits, logits.flip(0))), top_k, top_p)
    wanted = torch.full((5,), -torch.inf)
    wanted[kept] = logits[kept]
    assert torch.equal(left, torch.stack((wanted, wanted.flip(0))))
    uniforms = torch.linspace(0, ALMOST_ONE, 2000)
    drawn = draw_tokens(logits.expand(2000, 5), uniforms, top_k=top_k, top_p=top_p)
    share = drawn.bincount(minlength=5) / 2000
    expected = torch.zeros(5)
    expected[kept] = probabilities[kept] / probabilities[kept].sum()
    assert (share - expected).abs().max() < 0.001


def test_top_k_keeps_as_many_as_it_says_among_equals_and_top_p_goes_by_the_temperature() -> None:
    assert (keep_likely(torch.zeros(7, 9), top_k=4) == 0).sum(1).tolist() == [4] * 7
    logits = torch.tensor([0.5, 0.3, 0.2]).log().expand(2000, 3)
    uniforms = torch.linspace(0, ALMOST_ONE, 2000)
    for temperature, kept in [(1.0, 2), (0.25, 1), (4.0, 3)]:
        drawn = draw_tokens(logits, uniforms, temperature, top_p=0.72)
        assert drawn.unique().tolist() == list(range(kept))


def test_rows_stay_together_with_their_uniforms_across_chunks() -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(3, 67, 11, generator=generator)  # 201 rows, no multiple of a chunk
    uniforms = torch.rand(3, 67, generator=generator)
    drawn = draw_tokens(logits, uniforms)
    for b in range(3):
        for n in range(67):
            assert drawn[b, n] == draw_tokens(logits[b, n], uniforms[b, n])


@pytest.mark.parametrize("possible", [[0], [4], [9], [2, 7], [0, 9]], ids=str)
def test_an_impossible_token_is_never_drawn(possible: list[int]) -> None:
    logits = torch.full((10,), -torch.inf)
    logits[possible] = torch.arange(len(possible)).float()
    uniforms = torch.cat((torch.linspace(0, ALMOST_ONE, 2000), torch.tensor([0.0, ALMOST_ONE])))
    drawn = draw_tokens(logits.expand(len(uniforms), 10), uniforms, 0.8)
    assert set(drawn.tolist()) == set(possible)


def test_impossible_tokens_stay_undrawn_where_rounding_left_gaps_in_a_large_codebook() -> None:
    """Sums of floats, added in a device's own order, leave a sliver to tokens of no probability."""
    logits = torch.randn(64, 8192, generator=torch.Generator().manual_seed(3))
    logits[:, ::2] = -torch.inf
    edges = torch.softmax(logits, -1).cumsum(-1)
    for nudge in (-(2**-24), 0, 2**-24):  # where a sliver would be
        for column in (1, 777, 4095, 8191):
            drawn = draw_tokens(logits, (edges[:, column] + nudge).clamp(0, ALMOST_ONE))
            assert (drawn % 2 == 1).all()


def test_temperature_zero_is_argmax_and_a_low_one_nearly() -> None:
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(40, 9, generator=generator)
    uniforms = torch.rand(40, generator=generator)
    assert torch.equal(draw_tokens(logits, uniforms, 0.0), logits.argmax(-1))
    assert torch.equal(draw_tokens(logits, uniforms, 1e-4), logits.argmax(-1))
    assert not torch.equal(draw_tokens(logits, uniforms, 1.0), logits.argmax(-1))


def test_half_precision_logits_are_drawn_in_full_precision() -> None:
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(30, 500, generator=generator).bfloat16()
    uniforms = torch.rand(30, generator=generator)
    assert torch.equal(draw_tokens(logits, uniforms), draw_tokens(logits.float(), uniforms))


@pytest.mark.parametrize("value", [torch.nan, -torch.inf, torch.inf])
def test_a_diverged_network_draws_no_token_outside_the_codebook(value: float) -> None:
    drawn = draw_tokens(torch.full((4, 6), value), torch.tensor([0.0, 0.3, 0.7, ALMOST_ONE]))
    assert ((drawn >= 0) & (drawn < 6)).all()


def test_uniforms_of_double_precision_next_to_one_stay_in_the_codebook() -> None:
    drawn = draw_tokens(torch.zeros(1, 5), torch.tensor([1 - 1e-12], dtype=torch.float64))
    assert drawn.tolist() == [4]


def seeds_of(count: int, seed: int = 0) -> Tensor:
    return draw_seeds(count, torch.Generator().manual_seed(seed))


def test_noise_of_a_row_depends_on_its_own_seed_alone() -> None:
    seeds = seeds_of(9)
    together = seeded_uniforms(seeds, 5, 33)
    alone = torch.cat([seeded_uniforms(seed[None], 5, 33) for seed in seeds])
    assert torch.equal(together, alone)
    assert torch.equal(together[:, :7], seeded_uniforms(seeds, 5, 7))


def test_noise_is_uniform_over_positions_streams_and_seeds() -> None:
    for noise in (
        seeded_uniforms(seeds_of(1), 3, 50_000),
        seeded_uniforms(seeds_of(50_000), 3, 1),
        seeded_uniforms(torch.arange(50_000), 3, 1),  # seeds that somebody counts up
        torch.cat([seeded_uniforms(seeds_of(1), stream, 50) for stream in range(1000)]),
    ):
        assert noise.min() >= 0 and noise.max() < 1
        assert torch.equal(noise * 2**24, (noise * 2**24).round())
        counts = (noise.flatten() * 16).long().bincount(minlength=16)
        expected = torch.full((16,), noise.numel() / 16)
        assert chi_square(counts, expected) < CHI_SQUARE[15]


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack((a.flatten(), b.flatten())))[0, 1])


@pytest.mark.parametrize("seeds", [seeds_of(200), torch.arange(200)], ids=["drawn", "counted"])
def test_noise_is_independent_across_positions_streams_and_seeds(seeds: Tensor) -> None:
    noise = seeded_uniforms(seeds, 4, 200)
    limit = 4.5 / noise.numel() ** 0.5
    for shift in (1, 2, 3, 8, 16):
        assert abs(correlation(noise[:, shift:], noise[:, :-shift])) < limit  # positions
        assert abs(correlation(noise[shift:], noise[:-shift])) < limit  # seeds
        other = seeded_uniforms(seeds, 4 + shift, 200)
        assert abs(correlation(noise, other)) < limit  # streams
        assert not torch.equal(noise.sort().values, other.sort().values)  # no reshuffling either


def test_seeds_that_agree_in_one_half_still_give_different_noise() -> None:
    low, high = 123456789, 987654321 % 2**31
    pairs = [(low, high), (low, high + 1), (low + 1, high), (high, low), (low, 0), (0, high)]
    noise = seeded_uniforms(torch.tensor([lo | hi << 31 for lo, hi in pairs]), 1, 2000)
    off_diagonal = torch.corrcoef(noise) - torch.eye(len(pairs))
    assert off_diagonal.abs().max() < 4.5 / 2000**0.5


def test_the_first_seeds_do_not_depend_on_how_many_are_drawn() -> None:
    many = seeds_of(1000, seed=7)
    for count in (1, 2, 15, 16, 17, 500):
        assert torch.equal(seeds_of(count, seed=7), many[:count])
    assert many.unique().numel() == 1000
    assert many.min() >= 0 and 2**60 < many.max() < 2**62
