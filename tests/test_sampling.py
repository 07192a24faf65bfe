"""Sampling, with denoisers whose distribution is known."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from conftest import make_schedule
from torch import Tensor

from sundae.config.sections import SamplingConfig
from sundae.prior.categorical import draw_seeds
from sundae.sampling.loop import ClassDenoise, Refinement, sample
from sundae.sampling.state import starting_tokens
from sundae.sampling.strategies import STRATEGIES

VOCAB, LENGTH = 6, 10
EAGER = make_schedule(steps=4)  # every token takes every draw, at temperature 1
EVERY_STRATEGY = pytest.mark.parametrize("strategy", STRATEGIES)


def seeds_of(count: int, seed: int = 0) -> Tensor:
    return draw_seeds(count, torch.Generator().manual_seed(seed))


def run(denoise: ClassDenoise, schedule: SamplingConfig, seeds: Tensor, **rows: Any) -> Tensor:
    """The tokens after the last step."""
    *_, last = states(denoise, schedule, seeds, **rows)
    return last.tokens


def states(
    denoise: ClassDenoise,
    schedule: SamplingConfig,
    seeds: Tensor,
    length: int = LENGTH,
    **rows: Any,
) -> Iterator[Refinement]:
    return sample(denoise, seeds=seeds, length=length, vocab_size=VOCAB, schedule=schedule, **rows)


def only(tokens: Tensor) -> Tensor:
    """Logits that leave these tokens as the only possible ones."""
    return torch.nn.functional.one_hot(tokens, VOCAB).float().log()


def constant(probabilities: Tensor) -> ClassDenoise:
    return lambda tokens, classes: probabilities.log().expand(*tokens.shape, -1)


def undecided(tokens: Tensor, classes: Tensor | None) -> Tensor:
    """Rows settle after different times: each token stays or follows its left neighbour."""
    return torch.logaddexp(only(tokens), only(tokens.roll(1, dims=1)) - 0.7)


def test_a_ramp_to_temperature_zero_ends_in_argmax() -> None:
    logits = torch.randn(LENGTH, VOCAB, generator=torch.Generator().manual_seed(0))
    schedule = make_schedule(steps=5, temperature=0.9, end_temperature=0.0)
    seen = [
        state.tokens
        for state in states(lambda t, c: logits.expand(len(t), -1, -1), schedule, seeds_of(3))
    ]
    assert torch.equal(seen[-1], logits.argmax(-1).expand(3, -1))
    assert not torch.equal(seen[-2], seen[-1])


# -- one step -------------------------------------------------------------------------------------


def flat(strategy: Any, proportion: float, steps: int = 1, **settings: Any) -> SamplingConfig:
    """All steps alike and all of them done."""
    return make_schedule(
        steps,
        sample_proportion=proportion,
        end_sample_proportion=proportion,
        early_stop=False,
        strategy=strategy,
        **settings,
    )


def one_higher(tokens: Tensor, classes: Tensor | None) -> Tensor:
    """Every token wants to be one higher: whoever is offered a value can be seen."""
    return only((tokens + 1) % VOCAB).clamp(min=-30)  # all else is never drawn, but finite


@EVERY_STRATEGY
def test_proportion_zero_changes_no_token_and_one_changes_all(strategy: str) -> None:
    tokens = torch.randint(VOCAB, (50, LENGTH), generator=torch.Generator().manual_seed(1))
    before = tokens.clone()
    for state in states(one_higher, flat(strategy, 0.0, 4), seeds_of(50), tokens=tokens):
        assert torch.equal(state.tokens, before)
    for state in states(one_higher, flat(strategy, 1.0, 4), seeds_of(50), tokens=tokens):
        assert torch.equal(state.tokens, (before + state.step) % VOCAB)
    assert torch.equal(tokens, before)


@EVERY_STRATEGY
def test_a_step_of_proportion_zero_leaves_what_the_steps_before_have_made(strategy: str) -> None:
    schedule = replace(flat(strategy, 1.0, 2), end_sample_proportion=0.0)
    start, first, second = states(one_higher, schedule, seeds_of(5))
    assert torch.equal(first.tokens, (start.tokens + 1) % VOCAB)
    assert torch.equal(second.tokens, first.tokens)


@pytest.mark.parametrize("strategy", ["random", "confidence", "halton"])
def test_in_each_sample_exactly_the_proportion_of_its_tokens_changes(strategy: str) -> None:
    frozen = torch.arange(400) < torch.tensor([[0], [100], [395], [399], [400]])
    tokens = torch.zeros(5, 400, dtype=torch.long)
    steps = states(
        one_higher, flat(strategy, 0.3, 6), seeds_of(5), length=400, tokens=tokens, frozen=frozen
    )
    for earlier, later in pairwise(state.tokens for state in steps):
        changes = (earlier != later).sum(1)
        assert changes.tolist() == [120, 90, 2, 1, 0]  # of 400, 300, 5, 1, 0: at least one of some


def test_the_paper_chooses_at_random_and_anew_in_each_step() -> None:
    tokens = torch.zeros(50, 400, dtype=torch.long)
    steps = states(one_higher, flat("random", 0.3, 6), seeds_of(50), length=400, tokens=tokens)
    chosen = torch.stack([a != b for a, b in pairwise(state.tokens for state in steps)])
    both = (chosen[1:] & chosen[:-1]).double().mean((1, 2))
    assert (both - 0.09).abs().max() < 0.0081  # 4 standard deviations
    often = chosen.double().mean((0, 1))  # no position is favoured
    assert (often - 0.3).abs().max() < 0.12


def test_which_tokens_change_says_nothing_about_what_they_become() -> None:
    """With one noise for both, tokens chosen at a low proportion would all draw low codes."""
    tokens = torch.full((100, 500), VOCAB - 1)
    probabilities = torch.tensor([1.0] * (VOCAB - 1) + [0.0])  # a change can be seen
    *_, last = states(
        constant(probabilities), flat("random", 0.2), seeds_of(100), length=500, tokens=tokens
    )
    counts = last.tokens.flatten().bincount(minlength=VOCAB)[:-1]
    assert (counts / counts.sum() - 1 / (VOCAB - 1)).abs().max() < 0.016  # 4 standard deviations


@EVERY_STRATEGY
def test_frozen_tokens_never_move(strategy: str) -> None:
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(VOCAB, (30, LENGTH), generator=generator)
    frozen = torch.rand(30, LENGTH, generator=generator) < 0.5
    moved = torch.zeros_like(frozen)
    for state in states(
        one_higher, flat(strategy, 0.6, 9), seeds_of(30), tokens=tokens, frozen=frozen
    ):
        moved |= state.tokens != tokens
    assert torch.equal(moved, ~frozen)


@EVERY_STRATEGY
def test_not_even_a_diverged_network_moves_frozen_tokens(strategy: str) -> None:
    frozen = (torch.arange(LENGTH) < 5).expand(3, -1)
    tokens = torch.full((3, LENGTH), VOCAB - 1)
    nowhere = torch.full((VOCAB,), torch.nan)
    *_, last = states(
        constant(nowhere), flat(strategy, 0.6, 4), seeds_of(3), tokens=tokens, frozen=frozen
    )
    assert (last.tokens[frozen] == VOCAB - 1).all()
    assert last.tokens.min() >= 0 and last.tokens.max() < VOCAB


# -- guidance, and logits for some positions ------------------------------------------------------


def test_guidance_draws_from_the_null_class_and_a_multiple_of_the_difference() -> None:
    class_logits = torch.tensor([[0.0, 1.0, 2.0], [0.5, 0.5, 0.5], [1.0, 1.0, 1.0]])

    def denoise(tokens: Tensor, classes: Tensor | None) -> Tensor:
        assert classes is not None
        return class_logits[classes][:, None].expand(-1, tokens.shape[1], -1)

    def share(guidance: float) -> Tensor:
        *_, last = sample(
            denoise,
            seeds=seeds_of(400),
            length=100,
            vocab_size=3,
            schedule=make_schedule(1, guidance=guidance, end_guidance=guidance),
            classes=torch.zeros(400, dtype=torch.long),
            null_class=2,
        )
        return last.tokens.flatten().bincount(minlength=3) / last.tokens.numel()

    for guidance, by_hand in [
        (0.0, [1.0, 1.0, 1.0]),  # the null class alone
        (0.5, [0.5, 1.0, 1.5]),
        (1.0, [0.0, 1.0, 2.0]),
        (3.0, [-2.0, 1.0, 4.0]),  # 1 + 3 * (0 - 1), 1 + 3 * (1 - 1), 1 + 3 * (2 - 1)
    ]:
        expected = torch.tensor(by_hand).softmax(0)
        assert (share(guidance) - expected).abs().max() < 0.01  # 4 standard deviations


def test_without_guidance_no_row_is_computed_twice() -> None:
    batches = []

    def denoise(tokens: Tensor, classes: Tensor | None) -> Tensor:
        assert classes is not None
        batches.append(classes.tolist())
        return torch.zeros(*tokens.shape, VOCAB)

    schedule = make_schedule(3, guidance=1.0, end_guidance=2.0, early_stop=False)
    run(denoise, schedule, seeds_of(2), classes=torch.tensor([4, 5]), null_class=9)
    assert batches == [[4, 5], [4, 5, 9, 9], [4, 5, 9, 9]]


@EVERY_STRATEGY
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_logits_at_chosen_positions_are_enough(strategy: str, guidance: float) -> None:
    """Where a strategy chooses first, no other logits are computed, and the samples are equal."""
    asked: list[int] = []
    calls: list[int] = []

    def denoise(tokens: Tensor, classes: Tensor | None) -> Tensor:
        calls.append(tokens.shape[1])
        assert classes is not None
        wish = only(classes[:, None].expand_as(tokens)).clamp(min=-9)
        return torch.logaddexp(undecided(tokens, classes).clamp(min=-9), wish - 1)

    def denoise_at(tokens: Tensor, classes: Tensor | None, positions: Tensor) -> Tensor:
        asked.append(positions.shape[1])
        logits = denoise(tokens, classes)
        calls.pop()
        return torch.stack([row[place] for row, place in zip(logits, positions, strict=True)])

    schedule = flat(strategy, 0.3, 6, guidance=guidance, end_guidance=guidance)
    rows = {"classes": torch.arange(8) % VOCAB, "null_class": 2}
    without = run(denoise, schedule, seeds_of(8), **rows)
    calls.clear()
    assert torch.equal(run(denoise, schedule, seeds_of(8), denoise_at=denoise_at, **rows), without)
    expected: dict[str, tuple[list[int], int]] = {  # how many positions, and how many calls for all
        "random": ([3] * 6, 0),
        "halton": ([3] * 6, 0),
        "confidence": ([], 6),
        "argmax": ([7] * 3, 3),
        "renoise": ([1, 1, 2, 4, 7], 1),  # the last step takes all
        "posterior": ([], 6),
    }
    assert (asked, len(calls)) == expected[strategy]


# -- the loop -------------------------------------------------------------------------------------


def test_sampling_starts_from_uniform_noise() -> None:
    first = next(states(constant(torch.ones(VOCAB)), EAGER, seeds_of(6000)))
    assert (first.step, first.num_running) == (0, 6000)
    assert torch.equal(first.tokens, starting_tokens(seeds_of(6000), LENGTH, VOCAB))
    share = first.tokens.flatten().bincount(minlength=VOCAB) / first.tokens.numel()
    assert (share - 1 / VOCAB).abs().max() < 0.0061  # 4 standard deviations


@pytest.mark.parametrize("vocab_size", [2, 17, 1000, 8192])
def test_the_starting_noise_stays_in_the_codebook_and_reaches_both_ends(vocab_size: int) -> None:
    tokens = starting_tokens(seeds_of(400), 400, vocab_size)
    assert (tokens.min(), tokens.max()) == (0, vocab_size - 1)


@pytest.mark.parametrize("proportion", [0.4, 1.0])
def test_samples_follow_a_known_distribution_at_a_temperature(proportion: float) -> None:
    probabilities = torch.tensor([0.4, 0.3, 0.2, 0.05, 0.05, 0.0])
    schedule = make_schedule(30, 0.5, 0.5, proportion, proportion, early_stop=False)
    drawn = run(constant(probabilities), schedule, seeds_of(2000))
    expected = probabilities**2 / (probabilities**2).sum()  # temperature 1/2 squares
    share = drawn.flatten().bincount(minlength=VOCAB) / drawn.numel()
    assert (share - expected).abs().max() < 0.015  # 4 standard deviations
    assert share[-1] == 0


def test_samples_follow_a_known_joint_distribution() -> None:
    """Token 0 is a fair die that rests; every other token is its left neighbour plus one."""

    def chain(tokens: Tensor, classes: Tensor | None) -> Tensor:
        wanted = (tokens.roll(1, dims=1) + 1) % VOCAB
        wanted[:, 0] = tokens[:, 0]
        return only(wanted)

    schedule = make_schedule(100, 1.0, 1.0, 0.5, 0.5, early_stop=False)
    tokens = run(chain, schedule, seeds_of(1200))
    assert torch.equal(tokens, (tokens[:, :1] + torch.arange(LENGTH)) % VOCAB)
    assert (tokens[:, 0].bincount(minlength=VOCAB) - 200).abs().max() < 52  # 4 std deviations


def test_classes_reach_the_denoiser_row_by_row() -> None:
    classes = torch.arange(30) % VOCAB
    tokens = run(lambda t, c: only(c[:, None].expand_as(t)), EAGER, seeds_of(30), classes=classes)
    assert torch.equal(tokens, classes[:, None].expand(-1, LENGTH))


def test_given_tokens_are_refined_and_frozen_ones_never_move() -> None:
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(VOCAB, (8, LENGTH), generator=generator)
    frozen = torch.rand(8, LENGTH, generator=generator) < 0.5
    before = tokens.clone()
    for state in states(
        constant(torch.ones(VOCAB)), make_schedule(20), seeds_of(8), tokens=tokens, frozen=frozen
    ):
        assert torch.equal(state.tokens[frozen], tokens[frozen])
        if state.step == 0:
            assert torch.equal(state.tokens, tokens)
    assert not torch.equal(state.tokens, tokens)
    assert torch.equal(tokens, before)  # the caller's tensor is the caller's


def test_later_steps_do_not_write_into_the_tokens_of_earlier_ones() -> None:
    copies = [
        (state.tokens, state.tokens.clone())
        for state in states(undecided, make_schedule(30), seeds_of(6))
    ]
    assert all(torch.equal(kept, copy) for kept, copy in copies)
    assert len({kept.data_ptr() for kept, _ in copies}) == len(copies)


def test_no_graph_is_built_and_the_caller_keeps_its_gradient_mode() -> None:
    def denoise(tokens: Tensor, classes: Tensor | None) -> Tensor:
        assert not torch.is_grad_enabled()
        return torch.zeros(*tokens.shape, VOCAB)

    for _ in states(denoise, EAGER, seeds_of(2)):
        assert torch.is_grad_enabled()


# -- early stop -----------------------------------------------------------------------------------


@pytest.mark.parametrize("min_steps", [0, 1, 6])
def test_a_settled_sample_stops_after_min_steps_and_not_before(min_steps: int) -> None:
    schedule = make_schedule(steps=20, min_steps=min_steps)
    *_, last = states(constant(torch.eye(VOCAB)[2]), schedule, seeds_of(3))
    # The first step changes something, so without a minimum the second one finds all settled.
    assert last.step == max(min_steps + 1, 2)
    assert last.num_running == 0
    assert (last.tokens == 2).all()


def test_a_small_hole_is_not_given_up_while_some_of_it_was_not_offered_a_value() -> None:
    """A step whose few tokens happen to be settled says nothing about the others."""
    frozen = (torch.arange(LENGTH) >= 6).expand(40, -1)
    tokens = torch.zeros(40, LENGTH, dtype=torch.long)
    schedule = make_schedule(200, sample_proportion=0.2, end_sample_proportion=0.2)
    *_, last = states(
        constant(torch.eye(VOCAB)[2]), schedule, seeds_of(40), tokens=tokens, frozen=frozen
    )
    assert torch.equal(last.tokens, torch.where(frozen, 0, 2))
    assert (last.num_running, last.step < 150) == (0, True)


def test_a_sample_is_done_once_every_token_was_offered_a_value_since_it_last_changed() -> None:
    frozen = (torch.arange(LENGTH) >= 6).expand(3, -1)
    tokens = torch.zeros(3, LENGTH, dtype=torch.long)
    schedule = replace(flat("halton", 0.2, 40), early_stop=True)  # one of six a step, in turns
    *_, last = states(
        constant(torch.eye(VOCAB)[2]), schedule, seeds_of(3), tokens=tokens, frozen=frozen
    )
    assert last.step == 12  # six steps to change all, six more in which each keeps its value


def test_a_sample_without_a_free_token_is_done_at_once() -> None:
    tokens = torch.zeros(2, LENGTH, dtype=torch.long)
    frozen = torch.tensor([[True], [False]]).expand(-1, LENGTH)
    running = [
        state.num_running
        for state in states(one_higher, make_schedule(3), seeds_of(2), tokens=tokens, frozen=frozen)
    ]
    assert running == [2, 1, 1, 1]


def test_without_early_stop_all_steps_are_done() -> None:
    schedule = make_schedule(steps=20, early_stop=False)
    counts = [s.num_running for s in states(constant(torch.eye(VOCAB)[2]), schedule, seeds_of(3))]
    assert counts == [3] * 21


def test_a_restless_sample_takes_all_steps_while_others_leave() -> None:
    def denoise(tokens: Tensor, classes: Tensor | None) -> Tensor:
        rest = only(torch.full_like(tokens, 4))
        change = only((tokens + 1) % VOCAB)
        return torch.where((classes == 1)[:, None, None], change, rest)

    classes = torch.tensor([0, 1, 0, 0])
    running = [
        s.num_running for s in states(denoise, make_schedule(9), seeds_of(4), classes=classes)
    ]
    assert running == [4, 4, 1, 1, 1, 1, 1, 1, 1, 1]


def test_tokens_masks_classes_and_seeds_leave_the_batch_together() -> None:
    """Row i wears its number on its frozen token; whoever meets another's class or mask shows."""
    rows = 24
    marker = torch.arange(rows) % LENGTH  # where the row is frozen
    classes = torch.arange(rows) % VOCAB
    frozen = torch.nn.functional.one_hot(marker, LENGTH).bool()
    start = torch.where(frozen, classes[:, None], starting_tokens(seeds_of(rows), LENGTH, VOCAB))
    sizes = []

    def denoise(tokens: Tensor, kinds: Tensor | None) -> Tensor:
        assert kinds is not None and len(kinds) == len(tokens)
        sizes.append(len(tokens))
        assert (tokens == kinds[:, None]).any(dim=1).all()  # the frozen token is the row's class
        return undecided(tokens, kinds)

    schedule = make_schedule(300, sample_proportion=0.7, end_sample_proportion=0.7, min_steps=3)
    tokens = run(denoise, schedule, seeds_of(rows), tokens=start, frozen=frozen, classes=classes)
    assert len(set(sizes)) > 5  # rows did leave, one after the other
    assert torch.equal(tokens[frozen], classes)


@EVERY_STRATEGY
@pytest.mark.parametrize("early_stop", [True, False])
@pytest.mark.parametrize("batch_size", [1, 5])
def test_the_same_seed_gives_the_same_sample_whatever_the_batch_size(
    batch_size: int, early_stop: bool, strategy: Any
) -> None:
    schedule = make_schedule(
        20, 1.0, 0.6, 0.8, 0.4, 2, early_stop, strategy, guidance=2.0, top_k=5, top_p=0.95
    )
    seeds, classes = seeds_of(12), torch.arange(12) % VOCAB
    frozen = torch.rand(12, LENGTH, generator=torch.Generator().manual_seed(4)) < 0.1
    start = starting_tokens(seeds_of(12, seed=5), LENGTH, VOCAB)

    def denoise(tokens: Tensor, kinds: Tensor | None) -> Tensor:
        assert kinds is not None
        wish = only(kinds[:, None].expand_as(tokens)).clamp(min=-9)
        return torch.logaddexp(undecided(tokens, kinds).clamp(min=-9), wish - 3)

    def tokens_of(rows: slice) -> Tensor:
        return run(
            denoise,
            schedule,
            seeds[rows],
            classes=classes[rows],
            tokens=start[rows],
            frozen=frozen[rows],
            grid=(2, 5),
            null_class=0,
        )

    together = tokens_of(slice(None))
    pieces = [tokens_of(slice(i, i + batch_size)) for i in range(0, 12, batch_size)]
    assert torch.equal(together, torch.cat(pieces))
    assert len(together.unique(dim=0)) > 6  # and they are not all the same


def test_global_noise_does_not_matter_and_other_seeds_give_other_samples() -> None:
    denoise = constant(torch.ones(VOCAB))
    torch.manual_seed(0)
    first = run(denoise, EAGER, seeds_of(4))
    torch.manual_seed(1)
    assert torch.equal(first, run(denoise, EAGER, seeds_of(4)))
    assert not (first == run(denoise, EAGER, seeds_of(4, seed=1))).all(dim=1).any()


def test_every_step_has_noise_of_its_own() -> None:
    schedule = replace(EAGER, steps=6, early_stop=False)
    seen = [state.tokens for state in states(constant(torch.ones(VOCAB)), schedule, seeds_of(300))]
    for earlier, later in pairwise(seen):
        assert (earlier == later).double().mean() == pytest.approx(1 / VOCAB, abs=0.03)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (lambda: {"frozen": torch.ones(3, LENGTH, dtype=torch.bool)}, "need tokens"),
        (lambda: {"classes": torch.zeros(2, dtype=torch.long)}, "classes has 2 rows for 3 seeds"),
        (lambda: {"tokens": torch.zeros(1, LENGTH).long()}, "tokens has 1 rows for 3 seeds"),
        (lambda: {"grid": (3, 4)}, "a grid of 3x4 does not hold 10 tokens"),
    ],
)
def test_rows_that_do_not_belong_together_are_refused(
    rows: Callable[[], dict[str, Any]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        next(states(constant(torch.ones(VOCAB)), EAGER, seeds_of(3), **rows()))


@pytest.mark.parametrize(
    "rows", [{}, {"classes": torch.zeros(3, dtype=torch.long)}, {"null_class": 2}]
)
@pytest.mark.parametrize("ends", [(2.0, 1.0), (1.0, 2.0)])
def test_guidance_without_a_class_to_leave_out_is_refused(
    rows: dict[str, Any], ends: tuple[float, float]
) -> None:
    schedule = make_schedule(2, guidance=ends[0], end_guidance=ends[1])
    with pytest.raises(ValueError, match="the null class"):
        states(constant(torch.ones(VOCAB)), schedule, seeds_of(3), **rows)
