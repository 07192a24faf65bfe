"""The fused last map against the same thing from whole logits."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sundae.common.precision import has_bf16
from sundae.prior import linear_cross_entropy as module
from sundae.prior.categorical import draw_tokens
from sundae.prior.linear_cross_entropy import linear_cross_entropy

CPU = torch.device("cpu")
ROWS, DIM, VOCAB = 30, 12, 17


def case(*, bias: bool = True) -> tuple[nn.Linear, Tensor, Tensor, Tensor]:
    """(head, features, targets, uniforms) of a batch of two."""
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(DIM, VOCAB, bias=bias)
    for parameter in head.parameters():
        nn.init.normal_(parameter, generator=generator)
    features = torch.randn(2, ROWS // 2, DIM, generator=generator).requires_grad_()
    targets = torch.randint(VOCAB, (2, ROWS // 2), generator=generator)
    return head, features, targets, torch.rand(2, ROWS // 2, generator=generator)


def gradients(loss: Tensor, head: nn.Linear, features: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss * 3, [features, *head.parameters()]))


@pytest.fixture(params=[7, 512], ids=["many parts", "one part"])
def _rows_at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FEWEST_ROWS", request.param)
    monkeypatch.setattr(module, "_CHUNK_CPU", 1)


@pytest.mark.usefixtures("_rows_at_once")
@pytest.mark.parametrize("bias", [True, False])
def test_loss_gradients_accuracy_and_draws_are_those_of_whole_logits(bias: bool) -> None:
    head, features, targets, uniforms = case(bias=bias)
    logits = head(features)
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    found = linear_cross_entropy(features, head, targets, uniforms)
    torch.testing.assert_close(found.loss, expected)
    accuracy = (logits.argmax(-1) == targets).float().mean()
    torch.testing.assert_close(found.accuracy, accuracy)
    assert found.drawn is not None
    assert torch.equal(found.drawn, draw_tokens(logits, uniforms))
    pairs = zip(
        gradients(found.loss, head, features), gradients(expected, head, features), strict=True
    )
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs)


@pytest.mark.skipif(not has_bf16(CPU), reason="this CPU has no bfloat16")
@pytest.mark.usefixtures("_rows_at_once")
def test_under_autocast_the_products_are_bf16_and_the_gradients_keep_their_type() -> None:
    head, features, targets, uniforms = case()
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(features)
        expected = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
        found = linear_cross_entropy(features, head, targets, uniforms)
    torch.testing.assert_close(found.loss, expected)
    assert torch.equal(found.drawn, draw_tokens(logits, uniforms))  # of the same rounded logits
    for ours, theirs in zip(
        gradients(found.loss, head, features), gradients(expected, head, features), strict=True
    ):
        assert ours.dtype == theirs.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.01 * theirs.abs().max().item())


def test_no_draw_without_uniforms_and_no_gradient_without_need() -> None:
    head, features, targets, _ = case()
    with torch.no_grad():
        found = linear_cross_entropy(features, head, targets)
    assert found.drawn is None
    assert not found.loss.requires_grad
    assert not linear_cross_entropy(features, head, targets).accuracy.requires_grad


@pytest.mark.usefixtures("_rows_at_once")
def test_scores_of_every_token_are_those_of_whole_logits() -> None:
    head, features, targets, _ = case()
    assert linear_cross_entropy(features, head, targets).scores is None  # in training
    with torch.no_grad():
        found = linear_cross_entropy(features, head, targets)
        logits = head(features)
    assert found.scores is not None
    expected = torch.distributions.Categorical(logits=logits)
    torch.testing.assert_close(found.scores.loss, -expected.log_prob(targets))
    torch.testing.assert_close(found.scores.entropy, expected.entropy())
    assert torch.equal(found.scores.correct, logits.argmax(-1) == targets)
    torch.testing.assert_close(found.scores.loss.mean(), found.loss)


def test_no_gradient_is_computed_where_none_is_enabled(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(module, "_Gradients", never)
    head, features, targets, _ = case()
    with torch.no_grad():
        linear_cross_entropy(features, head, targets)
    with pytest.raises(AssertionError):
        linear_cross_entropy(features, head, targets)


def test_nothing_of_the_size_of_the_logits_waits_for_the_backward_pass() -> None:
    _, features, targets, _ = case()
    wide = nn.Linear(DIM, 1000)
    loss = linear_cross_entropy(features, wide, targets).loss  # torch 2.11 frees all that it saved
    kept = [saved.numel() for saved in loss.grad_fn.saved_tensors]  # type: ignore[union-attr]
    assert sorted(kept) == sorted([features.numel(), wide.weight.numel(), 1000])
    assert max(kept) < ROWS * 1000


def test_logits_that_are_not_numbers_give_a_loss_that_is_none() -> None:
    head, features, targets, uniforms = case()
    found = linear_cross_entropy(features * torch.nan, head, targets, uniforms)
    assert found.loss.isnan()
    assert found.drawn is not None and found.drawn.min() >= 0 and found.drawn.max() < VOCAB


@pytest.mark.usefixtures("_rows_at_once")
def test_the_first_rows_alone_can_be_drawn() -> None:
    head, features, targets, uniforms = case()
    whole = linear_cross_entropy(features, head, targets, uniforms).drawn
    some = linear_cross_entropy(features, head, targets, uniforms[:1]).drawn
    assert whole is not None and some is not None and torch.equal(some, whole[:1])
