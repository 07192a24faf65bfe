"""Strategies against a joint distribution that is known: do samples come to follow it?"""

import itertools
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from conftest import make_schedule
from torch import Tensor

from sundae.config.sections import SamplingConfig, StrategyName
from sundae.prior.categorical import draw_seeds
from sundae.sampling.loop import ClassDenoise, sample
from sundae.sampling.strategies import STRATEGIES, churn_at, clean_share, counted, halton_order

CPU = torch.device("cpu")

# Three codes on a grid of 2x2, where neighbours like to be equal and low codes are the likely ones.
CODES, LENGTH = 3, 4
STATES = torch.tensor(list(itertools.product(range(CODES), repeat=LENGTH)))
PLACE_VALUE = CODES ** torch.arange(LENGTH - 1, -1, -1)
EQUAL = sum((STATES[:, a] == STATES[:, b]).double() for a, b in [(0, 1), (2, 3), (0, 2), (1, 3)])
TRUTH = (EQUAL + torch.tensor([0.5, 0.0, -0.6]).double()[STATES].sum(1)).softmax(0)
SEEDS = draw_seeds(4000, torch.Generator().manual_seed(0))
# Between the truth and 4000 samples drawn from it the total variation is 0.045 on average.
CLOSE = 0.06


def number_of(tokens: Tensor) -> Tensor:
    """(..., 4) -> which of the 81 grids it is."""
    return (tokens * PLACE_VALUE).sum(-1)


def exact_conditionals(tokens: Tensor, classes: Tensor | None) -> Tensor:
    """Of every token, the distribution given the three others."""
    columns = []
    for place in range(LENGTH):
        grids = tokens[:, None].repeat(1, CODES, 1)
        grids[:, :, place] = torch.arange(CODES)
        columns.append(TRUTH[number_of(grids)])
    return torch.stack(columns, dim=1).log()


class KnownNoise:
    """What an ideal denoiser predicts that knows how much of its input is noise.

    It counts its calls: before step n = 0 .. N-1 a share n/N of the tokens is clean, that many
    ('renoise') or each by chance ('posterior').
    """

    def __init__(self, steps: int, *, whole: bool = True) -> None:
        self.steps, self.step, self.whole = steps, 0, whole

    def __call__(self, tokens: Tensor, classes: Tensor | None) -> Tensor:
        rate = 1 - self.step / self.steps
        if self.whole:
            rate = 1 - counted(torch.tensor(LENGTH), 1 - rate).item() / LENGTH
        self.step += 1
        same = STATES[:, None] == tokens  # (grids, batch, length)
        likelihood = torch.where(same, 1 - rate + rate / CODES, rate / CODES).double().prod(-1)
        posterior = TRUTH[:, None] * likelihood
        one_hot = torch.nn.functional.one_hot(STATES, CODES).double()
        return torch.einsum("gb,glv->blv", posterior / posterior.sum(0), one_hot).log()


def shares(denoise: ClassDenoise, schedule: SamplingConfig) -> Tensor:
    """(81,) how often each grid came out."""
    *_, last = sample(
        denoise, seeds=SEEDS, length=LENGTH, vocab_size=CODES, schedule=schedule, grid=(2, 2)
    )
    return number_of(last.tokens).bincount(minlength=len(STATES)) / len(SEEDS)


def total_variation(found: Tensor) -> float:
    return float((found - TRUTH).abs().sum() / 2)


def towards_one(strategy: Any, steps: int, **settings: Any) -> SamplingConfig:
    """From half of the tokens at once to one at a time, where conditionals are exact."""
    return make_schedule(steps, 1.0, 1.0, 0.5, 0.0, 0, False, strategy, **settings)


def far(denoise: Callable[[int], ClassDenoise], strategy: str, **settings: Any) -> list[float]:
    """Total variation from the truth after 1, 4, 16 and 64 steps."""
    return [
        total_variation(shares(denoise(steps), towards_one(strategy, steps, **settings)))
        for steps in (1, 4, 16, 64)
    ]


@pytest.mark.parametrize(
    ("strategy", "settings"),
    [("random", {}), ("halton", {}), ("confidence", {"choice_temperature": 1000.0})],
    ids=["random", "halton", "confidence with much noise"],
)
def test_with_more_steps_samples_come_to_follow_the_joint_distribution(
    strategy: str, settings: dict[str, Any]
) -> None:
    distances = far(lambda steps: exact_conditionals, strategy, **settings)
    assert distances[0] > 0.4  # a step from noise: half of it is still there
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < CLOSE


def test_renoising_comes_closer_with_more_steps_but_draws_its_last_tokens_at_once() -> None:
    """All tokens take their last value in one step, each without the others': an error stays."""
    distances = [
        total_variation(
            shares(KnownNoise(steps), make_schedule(steps, 1, 1, 0.5, 0.5, 0, False, "renoise"))
        )
        for steps in (1, 2, 4, 64)
    ]
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > 0.3 and distances[-1] < 0.12


@pytest.mark.parametrize("churn", [0.0, 0.3])
def test_the_posterior_comes_to_follow_the_joint_distribution(churn: float) -> None:
    """Unlike renoising, it lets tokens of different steps know of each other up to the end."""
    distances = [
        total_variation(
            shares(
                KnownNoise(steps, whole=False),
                make_schedule(steps, 1, 1, 0.5, 0.5, 0, False, "posterior", churn=churn),
            )
        )
        for steps in (1, 4, 16, 64)
    ]
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > 0.3 and distances[-1] < CLOSE


def test_half_way_the_posterior_is_the_data_half_corrupted() -> None:
    """The share of the grids that nothing has touched, and of single codes, is as in training."""
    steps, truth = 64, STATES[TRUTH.multinomial(100_000, True, generator=torch.Generator())]
    found = [
        state.tokens
        for state in sample(
            KnownNoise(steps, whole=False),
            seeds=SEEDS,
            length=LENGTH,
            vocab_size=CODES,
            schedule=make_schedule(steps, 1, 1, 0.5, 0.5, 0, False, "posterior"),
            grid=(2, 2),
        )
    ][steps // 2]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(CODES, truth.shape, generator=generator)
    half = torch.where(torch.rand(truth.shape, generator=generator) < 0.5, noise, truth)
    shares_of = [
        number_of(grids).bincount(minlength=len(STATES)) / len(grids) for grids in (found, half)
    ]
    assert (shares_of[0] - shares_of[1]).abs().sum() / 2 < CLOSE


def test_the_posterior_goes_on_to_its_last_step_and_leaves_frozen_tokens() -> None:
    schedule = make_schedule(20, 1.0, 1.0, 0.5, 0.5, 0, True, "posterior")
    frozen = torch.tensor([[True, False, False, True]]).repeat(50, 1)
    *_, last = sample(
        lambda tokens, classes: torch.tensor([-30.0, -30.0, 0.0]).expand(*tokens.shape, -1),
        seeds=SEEDS[:50],
        length=LENGTH,
        vocab_size=CODES,
        schedule=schedule,
        tokens=torch.zeros(50, LENGTH, dtype=torch.long),
        frozen=frozen,
    )
    assert last.step == 20 and last.is_final
    assert (last.tokens == torch.tensor([0, 2, 2, 0])).all()


@pytest.mark.parametrize(
    ("proportion", "expected"),
    [
        (0.5, [0, 0.25, 0.5, 0.75, 1]),
        (1.0, [0, 1, 1, 1, 1]),
        (0.0, [0] * 5),
        (2 / 3, [0, 0.4375, 0.75, 0.9375, 1]),
    ],
)
def test_the_share_of_clean_tokens_grows_as_the_proportion_says(
    proportion: float, expected: list[float]
) -> None:
    schedule = make_schedule(4, 1, 1, proportion, proportion, 0, False, "posterior")
    assert [clean_share(schedule, done) for done in range(5)] == pytest.approx(expected)


def test_churn_mends_what_the_first_steps_got_wrong() -> None:
    """A network that is wrong about half of the noise, and right about less."""

    def denoiser(steps: int) -> ClassDenoise:
        right = KnownNoise(steps, whole=False)

        def denoise(tokens: Tensor, classes: Tensor | None) -> Tensor:
            known = right(tokens, classes)
            early = right.step <= 0.6 * steps
            return torch.tensor([0.0, -30.0, -30.0]).expand_as(known) if early else known

        return denoise

    plain, churned = (
        total_variation(
            shares(
                denoiser(64), make_schedule(64, 1, 1, 0.5, 0.5, 0, False, "posterior", churn=churn)
            )
        )
        for churn in (0.0, 0.5)
    )
    assert churned < 0.7 * plain


def test_churn_is_for_shares_of_noise_in_between() -> None:
    schedule = make_schedule(10, 1, 1, 0.5, 0.5, 0, False, "posterior", churn=0.3)
    assert [churn_at(schedule, step) for step in range(10)] == [0.0] * 4 + [0.3] * 6


@pytest.mark.parametrize("choice_temperature", [0.0, 1.0])
def test_confidence_with_little_noise_seeks_modes(choice_temperature: float) -> None:
    """It does not follow the distribution: what is likely stays, so the mode is too frequent."""
    schedule = towards_one("confidence", 64, choice_temperature=choice_temperature)
    found = shares(exact_conditionals, schedule)
    mode = TRUTH.argmax()
    assert found[mode] > TRUTH[mode] + 0.3
    assert total_variation(found) > 0.3


def test_argmax_ends_where_no_token_alone_could_be_likelier() -> None:
    """It does not follow the distribution: it finds grids that no single token improves on."""
    found = shares(exact_conditionals, towards_one("argmax", 16))
    wanted = exact_conditionals(STATES, None).argmax(-1)
    settled = (wanted == STATES).all(1)
    assert settled.sum() < 10 and found[settled].sum() > 0.999
    assert found[~settled].sum() < 0.001
    assert found[TRUTH.argmax()] > 0.5


def test_argmax_predicts_the_unsure_tokens_from_what_the_sure_ones_have_become() -> None:
    """Token 0 is sure to be 2; the others, less sure, want what token 0 is."""

    def denoise(tokens: Tensor, classes: Tensor | None) -> Tensor:
        logits = torch.nn.functional.one_hot(tokens[:, :1].expand(-1, LENGTH), CODES).float()
        logits[:, 0] = torch.tensor([0.0, 0.0, 9.0])
        return logits

    schedule = make_schedule(2, 1.0, 1.0, 0.25, 0.25, 0, False, "argmax")
    _, sure, then = sample(
        denoise,
        seeds=SEEDS[:2],
        length=LENGTH,
        vocab_size=CODES,
        schedule=schedule,
        tokens=torch.tensor([[0, 1, 1, 1], [1, 0, 0, 0]]),
    )
    assert sure.tokens.tolist() == [[2, 1, 1, 1], [2, 0, 0, 0]]
    assert then.tokens.tolist() == [[2, 2, 2, 2]] * 2


def test_renoising_sets_a_shrinking_share_back_to_the_first_noise() -> None:
    first, *later = sample(
        lambda tokens, classes: torch.tensor([-30.0, -30.0, 0.0]).expand(*tokens.shape, -1),
        seeds=SEEDS[:50],
        length=100,
        vocab_size=CODES,
        schedule=make_schedule(5, 1.0, 1.0, 0.5, 0.5, 0, False, "renoise"),
        tokens=torch.arange(2).repeat(50, 50),
    )
    for state in later:
        predicted = state.tokens == 2
        assert (predicted.sum(1) == 20 * state.step).all()
        assert torch.equal(state.tokens[~predicted], first.tokens[~predicted])
    again = [state.tokens == 2 for state in later]
    assert (again[0] & ~again[1]).any()  # another choice each time


# -- the order of Halton --------------------------------------------------------------------------


def test_the_order_visits_every_cell_once_and_begins_as_the_sequence_does() -> None:
    # (1/2, 1/3), (1/4, 2/3), (3/4, 1/9), (1/8, 4/9) of rows and columns
    assert halton_order(4, 4, CPU)[:4].tolist() == [2 * 4 + 1, 1 * 4 + 2, 3 * 4 + 0, 0 * 4 + 1]
    for height, width in [(1, 1), (1, 17), (23, 1), (7, 12), (32, 32)]:
        order = halton_order(height, width, CPU)
        assert torch.equal(order.sort().values, torch.arange(height * width))


def test_what_is_drawn_together_is_spread_over_the_grid() -> None:
    """Every quarter of the image gets its share of each sixteen cells, as random ones do not."""
    for start in (0, 16, 32):
        cells = halton_order(8, 8, CPU)[start : start + 16]
        quarters = (cells // 8 // 4 * 2 + cells % 8 // 4).bincount(minlength=4)
        assert quarters.min() >= 2 and quarters.max() <= 6
        assert quarters.sum() == 16


def test_no_token_waits_longer_than_another() -> None:
    """Also beside frozen ones, and when a step takes the rest of one round and begins the next."""
    frozen = torch.tensor([[False] * 12, [False] * 5 + [True] * 7])
    steps = sample(
        lambda tokens, classes: (
            torch.nn.functional.one_hot((tokens + 1) % 50, 50).float().clamp(1e-9).log()
        ),
        seeds=SEEDS[:2],
        length=12,
        vocab_size=50,
        schedule=make_schedule(11, 0.5, 0.5, 0.4, 0.4, 0, False, "halton"),
        tokens=torch.zeros(2, 12, dtype=torch.long),
        frozen=frozen,
        grid=(3, 4),
    )
    for state in steps:
        for tokens, free in zip(state.tokens, ~frozen, strict=True):
            offers = tokens[free]
            assert offers.max() - offers.min() <= 1
            assert offers.sum() == state.step * round(0.4 * len(offers))
            assert (tokens[~free] == 0).all()


# -- counting, and names --------------------------------------------------------------------------


def test_a_share_is_the_nearest_number_of_tokens_and_one_at_least() -> None:
    free = torch.tensor([0, 1, 3, 10, 1000])
    by_hand = {
        0.0: [0, 0, 0, 0, 0],
        0.001: [0, 1, 1, 1, 1],
        0.3: [0, 1, 1, 3, 300],
        0.5: [0, 1, 2, 5, 500],
        0.999: [0, 1, 3, 10, 999],
        1.0: [0, 1, 3, 10, 1000],
    }
    for share, counts in by_hand.items():
        assert counted(free, share).tolist() == counts


def test_every_strategy_of_the_run_file_exists() -> None:
    assert set(STRATEGIES) == set(get_args(StrategyName))
