"""Repainting holes, margins and fractions of images, with a fake codec and a fake network."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from sundae.common.errors import UserError
from sundae.common.images import resize_and_crop, to_pil, to_tensor
from sundae.config.run_file import RunConfig
from sundae.editing.masks import token_mask
from sundae.editing.request import EditInput, EditRequest, Margins
from sundae.editing.sampler import Sampler
from sundae.sampling.sampler import SampleBatch

VOCAB, SIDE, FACTOR = 5, 4, 4
PIXELS = SIDE * FACTOR
SEED = 11


class NeighbourNet(nn.Module):
    """Prefers the token of the left neighbour, so that samples depend on what is known."""

    def forward(self, tokens: Tensor, classes: Tensor | None) -> Tensor:
        return 2.0 * F.one_hot(tokens.roll(1, dims=1), VOCAB).float()


class FarSightedCodec:
    """Mean greys of patches mixed with those around them, for an encoder sees beyond a patch."""

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
def sampler(config: Callable[..., RunConfig]) -> Sampler:
    changes = {"net.conditional": False, "net.num_classes": 0, "sampling.steps": 6}
    return Sampler(NeighbourNet(), CODEC, config(changes | {"sampling.min_steps": 0}))


def noise(height: int = PIXELS, width: int = PIXELS) -> Image.Image:
    return to_pil(torch.rand(3, height, width, generator=torch.Generator().manual_seed(0)))


def hole(top: int, left: int, height: int, width: int, size: tuple[int, int]) -> Tensor:
    mask = torch.zeros(size, dtype=torch.bool)
    mask[top : top + height, left : left + width] = True
    return mask


SQUARE = hole(3, 5, 6, 4, (PIXELS, PIXELS))


def input_of(image: Image.Image, mask: Tensor | None, **request: Any) -> EditInput:
    """An input with this very image and mask, whatever lies under the mask."""
    edit = {"strength": 0.5} if mask is None else {"mask": torch.ones(1, 1, dtype=torch.bool)}
    return EditInput(EditRequest(**edit | request), image, image, mask)


def repaint(
    sampler: Sampler, image: Image.Image, mask: Tensor, count: int = 3, **options: Any
) -> list[SampleBatch]:
    request = {name: options.pop(name) for name in ("composite", "feather") if name in options}
    edit = input_of(image, mask, **request)
    return list(sampler.refine_edit(edit, count, seed=SEED, **options))


def decoded(tokens: Tensor) -> Tensor:
    return CODEC.decode(tokens)


@pytest.mark.parametrize(
    "strategy", ["random", "confidence", "halton", "argmax", "renoise", "posterior"]
)
def test_nothing_that_is_masked_has_any_influence(sampler: Sampler, strategy: str) -> None:
    mask = hole(4, 4, 7, 8, (PIXELS, PIXELS))
    image = 0.75 * to_tensor(noise())
    expected = repaint(sampler, to_pil(image), mask, strategy=strategy)
    black, white = (image.masked_fill(mask, colour) for colour in (0.0, 1.0))
    differs = CODEC.encode(black[None]) != CODEC.encode(white[None])
    assert differs[0, ~token_mask(mask, FACTOR)].any()  # without a mask, known tokens would tell
    for changed in (black, white):
        for composite in (True, False):
            states = repaint(sampler, to_pil(changed), mask, strategy=strategy, composite=composite)
            for before, after in zip(expected, states, strict=True):
                assert torch.equal(before.tokens, after.tokens)
            if composite:
                assert torch.equal(expected[-1].pixels(), states[-1].pixels())


def test_known_tokens_stay_and_masked_ones_are_drawn_anew(sampler: Sampler) -> None:
    states = repaint(sampler, noise(), SQUARE)
    redrawn = token_mask(SQUARE, FACTOR)
    assert redrawn.sum() == 3 * 2
    known = [state.tokens[:, ~redrawn] for state in states]
    assert all(torch.equal(tokens, known[0][:1].expand(3, -1)) for tokens in known)
    assert [state.step for state in states] == list(range(len(states)))
    drawn = states[-1].tokens[:, redrawn]
    assert len(drawn.unique(dim=0)) == 3
    assert not torch.equal(drawn, states[0].tokens[:, redrawn])


def test_known_tokens_are_those_of_the_image_where_the_codec_sees_no_further(
    sampler: Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        FarSightedCodec,
        "encode",
        lambda self, images: (F.avg_pool2d(images[:, 0], FACTOR) * 4).round().long(),
    )
    known = ~token_mask(SQUARE, FACTOR)
    tokens = repaint(sampler, noise(), SQUARE)[-1].tokens
    assert torch.equal(tokens[0, known], CODEC.encode(to_tensor(noise())[None])[0, known])


def test_known_pixels_are_exactly_the_images(sampler: Sampler) -> None:
    image = to_tensor(noise())
    last = repaint(sampler, noise(), SQUARE)[-1]
    raw = repaint(sampler, noise(), SQUARE, composite=False)[-1].pixels()
    images = last.pixels()
    assert torch.equal(images[:, :, ~SQUARE], image[:, ~SQUARE].expand(3, 3, -1))
    assert torch.equal(raw, decoded(last.tokens))
    hard = repaint(sampler, noise(), SQUARE, feather=0)[-1].pixels()
    assert torch.equal(hard[:, :, SQUARE], raw[:, :, SQUARE])
    assert not torch.equal(images[:, :, SQUARE], raw[:, :, SQUARE])


def test_a_sample_does_not_depend_on_those_beside_it(sampler: Sampler) -> None:
    together = repaint(sampler, noise(), SQUARE)[-1].pixels()
    pairs = [state for state in repaint(sampler, noise(), SQUARE, batch_size=2) if state.is_final]
    assert torch.equal(together, torch.cat([state.pixels() for state in pairs]))
    alone = repaint(sampler, noise(), SQUARE, count=1, first=2)[-1].pixels()
    assert torch.equal(together[2:], alone)


def test_where_everything_is_masked_samples_are_fresh(sampler: Sampler) -> None:
    mask = torch.ones(PIXELS, PIXELS, dtype=torch.bool)
    last = repaint(sampler, noise(), mask)[-1]
    *_, fresh = sampler.refine(3, seed=SEED)
    assert torch.equal(last.tokens, fresh.tokens)
    assert torch.equal(last.pixels(), decoded(fresh.tokens))


def test_too_small_an_image_is_one_line(sampler: Sampler) -> None:
    with pytest.raises(UserError, match="15x16 pixels is smaller than the 16x16"):
        repaint(sampler, noise(15), torch.ones(15, 16, dtype=torch.bool))


def test_a_network_of_one_token_repaints_an_image_of_one_patch(
    config: Callable[..., RunConfig],
) -> None:
    changes = {"data.sequence_length": 1, "net.type": "transformer", "net.depth": 1}
    cfg = config(changes | {"net.conditional": False, "net.num_classes": 0})
    sampler = Sampler(NeighbourNet(), CODEC, cfg)
    mask = hole(1, 1, 1, 1, (FACTOR, FACTOR))
    image = noise(FACTOR, FACTOR)
    images = repaint(sampler, image, mask)[-1].pixels()
    assert torch.equal(images[:, :, ~mask], to_tensor(image)[:, ~mask].expand(3, 3, -1))
    wider = sampler.outpaint(image, 1, right=FACTOR + 1)
    assert wider[0].size == (2 * FACTOR + 1, FACTOR)


@pytest.mark.parametrize("side", ["left", "right", "top", "bottom"])
@pytest.mark.parametrize("pixels", [1, 3, 4, 9])
def test_any_side_is_extended_by_any_number_of_pixels(
    sampler: Sampler, side: str, pixels: int
) -> None:
    """The image keeps all of its tokens, wherever the new pixels put it."""
    edit = sampler.prepare_edit(noise(), EditRequest(outpaint=Margins(**{side: pixels})), SEED)
    *_, last = sampler.refine_edit(edit, 3, seed=SEED)
    images = last.pixels()
    assert edit.mask is not None and images.shape[2:] == edit.mask.shape
    assert edit.mask.sum() == pixels * PIXELS
    known = images[0][:, ~edit.mask].view(3, PIXELS, PIXELS)
    assert torch.equal(known, to_tensor(noise()))
    tokens = last.tokens.flatten(1)
    assert tokens.shape[1] == SIDE * (SIDE - (-pixels // FACTOR))
    assert (tokens == tokens[:1]).all(dim=0).sum() >= SIDE * SIDE


def test_an_image_larger_than_the_trained_grid_is_repainted_on_a_canvas(sampler: Sampler) -> None:
    image, mask = noise(PIXELS, 2 * PIXELS), hole(0, 10, PIXELS, 14, (PIXELS, 2 * PIXELS))
    last = repaint(sampler, image, mask)[-1]
    assert last.tokens.shape[1:] == (SIDE, 2 * SIDE)
    assert torch.equal(last.pixels()[1][:, ~mask], to_tensor(image)[:, ~mask])


# -- variations ---------------------------------------------------------------------------------


def vary(sampler: Sampler, image: Image.Image, strength: float) -> list[SampleBatch]:
    return list(sampler.refine_edit(input_of(image, None, strength=strength), 3, seed=SEED))


def test_strength_goes_from_the_reconstruction_to_a_fresh_sample(sampler: Sampler) -> None:
    tokens = CODEC.encode(to_tensor(noise())[None])
    (only,) = vary(sampler, noise(), 0.0)
    assert (only.step, only.num_running, only.is_final) == (0, 0, True)
    assert torch.equal(only.pixels(), decoded(tokens).expand(3, -1, -1, -1))
    *_, fresh = sampler.refine(3, seed=SEED)
    assert torch.equal(vary(sampler, noise(), 1.0)[-1].tokens, fresh.tokens)


@pytest.mark.parametrize(("strength", "count"), [(0.25, 4), (0.5, 8), (0.9, 14)])
def test_strength_is_the_fraction_of_tokens_that_start_from_noise(
    sampler: Sampler, strength: float, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen: list[Tensor] = []
    refine = Sampler.refine_tokens

    def watched(self: Sampler, *rows: Any, **options: Any) -> Any:
        frozen.append(options["frozen"])
        return refine(self, *rows, **options)

    monkeypatch.setattr(Sampler, "refine_tokens", watched)
    last = vary(sampler, noise(), strength)[-1]
    (known,) = frozen
    assert (~known).flatten(1).sum(dim=1).tolist() == [count] * 3
    assert len(known.unique(dim=0)) == 3  # each sample renews others
    tokens = CODEC.encode(to_tensor(noise())[None]).expand(3, -1, -1)
    assert torch.equal(last.tokens[known], tokens[known])


def test_an_image_of_any_size_can_be_varied(sampler: Sampler) -> None:
    assert vary(sampler, noise(18, 21), 0.0)[-1].pixels().shape == (3, 3, 18, 21)


# -- the front door -------------------------------------------------------------------------------


def test_images_in_images_out(sampler: Sampler) -> None:
    photo, options = noise(20, 40), {"seed": SEED, "steps": 2}
    cut = np.asarray(resize_and_crop(photo, PIXELS))
    left = Image.new("L", (4, 1))
    left.paste(255, (0, 0, 2, 1))  # of the whole photo; stretched to it
    samples = sampler.inpaint(photo, left, n=2, **options)
    assert [image.size for image in samples] == [(PIXELS, PIXELS)] * 2
    assert all((np.asarray(image)[:, 12:] == cut[:, 12:]).all() for image in samples)
    assert (np.asarray(samples[0])[:, :8] != cut[:, :8]).any()
    for same in (left.convert("1"), np.array([[True, False]]), torch.tensor([[True, False]])):
        assert sampler.inpaint(photo, same, n=2, **options) == samples
    whole = sampler.inpaint(photo, left, n=1, fit="whole", **options)
    assert whole[0].size == (2 * PIXELS, PIXELS)
    kept = sampler.inpaint(photo, left, n=1, fit="keep", **options)
    assert kept[0].size == photo.size
    assert (np.asarray(kept[0])[:, 20:] == np.asarray(photo)[:, 20:]).all()
    assert sampler.outpaint(photo, n=1, left=4, bottom=8, **options)[0].size == (20, 24)
    same = sampler.vary(photo, 0.0, n=2, **options)
    assert np.asarray(same[0]).tolist() == np.asarray(same[1]).tolist()


def test_images_of_every_mode_can_be_edited(sampler: Sampler) -> None:
    photo = noise()
    for mode in ("RGBA", "L", "P", "CMYK"):
        expected = sampler.vary(photo.convert(mode).convert("RGB"), 0.0, n=1)
        assert sampler.vary(photo.convert(mode), 0.0, n=1) == expected


def test_a_setting_or_class_that_does_not_exist_is_one_line(sampler: Sampler) -> None:
    with pytest.raises(UserError, match="temprature"):
        sampler.vary(noise(), 0.5, temprature=1.0)
    with pytest.raises(UserError, match="trained without classes"):
        sampler.inpaint(noise(), SQUARE, classes="cat")


def test_the_number_of_edits_is_no_setting(sampler: Sampler) -> None:
    with pytest.raises(UserError, match="nb_samples is no setting of an edit"):
        sampler.vary(noise(), 0.5, n=2, nb_samples=8)
