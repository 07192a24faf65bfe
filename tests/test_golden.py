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
    "random": (3, {"steps": 6, "strategy": "random", "min_steps": 2}, "f8640588680f2fb6"),
    "renoise": (4, {"steps": 4}, "2b6f1e17afa3a23d"),
    "confidence": (2, {"steps": 4, "strategy": "confidence"}, "48b52de9ce237d52"),
    "halton": (2, {"steps": 4, "strategy": "halton"}, "f9268c8230700cb4"),
    "argmax": (2, {"steps": 4, "strategy": "argmax"}, "022dbee77d5cc33b"),
    "posterior": (2, {"steps": 6, "strategy": "posterior"}, "3d1cd3d48a7ce008"),
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
        "0823c10608e67792",
    ),
    "canvas": (1, {"steps": 3, "canvas": (16, 20)}, "ee3d79e22a9d17d5"),
}
MEAN_COLOURS = {  # 0 to 255
    "renoise": [
        [177.11, 183.98, 196.86],
        [204.12, 189.58, 192.70],
        [196.89, 177.14, 171.56],
        [228.88, 200.13, 179.89],
    ],
    "canvas": [[201.68, 191.91, 198.50]],
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
    assert digest(last.tokens) == "aa4c0e1bae181dcf"


HOLE = torch.zeros(64, 64, dtype=torch.bool)
HOLE[15:50, 25:] = True


@pytest.mark.parametrize(
    ("edit", "expected", "mean_colour"),
    [
        ({"mask": HOLE}, "aef66c5968ba756b", [93.17, 140.38, 165.79]),
        ({"strength": 0.4}, "9a53bb40758c441c", [175.17, 133.16, 117.88]),
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
