"""Grey levels as tokens, and which codec a run gets."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sundae.codec.interface import PixelCodec, open_codec
from sundae.common.errors import UserError
from sundae.config.run_file import load_config
from sundae.sampling.image_codec import ImageCodec

DEMO = Path(__file__).parents[1] / "config/digits/demo.toml"


@pytest.mark.parametrize("levels", [2, 3, 17, 100, 255, 256])
def test_every_token_survives_pixels_even_in_eight_bits(levels: int) -> None:
    codec = PixelCodec(levels)
    tokens = torch.arange(levels).view(1, 1, -1)
    images = codec.decode(tokens)
    assert images.shape == (1, 3, 1, levels) and images.dtype == torch.float32
    assert torch.equal(codec.encode(images), tokens)
    assert torch.equal(codec.encode((images * 255).round() / 255), tokens)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_levels_are_even_steps_from_black_to_white(levels: int) -> None:
    images = PixelCodec(levels).decode(torch.arange(levels).view(1, 1, -1))
    expected = torch.linspace(0, 1, levels)
    for channel in images[0, :, 0]:
        assert torch.allclose(channel, expected, atol=1e-6)
    assert (images.min(), images.max()) == (0, 1)


def test_grey_is_the_luma_that_pillow_computes() -> None:
    pixels = torch.randint(256, (9, 11, 3), generator=torch.Generator().manual_seed(0))
    grey = np.asarray(Image.fromarray(pixels.numpy().astype(np.uint8)).convert("L"), dtype=int)
    tokens = PixelCodec(256).encode(pixels.permute(2, 0, 1)[None] / 255)
    assert np.abs(tokens[0].numpy() - grey).max() <= 1  # Pillow truncates a fixed-point sum


def test_rows_and_columns_keep_their_places() -> None:
    image = torch.zeros(1, 3, 2, 3)
    image[..., 0, 2] = 1.0
    assert PixelCodec(256).encode(image).tolist() == [[[0, 0, 255], [0, 0, 0]]]


def test_pixels_out_of_range_become_black_or_white() -> None:
    image = torch.tensor([-0.5, 1.5]).expand(1, 3, 1, 2)
    assert PixelCodec(17).encode(image).tolist() == [[[0, 16]]]


@pytest.mark.parametrize("levels", [1, 257])
def test_an_impossible_number_of_levels_is_refused(levels: int) -> None:
    with pytest.raises(ValueError, match=f"between 2 and 256, got {levels}"):
        PixelCodec(levels)


def test_codecs_of_different_levels_say_so() -> None:
    assert PixelCodec(17).identity == PixelCodec(17).identity != PixelCodec(16).identity


def test_a_run_without_a_vqgan_gets_pixels_of_its_vocabulary() -> None:
    codec = open_codec(load_config(DEMO))
    assert isinstance(codec, PixelCodec)
    assert (codec.codebook_size, codec.factor) == (17, 1)
    assert codec.to("cpu") is codec


def test_a_vocabulary_beyond_grey_levels_asks_for_the_vqgan() -> None:
    with pytest.raises(UserError, match="data.vocab_size is 1024 but there is no \\[vqgan\\]"):
        open_codec(load_config(DEMO, ["data.vocab_size=1024"]))


def test_no_more_is_decoded_at_once_than_fits() -> None:
    sizes = []

    class Large(PixelCodec):
        factor = 512

        def decode(self, tokens: Tensor) -> Tensor:
            sizes.append(len(tokens))
            return super().decode(tokens)

    tokens = torch.randint(5, (7, 2, 1))
    decoded = ImageCodec(Large(5)).decode(tokens)
    assert torch.equal(decoded, PixelCodec(5).decode(tokens))
    assert sizes == [2, 2, 2, 1]  # a megapixel at a time
