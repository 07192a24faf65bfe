"""Repainting holes, borders and fractions of pictures, with a fake codec and a fake network."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import make_schedule
from PIL import Image
from torch import Tensor, nn

from sundae.common.errors import UserError
from sundae.common.images import resize_and_crop, to_pil, to_tensor
from sundae.config.run_file import RunConfig
from sundae.editing.inpaint import Answers, fit_picture, image_to_image, inpaint, outpaint_canvas
from sundae.editing.masks import token_mask
from sundae.sampling.prior import Prior

VOCAB, SIDE, FACTOR = 5, 4, 4
PIXELS = SIDE * FACTOR
SEEDS = torch.tensor([11, 12, 13])
SCHEDULE = make_schedule(steps=6)


class NeighbourNet(nn.Module):
    """Likes the token that its left neighbour has, so that answers depend on what is known."""

    def forward(self, tokens: Tensor, classes: Tensor | None) -> Tensor:
        return 2.0 * F.one_hot(tokens.roll(1, dims=1), VOCAB).float()


class FarSightedCodec:
    """Mean greys of patches mixed with those around them, for an encoder looks beyond a patch."""

    codebook_size, factor, identity = VOCAB, FACTOR, "far-sighted"

    def encode(self, images: Tensor) -> Tensor:
        assert images.min() >= 0 and images.max() <= 1
        grey = images.mean(dim=1, keepdim=True)
        around = F.avg_pool2d(grey, 3 * FACTOR, FACTOR, padding=FACTOR, count_include_pad=False)
        mixed = (F.avg_pool2d(grey, FACTOR) + around) / 2
        return (mixed[:, 0] * (VOCAB - 1)).round().long()

    def decode(self, tokens: Tensor) -> Tensor:
        grey = tokens.float() / (VOCAB - 1)
        grey = grey.repeat_interleave(FACTOR, 1).repeat_interleave(FACTOR, 2)
        return grey[:, None].expand(-1, 3, -1, -1)

    def to(self, device: torch.device | str) -> "FarSightedCodec":
        return self


CODEC = FarSightedCodec()


@pytest.fixture
def prior(config: Callable[..., RunConfig]) -> Prior:
    changes = {"net.conditional": False, "net.num_classes": 0}
    return Prior(NeighbourNet(), config(changes), torch.device("cpu"))


def picture(height: int = PIXELS, width: int = PIXELS, seed: int = 0) -> Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


def hole(top: int, left: int, height: int, width: int, size: tuple[int, int]) -> Tensor:
    hidden = torch.zeros(size, dtype=torch.bool)
    hidden[top : top + height, left : left + width] = True
    return hidden


SQUARE = hole(3, 5, 6, 4, (PIXELS, PIXELS))


def repaint(prior: Prior, image: Tensor, hidden: Tensor, **options: Any) -> list[Answers]:
    options = {"seeds": SEEDS, "classes": None, "schedule": SCHEDULE} | options
    return list(inpaint(prior, CODEC, image, hidden, **options))


def last_of(running: Iterator[Answers]) -> Answers:
    *_, last = running
    return last


@pytest.mark.parametrize("strategy", ["random", "confidence", "halton", "argmax", "renoise"])
def test_nothing_that_is_hidden_has_any_influence(prior: Prior, strategy: str) -> None:
    image, hidden = 0.75 * picture(), hole(4, 4, 7, 8, (PIXELS, PIXELS))
    schedule = make_schedule(steps=6, strategy=strategy)
    expected = repaint(prior, image, hidden, schedule=schedule)
    black, white = (image.masked_fill(hidden, colour)[None] for colour in (0.0, 1.0))
    seen = CODEC.encode(black) != CODEC.encode(white)
    assert seen[0, ~token_mask(hidden, FACTOR)].any()  # without a mask, a known token would tell
    for other in (0.0, 1.0, float("nan")):
        changed = image.masked_fill(hidden, other)
        for composite in (True, False):
            answers = repaint(prior, changed, hidden, schedule=schedule, composite=composite)
            for before, after in zip(expected, answers, strict=True):
                assert torch.equal(before.refinement.tokens, after.refinement.tokens)
            if composite:
                assert torch.equal(expected[-1].images(), answers[-1].images())


def test_known_tokens_are_kept_and_hidden_ones_drawn_anew(prior: Prior) -> None:
    image = picture()
    states = repaint(prior, image, SQUARE)
    redrawn = token_mask(SQUARE, FACTOR).flatten()
    assert redrawn.sum() == 3 * 2
    kept = [state.refinement.tokens[:, ~redrawn] for state in states]
    assert all(torch.equal(tokens, kept[0][:1].expand(3, -1)) for tokens in kept)
    assert [state.step for state in states] == list(range(len(states)))
    drawn = states[-1].refinement.tokens[:, redrawn]
    assert len(drawn.unique(dim=0)) == 3
    assert not torch.equal(drawn, states[0].refinement.tokens[:, redrawn])


def test_known_tokens_are_those_of_the_picture_where_the_codec_sees_no_further(
    prior: Prior, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        FarSightedCodec,
        "encode",
        lambda self, images: (F.avg_pool2d(images[:, 0], FACTOR) * 4).round().long(),
    )
    image = picture()
    known = ~token_mask(SQUARE, FACTOR).flatten()
    tokens = repaint(prior, image, SQUARE)[-1].refinement.tokens
    assert torch.equal(tokens[0, known], CODEC.encode(image[None]).flatten()[known])


def test_known_pixels_stay_exactly_the_pictures(prior: Prior) -> None:
    image = picture()
    answers = repaint(prior, image, SQUARE)[-1]
    raw = repaint(prior, image, SQUARE, composite=False)[-1].images()
    images = answers.images()
    assert torch.equal(images[:, :, ~SQUARE], image[:, ~SQUARE].expand(3, 3, -1))
    assert torch.equal(raw, CODEC.decode(answers.refinement.tokens.unflatten(1, (SIDE, SIDE))))
    hard = repaint(prior, image, SQUARE, feather=0)[-1].images()
    assert torch.equal(hard[:, :, SQUARE], raw[:, :, SQUARE])
    assert not torch.equal(images[:, :, SQUARE], raw[:, :, SQUARE])


def test_an_answer_depends_on_its_seed_not_on_those_beside_it(prior: Prior) -> None:
    image = picture()
    together = repaint(prior, image, SQUARE)[-1].images()
    alone = [repaint(prior, image, SQUARE, seeds=SEEDS[i : i + 1])[-1].images() for i in range(3)]
    assert torch.equal(together, torch.cat(alone))


def test_where_everything_is_hidden_answers_are_fresh_samples(prior: Prior) -> None:
    hidden = torch.ones(PIXELS, PIXELS, dtype=torch.bool)
    answers = repaint(prior, picture(), hidden)[-1]
    *_, fresh = prior.refine(SEEDS, None, SCHEDULE)
    assert torch.equal(answers.refinement.tokens, fresh.tokens)
    assert torch.equal(answers.images(), CODEC.decode(prior.grids(fresh.tokens)))


def test_nothing_to_repaint_or_too_small_a_picture_is_one_line(prior: Prior) -> None:
    with pytest.raises(UserError, match="nothing to repaint"):
        repaint(prior, picture(), torch.zeros(PIXELS, PIXELS, dtype=torch.bool))
    with pytest.raises(UserError, match="15x16 pixels is smaller than the 16x16"):
        repaint(prior, picture(15), torch.ones(15, 16, dtype=torch.bool))
    with pytest.raises(ValueError, match="a mask of"):
        repaint(prior, picture(), torch.ones(15, 16, dtype=torch.bool))


def test_a_prior_of_one_token_repaints_a_picture_of_one_patch(
    config: Callable[..., RunConfig],
) -> None:
    changes = {"data.sequence_length": 1, "net.type": "transformer", "net.depth": 1}
    cfg = config(changes | {"net.conditional": False, "net.num_classes": 0})
    prior = Prior(NeighbourNet(), cfg, torch.device("cpu"))
    hidden = hole(1, 1, 1, 1, (FACTOR, FACTOR))
    image = picture(FACTOR, FACTOR)
    images = repaint(prior, image, hidden)[-1].images()
    assert torch.equal(images[:, :, ~hidden], image[:, ~hidden].expand(3, 3, -1))
    beyond, unknown = outpaint_canvas(image, right=FACTOR + 1)
    assert repaint(prior, beyond, unknown)[-1].images().shape == (3, 3, FACTOR, 2 * FACTOR + 1)


# -- outpainting --------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right", "top", "bottom"])
@pytest.mark.parametrize("pixels", [1, 3, 4, 9])
def test_any_side_is_extended_by_any_number_of_pixels(prior: Prior, side: str, pixels: int) -> None:
    """The picture keeps all of its tokens, wherever the new pixels put it."""
    image, hidden = outpaint_canvas(picture(), **{side: pixels})
    answers = repaint(prior, image, hidden)[-1]
    images = answers.images()
    assert images.shape[2:] == image.shape[1:] == hidden.shape
    assert hidden.sum() == pixels * PIXELS
    known = images[0][:, ~hidden].view(3, PIXELS, PIXELS)
    assert torch.equal(known, picture())
    strips = -(-pixels // FACTOR)
    assert answers.refinement.tokens.shape[1] == SIDE * (SIDE + strips)
    tokens = answers.refinement.tokens
    same = (tokens == tokens[:1]).all(dim=0)
    assert same.sum() >= SIDE * SIDE


def test_no_side_or_a_negative_one_is_one_line() -> None:
    with pytest.raises(UserError, match="at least one side must be above 0"):
        outpaint_canvas(picture())
    with pytest.raises(UserError, match="left is -1, expected at least 0"):
        outpaint_canvas(picture(), left=-1, top=4)


def test_a_picture_larger_than_the_trained_grid_is_repainted_on_a_canvas(prior: Prior) -> None:
    size = (PIXELS, 2 * PIXELS)
    hidden = hole(0, 10, PIXELS, 14, size)
    image = picture(*size)
    answers = repaint(prior.on_canvas((9, 9)), image, hidden)[-1]
    assert answers.refinement.tokens.shape[1] == 2 * SIDE * SIDE
    assert torch.equal(answers.images()[1][:, ~hidden], image[:, ~hidden])


# -- image to image -----------------------------------------------------------------------------


def vary(prior: Prior, image: Tensor, strength: float) -> Answers:
    options: dict[str, Any] = {"seeds": SEEDS, "classes": None, "schedule": SCHEDULE}
    return last_of(image_to_image(prior, CODEC, image, strength=strength, **options))


def test_strength_goes_from_the_reconstruction_to_a_fresh_sample(prior: Prior) -> None:
    image = picture()
    tokens = CODEC.encode(image[None])
    none = vary(prior, image, 0.0)
    assert none.step == 0
    assert torch.equal(none.images(), CODEC.decode(tokens).expand(3, -1, -1, -1))
    *_, fresh = prior.refine(SEEDS, None, SCHEDULE)
    assert torch.equal(vary(prior, image, 1.0).refinement.tokens, fresh.tokens)


@pytest.mark.parametrize(("strength", "count"), [(0.25, 4), (0.5, 8), (0.9, 14)])
def test_strength_is_the_fraction_of_tokens_that_start_from_noise(
    prior: Prior, strength: float, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen: list[Tensor] = []
    refine = prior.refine

    def watched(*rows: Any, **options: Any) -> Any:
        frozen.append(options["frozen"])
        return refine(*rows, **options)

    monkeypatch.setattr(Prior, "refine", lambda self, *rows, **options: watched(*rows, **options))
    image = picture()
    answers = vary(prior, image, strength)
    (kept,) = frozen
    assert (~kept).sum(dim=1).tolist() == [count] * 3
    assert len(kept.unique(dim=0)) == 3  # each answer renews others
    tokens = CODEC.encode(image[None]).flatten().expand(3, -1)
    assert torch.equal(answers.refinement.tokens[kept], tokens[kept])


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_a_strength_that_is_no_fraction_is_one_line(prior: Prior, strength: float) -> None:
    with pytest.raises(UserError, match="expected a fraction of the tokens, 0 to 1"):
        vary(prior, picture(), strength)


def test_a_picture_of_any_size_can_be_varied(prior: Prior) -> None:
    answers = vary(prior, picture(18, 21), 0.0)
    assert answers.images().shape == (3, 3, 18, 21)


# -- pictures and masks of other sizes ----------------------------------------------------------


@pytest.mark.parametrize("size", [(16, 16), (8, 8), (37, 90), (64, 64), (1, 1)])
def test_scaling_a_picture_leaks_nothing_that_is_hidden(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    image = to_pil(torch.rand(3, *size, generator=generator))
    hidden = hole(size[0] // 3, size[1] // 3, (size[0] + 1) // 2, (size[1] + 2) // 3, size)
    changed = to_pil(to_tensor(image).masked_fill(hidden, 1.0))
    for target in ((16, 16), (16, 32)):
        expected, mask = fit_picture(image, target, hidden)
        fitted, same = fit_picture(changed, target, hidden)
        assert mask.any() and torch.equal(mask, same)
        assert torch.equal(fitted, expected)


def test_a_picture_of_the_right_size_is_not_touched_by_fitting() -> None:
    image = to_pil(picture())
    fitted, mask = fit_picture(image, (PIXELS, PIXELS), SQUARE)
    assert torch.equal(mask, SQUARE)
    assert torch.equal(fitted[:, ~SQUARE], to_tensor(image)[:, ~SQUARE])


def test_a_mask_is_cut_as_its_picture_is() -> None:
    """White exactly where the mask hides: after scaling and cutting, no white is left uncovered."""
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        size = (20 + 9 * seed, 77 - 11 * seed)
        hidden = torch.rand(size, generator=generator) < 0.02
        white = Image.fromarray((hidden * 255).byte().numpy()).convert("RGB")
        _, mask = fit_picture(white, (16, 16), hidden)
        # From boxes alone, without a filter that overshoots: a pixel with any white has some light.
        box = resize_and_crop(white, 16)
        bright = to_tensor(box)[0] > 0.25
        assert not (bright & ~mask).any()
        assert mask.any() and not mask.all()


def test_without_a_mask_a_picture_is_only_scaled_and_cut() -> None:
    image = to_pil(picture(20, 40))
    fitted, mask = fit_picture(image, (16, 16), torch.zeros(20, 40, dtype=torch.bool))
    assert torch.equal(fitted, to_tensor(resize_and_crop(image, 16)))
    assert not mask.any()
