"""Samples of seed 0 of the bundled model are the images that they were before.

Tokens are compared exactly, in float32 on one thread of the CPU, pixels by their mean colours,
since the last bit of a pixel depends on the processor. A changed hash changes what users get.
"""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sundae.editing.request import EditRequest
from sundae.editing.sampler import Sampler
from sundae.sampling.sampler import sample_seeds

# name: (samples, settings, sha256 of the tokens, first 16 digits)
CASES: dict[str, tuple[int, dict[str, Any], str]] = {
    "random": (3, {"steps": 6, "strategy": "random", "min_steps": 2}, "d9bc547c39b0bc4c"),
    "renoise": (4, {"steps": 4}, "ef9f44f9ba4308c8"),
    "confidence": (2, {"steps": 4, "strategy": "confidence"}, "cf558c4e175e1873"),
    "halton": (2, {"steps": 4, "strategy": "halton"}, "11b29dd769d30762"),
    "argmax": (2, {"steps": 4, "strategy": "argmax"}, "14d63586e1af404d"),
    "posterior": (2, {"steps": 6, "strategy": "posterior"}, "1096cff297aebdad"),
    "guided": (
        2,
        {
            "steps": 4,
            "guidance": 2.0,
            "end_guidance": 1.0,
            "top_k": 50,
            "top_p": 0.95,
            "temperature": 1.1,
            "end_temperature": 0.3,
            "temperature_curve": "cosine",
        },
        "b98831835c9cfcff",
    ),
    "canvas": (1, {"steps": 3, "canvas": (16, 20)}, "a4b748356ab9df1e"),
}
MEAN_COLOURS = {  # 0 to 255
    "renoise": [
        [141.82, 195.12, 241.34],
        [193.05, 182.65, 183.71],
        [190.87, 197.54, 177.85],
        [217.07, 208.29, 207.94],
    ],
    "canvas": [[162.31, 188.59, 214.77]],
}


@pytest.fixture(scope="module")
def sampler() -> Iterator[Sampler]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Sampler.from_pretrained(device="cpu", precision="fp32")
    torch.set_num_threads(threads)


def digest(tokens: Tensor) -> str:
    return hashlib.sha256(tokens.numpy().astype("<i8").tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("name", CASES)
def test_samples_of_seed_0_are_the_same_images(sampler: Sampler, name: str) -> None:
    count, settings, expected = CASES[name]
    *_, last = sampler.refine(count, seed=0, **settings)
    assert digest(last.tokens) == expected
    if name in MEAN_COLOURS:
        means = last.pixels().mean((2, 3)) * 255
        assert torch.allclose(means, torch.tensor(MEAN_COLOURS[name]), atol=1.0)


def test_frozen_tokens_lead_to_the_same_images(sampler: Sampler) -> None:
    tokens = torch.arange(2 * 256).view(2, 16, 16) * 7 % sampler.codec.codebook_size
    frozen = (torch.arange(256) % 3 > 0).view(1, 16, 16).expand(2, -1, -1)
    *_, last = sampler.refine_tokens(
        sample_seeds(0, 2),
        sampler.class_rows(None, 2),
        sampler.settings(steps=4),
        tokens=tokens,
        frozen=frozen,
    )
    assert torch.equal(last.tokens[frozen], tokens[frozen])
    assert digest(last.tokens) == "f984e0c947b3c0db"


HOLE = torch.zeros(64, 64, dtype=torch.bool)
HOLE[15:50, 25:] = True


@pytest.mark.parametrize(
    ("edit", "expected", "mean_colour"),
    [
        ({"mask": HOLE}, "00345a1108751c03", [95.50, 142.21, 159.62]),
        ({"strength": 0.4}, "5fc0122ec505d1ec", [129.51, 147.10, 135.14]),
    ],
    ids=["inpaint", "vary"],
)
def test_edits_of_seed_0_are_the_same_images(
    sampler: Sampler, edit: dict[str, Any], expected: str, mean_colour: list[float]
) -> None:
    row, column = np.mgrid[:64, :64]
    image = Image.fromarray(4 * np.stack([column, row, column ^ row], -1).astype(np.uint8))
    prepared = sampler.prepare_edit(image, EditRequest(**edit), seed=0)
    *_, last = sampler.refine_edit(prepared, 2, seed=0, steps=4)
    assert digest(last.tokens) == expected
    means = last.pixels()[0].mean((1, 2)) * 255
    assert torch.allclose(means, torch.tensor(mean_colour), atol=1.0)
