"""Every run file that comes with the project describes the network that it is meant to."""

from pathlib import Path

import pytest
import torch

from sundae.config import load_config
from sundae.network import build_network

ROOT = Path(__file__).parents[1] / "config"
CONFIGS = {str(path.relative_to(ROOT)): path for path in ROOT.glob("**/*.toml")}

# file -> (grid, depth, dim, vocabulary, classes)
SHAPES = {
    "mnist.toml": ((28, 28), (2, 8, 2), 1024, 256, 10),
    "fashionmnist.toml": ((28, 28), (2, 8, 2), 1024, 256, 10),
    "kmnist.toml": ((28, 28), (2, 8, 2), 1024, 256, 10),
    "celeba256.toml": ((16, 16), (2, 12, 2), 1024, 1024, 0),
    "ffhq256.toml": ((16, 16), (2, 10, 2), 1024, 1024, 0),
    "ffhq1024.toml": ((32, 32), (2, 12, 2), 2048, 8192, 0),
    "imagenet.toml": ((16, 16), (2, 16, 2), 2048, 1024, 1000),
    "digits/demo.toml": ((8, 8), (1, 2, 1), 96, 17, 10),
    "emoji/64.toml": ((16, 16), (1, 8, 1), 224, 1024, 9),
    "emoji/256.toml": ((16, 16), (1, 6, 1), 208, 1024, 9),
}
PARAMETERS = {
    "mnist.toml": 185_224_448,
    "fashionmnist.toml": 185_224_448,
    "kmnist.toml": 185_224_448,
    "celeba256.toml": 237_156_352,
    "ffhq256.toml": 211_972_096,
    "ffhq1024.toml": 973_441_024,
    "imagenet.toml": 1_147_522_048,
    "digits/demo.toml": 747_761,
    "emoji/64.toml": 8_115_424,
    "emoji/256.toml": 5_987_888,
}


def counted_by_hand(depth: tuple[int, int, int], dim: int, vocab_size: int, classes: int) -> int:
    """Parameters of an hourglass with one level, 2x2 cells and feed-forwards 4 dim wide."""
    layer = 12 * dim**2 + 9 * dim  # attention 4, feed-forward 8 matrices; biases and two norms
    across = layer + 2 * dim  # and a norm of what is looked at
    resampling = 8 * dim**2 + 5 * dim  # four tokens to one, and one to four
    ends = (2 * vocab_size + classes) * dim + vocab_size + 2 * dim
    return sum(depth) * layer + 2 * across + resampling + ends


def test_every_run_file_is_looked_at() -> None:
    assert CONFIGS.keys() == SHAPES.keys() == PARAMETERS.keys()


@pytest.mark.parametrize("name", SHAPES)
def test_a_shipped_network_has_the_shape_and_size_it_should(name: str) -> None:
    with torch.device("meta"):
        net = build_network(load_config(CONFIGS[name]))
    grid, depth, dim, vocab_size, classes = SHAPES[name]
    shape = net.cfg
    assert (shape.grid, shape.depth, shape.dim) == (grid, depth, dim)
    assert (shape.vocab_size, shape.num_classes, shape.cell_side(0)) == (vocab_size, classes, 2)
    count = sum(parameter.numel() for parameter in net.parameters())
    rows = classes + shape.null_class
    assert count == PARAMETERS[name] == counted_by_hand(depth, dim, vocab_size, rows)


def test_the_demo_network_stays_under_a_million_parameters() -> None:
    assert PARAMETERS["digits/demo.toml"] < 1_000_000
