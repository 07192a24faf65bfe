"""Sampling, with denoisers whose distribution is known."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from sundae.categorical import draw_seeds
from sundae.sampling import ClassDenoise, Refinement, Schedule, refine, sample, starting_tokens

VOCAB, LENGTH = 6, 10
EAGER = Schedule(steps=4)  # every token takes every draw, at temperature 1


def seeds_of(count: int, seed: int = 0) -> Tensor:
    return draw_seeds(count, torch.Generator().manual_seed(seed))


def run(denoise: ClassDenoise, schedule: Schedule, seeds: Tensor, **rows: Tensor | None) -> Tensor:
    """The tokens after the last step."""
    *_, last = states(denoise, schedule, seeds, **rows)
    return last.tokens


def states(
    denoise: ClassDenoise, schedule: Schedule, seeds: Tensor, **rows: Tensor | None
) -> Iterator[Refinement]:
    return sample(denoise, seeds=seeds, length=LENGTH, vocab_size=VOCAB, schedule=schedule, **rows)


def only(tokens: Tensor) -> Tensor:
    """Logits that leave these tokens as the only possible ones."""
    return torch.nn.functional.one_hot(tokens, VOCAB).float().log()


def constant(probabilities: Tensor) -> ClassDenoise:
    return lambda tokens, classes: probabilities.log().expand(*tokens.shape, -1)


def undecided(tokens: Tensor, classes: Tensor | None) -> Tensor:
    """Rows settle after different times: each token stays or follows its left neighbour."""
    return torch.logaddexp(only(tokens), only(tokens.roll(1, dims=1)) - 0.7)


# -- the schedule ---------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [2, 7, 100])
def test_the_ramps_are_linear_and_meet_both_ends(steps: int) -> None:
    schedule = Schedule(steps, 1.2, 0.4, 0.9, 0.1)
    temperatures = [schedule.temperature_at(step) for step in range(steps)]
    assert temperatures == pytest.approx(torch.linspace(1.2, 0.4, steps).tolist())
    proportions = [schedule.proportion_at(step) for step in range(steps)]
    assert proportions == pytest.approx(torch.linspace(0.9, 0.1, steps).tolist())


def test_a_single_step_is_taken_at_the_start_of_the_ramps() -> None:
    schedule = Schedule(1, 1.2, 0.4, 0.9, 0.1)
    assert (schedule.temperature_at(0), schedule.proportion_at(0)) == (1.2, 0.9)


def test_a_ramp_to_temperature_zero_ends_in_argmax() -> None:
    logits = torch.randn(LENGTH, VOCAB, generator=torch.Generator().manual_seed(0))
    schedule = Schedule(steps=5, temperature=0.9, end_temperature=0.0)
    seen = [
        state.tokens
        for state in states(lambda t, c: logits.expand(len(t), -1, -1), schedule, seeds_of(3))
    ]
    assert torch.equal(seen[-1], logits.argmax(-1).expand(3, -1))
    assert not torch.equal(seen[-2], seen[-1])


# -- one step -------------------------------------------------------------------------------------


def refined(
    tokens: Tensor, step: int = 0, proportion: float = 1.0, frozen: Tensor | None = None
) -> Tensor:
    """One step of a denoiser that wants every token to be one higher."""
    return refine(
        only((tokens + 1) % VOCAB),
        tokens,
        seeds=seeds_of(len(tokens)),
        step=step,
        temperature=1.0,
        proportion=proportion,
        frozen=frozen,
    )


def test_proportion_zero_changes_no_token_and_one_offers_all_a_change() -> None:
    tokens = torch.randint(VOCAB, (50, 400), generator=torch.Generator().manual_seed(1))
    before = tokens.clone()
    assert torch.equal(refined(tokens, proportion=0.0), tokens)
    assert torch.equal(refined(tokens, proportion=1.0), (tokens + 1) % VOCAB)
    assert torch.equal(tokens, before)


def test_the_share_of_tokens_that_change_is_the_proportion_and_another_choice_each_step() -> None:
    tokens = torch.zeros(50, 400, dtype=torch.long)
    chosen = torch.stack([refined(tokens, step, proportion=0.3) for step in range(6)]).bool()
    assert (chosen.double().mean((1, 2)) - 0.3).abs().max() < 0.013  # 4 standard deviations
    both = (chosen[1:] & chosen[:-1]).double().mean((1, 2))
    assert (both - 0.09).abs().max() < 0.0081


def test_which_tokens_change_says_nothing_about_what_they_become() -> None:
    """With one noise for both, tokens chosen at a low proportion would all draw low codes."""
    tokens = torch.full((100, 500), VOCAB - 1)
    logits = torch.zeros(*tokens.shape, VOCAB)
    logits[..., -1] = -torch.inf  # a change can be seen
    drawn = refine(logits, tokens, seeds=seeds_of(100), step=0, temperature=1.0, proportion=0.2)
    counts = drawn.flatten().bincount(minlength=VOCAB)[:-1]
    assert (counts / counts.sum() - 1 / (VOCAB - 1)).abs().max() < 0.016  # 4 standard deviations


def test_frozen_tokens_never_move_in_a_step() -> None:
    tokens = torch.zeros(20, 30, dtype=torch.long)
    frozen = torch.rand(20, 30, generator=torch.Generator().manual_seed(2)) < 0.5
    assert torch.equal(refined(tokens, frozen=frozen).bool(), ~frozen)


# -- the loop -------------------------------------------------------------------------------------


def test_sampling_starts_from_uniform_noise() -> None:
    first = next(states(constant(torch.ones(VOCAB)), EAGER, seeds_of(6000)))
    assert (first.step, first.running) == (0, 6000)
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
    schedule = Schedule(30, 0.5, 0.5, proportion, proportion, early_stop=False)
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

    schedule = Schedule(100, 1.0, 1.0, 0.5, 0.5, early_stop=False)
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
        constant(torch.ones(VOCAB)), Schedule(20), seeds_of(8), tokens=tokens, frozen=frozen
    ):
        assert torch.equal(state.tokens[frozen], tokens[frozen])
        if state.step == 0:
            assert torch.equal(state.tokens, tokens)
    assert not torch.equal(state.tokens, tokens)
    assert torch.equal(tokens, before)  # the caller's tensor is the caller's


def test_later_steps_do_not_write_into_the_tokens_of_earlier_ones() -> None:
    copies = [
        (state.tokens, state.tokens.clone())
        for state in states(undecided, Schedule(30), seeds_of(6))
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
    schedule = Schedule(steps=20, min_steps=min_steps)
    *_, last = states(constant(torch.eye(VOCAB)[2]), schedule, seeds_of(3))
    # The first step changes something, so without a minimum the second one finds all settled.
    assert last.step == max(min_steps + 1, 2)
    assert last.running == 0
    assert (last.tokens == 2).all()


def test_without_early_stop_all_steps_are_done() -> None:
    schedule = Schedule(steps=20, early_stop=False)
    counts = [s.running for s in states(constant(torch.eye(VOCAB)[2]), schedule, seeds_of(3))]
    assert counts == [3] * 21


def test_a_restless_sample_takes_all_steps_while_others_leave() -> None:
    def denoise(tokens: Tensor, classes: Tensor | None) -> Tensor:
        rest = only(torch.full_like(tokens, 4))
        change = only((tokens + 1) % VOCAB)
        return torch.where((classes == 1)[:, None, None], change, rest)

    classes = torch.tensor([0, 1, 0, 0])
    running = [s.running for s in states(denoise, Schedule(9), seeds_of(4), classes=classes)]
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

    schedule = Schedule(300, sample_proportion=0.7, end_sample_proportion=0.7, min_steps=3)
    tokens = run(denoise, schedule, seeds_of(rows), tokens=start, frozen=frozen, classes=classes)
    assert len(set(sizes)) > 5  # rows did leave, one after the other
    assert torch.equal(tokens[frozen], classes)


@pytest.mark.parametrize("early_stop", [True, False])
@pytest.mark.parametrize("batch_size", [1, 5, 7])
def test_the_same_seed_gives_the_same_sample_whatever_the_batch_size(
    batch_size: int, early_stop: bool
) -> None:
    schedule = Schedule(40, 1.0, 0.6, 0.8, 0.4, min_steps=2, early_stop=early_stop)
    seeds, classes = seeds_of(12), torch.arange(12) % VOCAB
    frozen = torch.rand(12, LENGTH, generator=torch.Generator().manual_seed(4)) < 0.1
    start = starting_tokens(seeds_of(12, seed=5), LENGTH, VOCAB)

    def denoise(tokens: Tensor, kinds: Tensor | None) -> Tensor:
        assert kinds is not None
        return torch.logaddexp(undecided(tokens, kinds), only(kinds[:, None].expand_as(tokens)) - 3)

    def tokens_of(rows: slice) -> Tensor:
        return run(
            denoise,
            schedule,
            seeds[rows],
            classes=classes[rows],
            tokens=start[rows],
            frozen=frozen[rows],
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
        (lambda: {"frozen": torch.ones(3, LENGTH, dtype=torch.bool)}, "tokens to keep"),
        (lambda: {"classes": torch.zeros(2, dtype=torch.long)}, "classes has 2 rows for 3 seeds"),
        (lambda: {"tokens": torch.zeros(1, LENGTH).long()}, "tokens has 1 rows for 3 seeds"),
    ],
)
def test_rows_that_do_not_belong_together_are_refused(
    rows: Callable[[], dict[str, Tensor]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        next(states(constant(torch.ones(VOCAB)), EAGER, seeds_of(3), **rows()))
