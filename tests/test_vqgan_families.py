"""Every family against its own code: the same tokens, and pixels within 1e-4 in fp32."""

from pathlib import Path

import pytest
import torch
from vqgan_cases import (
    CASES,
    CODES,
    random_images,
)

from sundae.codec.vqgan import load_vqgan


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_tokens_and_pixels_equal_those_of_the_family_s_own_code(name: str, tmp_path: Path) -> None:
    case = CASES[name](tmp_path)
    codec = load_vqgan(case.checkpoint, case.config, precision="fp32", **case.keywords)
    images = random_images(2, 48, 32)
    tokens = codec.encode(images)
    expected = case.encode(images)
    assert tokens.dtype == torch.int64 and tokens.shape == (2, 12, 8)
    assert torch.equal(tokens, expected)
    assert len(tokens.unique()) > 8  # a codebook in use, so that equal tokens mean something
    torch.testing.assert_close(codec.decode(tokens), case.decode(tokens), rtol=0, atol=1e-4)
    assert (codec.family, codec.codebook_size, codec.factor) == (case.family, CODES, 4)
