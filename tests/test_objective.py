"""The objective, with denoisers whose logits are known."""

import math

import pytest
import torch
import torch.nn.functional as F
from small_nets import network
from torch import Tensor, nn

from sundae.config.sections import ObjectiveConfig
from sundae.prior.objective import (
    DEFAULTS,
    corrupt,
    corruption_rates,
    hole_rates,
    step_weights,
    unroll,
)


def generator_of(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Recorder:
    """A denoiser that keeps what it was given; logits are one row of `table` per given token."""

    def __init__(self, table: Tensor) -> None:
        self.table, self.given = table, []

    def __call__(self, tokens: Tensor) -> Tensor:
        self.given.append(tokens)
        return self.table[tokens]


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_every_stratum_gets_exactly_one_rate(batch: int) -> None:
    rates = corruption_rates(batch, generator_of())
    assert (rates * batch).floor().sort().values.tolist() == list(range(batch))


def test_rates_are_uniform_and_in_random_order() -> None:
    generator = generator_of(1)
    rates = torch.stack([corruption_rates(4, generator) for _ in range(4000)])
    # The mean of every place is 1/2: no place of the batch is always the most corrupted.
    assert (rates.mean(0) - 0.5).abs().max() < 0.02
    counts = (rates.flatten() * 16).long().bincount(minlength=16)
    assert (counts - 1000).abs().max() < 130  # within a stratum, too


def test_corruption_replaces_at_the_rate_and_by_uniform_tokens() -> None:
    vocab_size, length = 5, 40_000
    rates = torch.tensor([0.0, 0.25, 0.5, 1.0])
    tokens = torch.full((4, length), 3)
    corrupted = corrupt(tokens, rates, vocab_size, generator_of(2))
    assert torch.equal(tokens, torch.full((4, length), 3))  # the clean tokens are left alone
    for rate, row in zip(rates, corrupted, strict=True):
        expected = torch.full((vocab_size,), rate / vocab_size)
        expected[3] += 1 - rate
        share = row.bincount(minlength=vocab_size) / length
        assert (share - expected).abs().max() <= 0.01 * (rate > 0)  # 4 standard deviations


def test_each_token_can_have_a_rate_of_its_own() -> None:
    rates = torch.tensor([[0.0, 1.0]]).repeat(1, 500)
    corrupted = corrupt(torch.full((1, 1000), 7), rates, 10_000, generator_of(2))
    assert (corrupted == 7).view(500, 2).sum(0).tolist() == [500, 0]


def test_a_hole_is_a_rectangle_or_all_but_one_and_other_samples_have_none() -> None:
    height, width, batch = 8, 12, 400
    rates = corruption_rates(batch, generator_of(3)) + 0.5
    field = hole_rates(rates, (height, width), 0.25, generator_of(4))
    assert ((field == 0) | (field == rates[:, None])).all()
    whole = (field > 0).all(1)
    assert whole[100:].all() and not whole[:100].all()
    kinds, sizes = [], []
    for row in (field[:100] > 0).view(-1, height, width):
        for inside in (True, False):
            ys, xs = (row == inside).nonzero(as_tuple=True)
            area = 0 if len(ys) == 0 else (ys.max() - ys.min() + 1) * (xs.max() - xs.min() + 1)
            if area == len(ys) and area:  # its bounding box is full
                kinds.append(inside)
                sizes.append(area / (height * width))
                break
        else:
            pytest.fail("no rectangle")
    assert 30 < sum(kinds) < 70
    assert min(sizes) >= 2 * 3 / (height * width) and max(sizes) > 0.7


def test_holes_are_everywhere_alike_and_their_share_is_met_on_average() -> None:
    generator = generator_of(5)
    field = torch.cat([hole_rates(torch.ones(2), (4, 4), 0.25, generator) for _ in range(4000)])
    assert (field.mean(0) - field.mean()).abs().max() < 0.02
    with_hole = (field == 0).any(1).float().mean()
    # Of a quarter of the samples, some rectangles are the whole grid and have none outside.
    assert 0.2 < with_hole < 0.26
    assert torch.equal(hole_rates(torch.ones(2), (4, 4), 0.0, generator), torch.ones(2, 16))


def test_with_holes_a_network_is_given_them_and_no_others_are_corrupted() -> None:
    denoise = Recorder(torch.zeros(500, 500))
    tokens = torch.full((64, 64), 499)
    options = ObjectiveConfig(hole_share=1.0)
    list(unroll(denoise, tokens, unroll_steps=1, vocab_size=499, generator=generator_of(6),
                rates=torch.ones(64), options=options, grid=(8, 8)))  # fmt: skip
    changed = (denoise.given[0] != 499).view(64, 8, 8)
    assert 0.3 < changed.float().mean() < 0.7
    for row in changed:
        lines = row.unique(dim=0)  # a rectangle or its complement has two kinds of rows at most
        assert len(lines) <= 2


def test_later_steps_see_the_first_rows_only_and_all_pairs_count_the_same() -> None:
    denoise = Recorder(torch.zeros(5, 5))
    tokens = torch.arange(10)[:, None].repeat(1, 4) % 5
    options = ObjectiveConfig(unroll_share=0.25)
    steps = list(unroll(denoise, tokens, unroll_steps=3, vocab_size=5, generator=generator_of(7),
                        options=options))  # fmt: skip
    assert [len(given) for given in denoise.given] == [10, 2, 2]
    assert steps[0].drawn is not None and torch.equal(denoise.given[1], steps[0].drawn)
    assert step_weights(10, 3, 0.25) == pytest.approx([3 * 10 / 14, 3 * 2 / 14, 3 * 2 / 14])
    assert step_weights(1, 2, 0.25) == [1, 1] and step_weights(8, 3, 1.0) == [1, 1, 1]


def test_loss_is_the_cross_entropy_of_all_positions_not_of_the_corrupted_ones() -> None:
    table = torch.randn(6, 6, generator=generator_of(3))
    tokens = torch.randint(6, (8, 20), generator=generator_of(4))
    denoise = Recorder(table)
    steps = list(unroll(denoise, tokens, unroll_steps=3, vocab_size=6, generator=generator_of(5)))
    assert len(steps) == 3
    for given, (loss, accuracy, *_) in zip(denoise.given, steps, strict=True):
        chosen = torch.log_softmax(table, -1)[given, tokens]
        assert loss.item() == pytest.approx(-chosen.mean().item(), abs=1e-6)
        right = (table.argmax(-1)[given] == tokens).double().mean()
        assert accuracy.item() == pytest.approx(right.item())


def test_the_first_input_is_the_corrupted_batch_and_never_the_clean_one() -> None:
    tokens = torch.zeros(64, 100, dtype=torch.long)
    denoise = Recorder(torch.zeros(50, 50))
    list(unroll(denoise, tokens, unroll_steps=1, vocab_size=50, generator=generator_of(6)))
    changed = (denoise.given[0] != 0).double().mean(1)
    assert changed.mean() == pytest.approx(0.5 * 49 / 50, abs=0.02)
    assert changed.min() < 0.05 and changed.max() > 0.9


def test_rates_that_are_given_are_those_of_the_corruption() -> None:
    tokens = torch.zeros(2, 1000, dtype=torch.long)
    denoise = Recorder(torch.zeros(50, 50))
    options = {"unroll_steps": 1, "vocab_size": 50, "generator": generator_of(6)}
    list(unroll(denoise, tokens, rates=torch.tensor([0.0, 1.0]), **options))  # type: ignore[arg-type]
    changed = (denoise.given[0] != 0).double().mean(1)
    assert changed[0] == 0
    assert changed[1] == pytest.approx(49 / 50, abs=0.02)


def test_the_next_input_is_a_sample_at_temperature_one() -> None:
    probabilities = torch.tensor([0.6, 0.3, 0.1])
    denoise = Recorder(probabilities.log().expand(3, 3))
    tokens = torch.zeros(10, 1000, dtype=torch.long)
    list(unroll(denoise, tokens, unroll_steps=3, vocab_size=3, generator=generator_of(7)))
    for given in denoise.given[1:]:
        share = given.flatten().bincount(minlength=3) / given.numel()
        assert (share - probabilities).abs().max() < 0.02  # 4 standard deviations
    assert not torch.equal(denoise.given[1], denoise.given[2])


def test_the_sample_after_the_last_step_is_not_drawn() -> None:
    tokens = torch.zeros(4, 10, dtype=torch.long)
    used, reference = generator_of(8), generator_of(8)
    list(unroll(Recorder(torch.zeros(3, 3)), tokens, unroll_steps=1, vocab_size=3, generator=used))
    corrupt(tokens, corruption_rates(4, reference), 3, reference)
    assert torch.equal(used.get_state(), reference.get_state())


def test_no_gradient_passes_through_the_samples() -> None:
    """The gradient is what it would be if the inputs of the later steps had been given."""
    table = torch.randn(4, 4, generator=generator_of(9)).requires_grad_()
    tokens = torch.randint(4, (3, 12), generator=generator_of(10))
    denoise = Recorder(table)
    steps = list(unroll(denoise, tokens, unroll_steps=3, vocab_size=4, generator=generator_of(11)))
    torch.stack([step.loss for step in steps]).mean().backward()
    fixed = table.detach().clone().requires_grad_()
    losses = [
        F.cross_entropy(fixed[given].flatten(0, 1), tokens.flatten()) for given in denoise.given
    ]
    torch.stack(losses).mean().backward()
    assert torch.allclose(table.grad, fixed.grad, atol=1e-7)
    assert all(not given.requires_grad and given.dtype == torch.long for given in denoise.given)


def test_the_steps_share_no_graph_and_allow_an_update_in_between() -> None:
    net = nn.Embedding(4, 4)
    tokens = torch.randint(4, (3, 12), generator=generator_of(12))
    for step in unroll(net, tokens, unroll_steps=3, vocab_size=4, generator=generator_of(13)):
        step.loss.backward()
        assert not step.accuracy.requires_grad
        with torch.no_grad():
            net.weight -= 0.1 * net.weight.grad  # would break a graph that reaches back


def test_the_generator_is_the_only_source_of_noise() -> None:
    tokens = torch.randint(9, (5, 30), generator=generator_of(14))
    before = torch.get_rng_state()
    runs = []
    for seed in (15, 15, 16):
        denoise = Recorder(torch.zeros(9, 9))
        list(unroll(denoise, tokens, unroll_steps=2, vocab_size=9, generator=generator_of(seed)))
        runs.append(torch.stack(denoise.given))
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
    assert torch.equal(before, torch.get_rng_state())


def test_the_loss_of_a_new_network_is_log_vocab_at_every_step() -> None:
    net = network(vocab_size=23)
    tokens = torch.randint(23, (4, 16), generator=generator_of(17))
    for step in unroll(net, tokens, unroll_steps=2, vocab_size=23, generator=generator_of(18)):
        assert step.loss.item() == pytest.approx(math.log(23), abs=1e-5)


def test_a_diverged_network_reports_its_loss_instead_of_an_index_error() -> None:
    net = nn.Embedding(5, 5)
    net.weight.data.fill_(torch.nan)
    tokens = torch.zeros(2, 8, dtype=torch.long)
    steps = unroll(net, tokens, unroll_steps=3, vocab_size=5, generator=generator_of(19))
    assert all(torch.isnan(step.loss) for step in steps)


def test_half_precision_logits_are_compared_in_full_precision() -> None:
    tokens = torch.randint(300, (2, 50), generator=generator_of(20))
    table = torch.randn(300, 300, generator=generator_of(21)).bfloat16()
    denoise = Recorder(table)
    (step,) = unroll(denoise, tokens, unroll_steps=1, vocab_size=300, generator=generator_of(22))
    exact = -torch.log_softmax(table.double(), -1)[denoise.given[0], tokens].mean()
    assert step.loss.item() == pytest.approx(exact.item(), abs=1e-5)


@pytest.mark.parametrize(
    "options",
    [DEFAULTS, ObjectiveConfig(unroll_share=0.4, hole_share=0.5)],
    ids=["plain", "all options"],
)
def test_with_the_head_left_out_the_objective_is_the_same(options: ObjectiveConfig) -> None:
    net = network(vocab_size=9)
    nn.init.normal_(net.to_logits.weight)
    tokens = torch.randint(9, (3, 16), generator=generator_of(1))

    def run(head: nn.Linear | None) -> list[Tensor]:
        net.zero_grad()
        steps = unroll(
            lambda current: net(current, head=head is None),
            tokens,
            unroll_steps=3,
            vocab_size=9,
            generator=generator_of(2),
            head=head,
            options=options,
            grid=(4, 4),
        )
        values = []
        for step in steps:
            step.loss.backward()
            values += [step.loss.detach(), step.accuracy]
        with torch.no_grad():
            (evaluated,) = unroll(
                lambda current: net(current, head=head is None),
                tokens,
                unroll_steps=1,
                vocab_size=9,
                generator=generator_of(2),
                head=head,
            )
        values += [*evaluated.scores]  # type: ignore[misc]
        return values + [parameter.grad.clone() for parameter in net.parameters()]

    for fused, whole in zip(run(net.to_logits), run(None), strict=True):
        torch.testing.assert_close(fused, whole)
