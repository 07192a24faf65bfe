"""Every run file that comes with the project describes the network that it is meant to."""

from pathlib import Path

import pytest
import torch

from hourglass_transformer import HourglassTransformer
from hourglass_transformer.config import Depth
from sundae.config.run_file import load_config
from sundae.evaluation.cost import Cost
from sundae.prior.network import build_network

ROOT = Path(__file__).parents[1] / "config"
CONFIGS = {str(path.relative_to(ROOT)): path for path in ROOT.glob("**/*.toml")}

# file -> (grid, depth, dim, vocabulary, classes)
SHAPES: dict[str, tuple[tuple[int, int], Depth, int, int, int]] = {
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
    "avatars/32.toml": ((8, 8), (1, 8, 1), 224, 1024, 12),
    "avatars/64.toml": ((16, 16), (1, 8, 1), 224, 1024, 12),
    "ffhq1024/fast.toml": ((32, 32), (2, (2, 10, 2), 2), 2304, 8192, 0),
    "ffhq256/fast.toml": ((16, 16), (2, (3, 6, 3), 2), 1280, 1024, 0),
    "digits/fast.toml": ((8, 8), (1, 2, 1), 128, 17, 10),
    "emoji/64-fast.toml": ((16, 16), (1, (2, 3, 2), 1), 288, 1024, 9),
    "mnist/cpu.toml": ((28, 28), (1, (1, 4, 1), 1), 256, 16, 10),
    "fashionmnist/cpu.toml": ((28, 28), (2, (2, 2, 2), 2), 256, 16, 10),
}
# file -> widths, outermost first; dim everywhere in the others
WIDTHS = {
    "ffhq1024/fast.toml": (896, 1536, 2304),
    "ffhq256/fast.toml": (384, 768, 1280),
    "digits/fast.toml": (48, 128),
    "emoji/64-fast.toml": (128, 192, 288),
    "mnist/cpu.toml": (64, 128, 256),
    "fashionmnist/cpu.toml": (64, 128, 256),
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
    "avatars/32.toml": 8_116_096,
    "avatars/64.toml": 8_116_096,
    "ffhq1024/fast.toml": 971_139_456,
    "ffhq256/fast.toml": 213_454_976,
    "digits/fast.toml": 716_769,
    "emoji/64-fast.toml": 8_129_952,
    "mnist/cpu.toml": 3_981_648,
    "fashionmnist/cpu.toml": 2_899_152,
}
# fast file -> (its counterpart, how far parameters may differ, share of the counterpart's FLOPs)
FAST = {
    "ffhq1024/fast.toml": ("ffhq1024.toml", 0.03, 1 / 3),
    "ffhq256/fast.toml": ("ffhq256.toml", 0.03, 1 / 3),
    "digits/fast.toml": ("digits/demo.toml", 0.05, 0.6),
    "emoji/64-fast.toml": ("emoji/64.toml", 0.05, 0.5),
}


def counted_by_hand(
    depth: Depth, widths: tuple[int, ...], vocab_size: int, classes: int, *, across: bool
) -> int:
    """Parameters of an hourglass with 2x2 cells and feed-forwards four times as wide as a level."""
    ends = (2 * vocab_size + classes) * widths[0] + vocab_size + 2 * widths[0]
    return ends + stack(depth, widths, across)


def stack(depth: Depth, widths: tuple[int, ...], across: bool) -> int:
    """Parameters between embedding and last norm."""
    dim = widths[0]
    layer = 12 * dim**2 + 9 * dim  # attention 4, feed-forward 8 matrices; biases and two norms
    if isinstance(depth, int):
        return depth * layer
    before, valley, after = depth
    below = widths[1]
    resampling = 8 * dim * below + below + 4 * dim  # four tokens to one, and one to four
    own = (before + after) * layer + resampling
    if across:
        own += attending(dim, below) + attending(below, dim)
    return own + stack(valley, widths[1:], across)


def attending(dim: int, context: int) -> int:
    """Parameters of a layer whose keys and values come from another width, with a norm of it."""
    return 10 * dim**2 + 2 * dim * context + 9 * dim + 2 * context


def test_every_run_file_is_looked_at() -> None:
    assert CONFIGS.keys() == SHAPES.keys() == PARAMETERS.keys()


@pytest.mark.parametrize("name", SHAPES)
def test_a_shipped_network_has_the_shape_and_size_it_should(name: str) -> None:
    with torch.device("meta"):
        net = build_network(load_config(CONFIGS[name]))
    grid, depth, dim, vocab_size, classes = SHAPES[name]
    shape = net.cfg
    assert (net.grid, shape.depth, shape.dim) == (grid, depth, dim)
    cell = shape.levels(grid)[0].cell
    assert (net.vocab_size, shape.num_classes, cell) == (vocab_size, classes, 2)
    count = sum(parameter.numel() for parameter in net.parameters())
    rows = classes + (shape.null_class is not None)
    widths = WIDTHS.get(name, (dim,) * (shape.num_levels + 1))
    by_hand = counted_by_hand(depth, widths, vocab_size, rows, across=shape.attn_resampling)
    assert count == PARAMETERS[name] == by_hand


def test_the_demo_network_stays_under_a_million_parameters() -> None:
    assert PARAMETERS["digits/demo.toml"] < 1_000_000


@pytest.mark.parametrize("name", FAST)
def test_a_fast_file_does_as_many_parameters_with_less_arithmetic(name: str) -> None:
    counterpart, difference, share = FAST[name]
    runs = [load_config(CONFIGS[file]) for file in (name, counterpart)]
    costs = [Cost(cfg) for cfg in runs]
    parameters, reference = (cost.parameters for cost in costs)
    assert parameters == pytest.approx(reference, rel=difference)
    flops, reference = (cost.forward_flops() for cost in costs)
    assert 0 < flops <= share * reference
    # The same data, and so comparable.
    assert runs[0].data == runs[1].data and runs[0].vqgan == runs[1].vqgan


@pytest.mark.parametrize("name", FAST)
def test_a_fast_file_samples_in_few_steps_by_what_suits_them(name: str) -> None:
    cfg = load_config(CONFIGS[name])
    assert cfg.sampling.steps == 16
    assert cfg.sampling.resolved_strategy == "renoise"


def test_a_tiny_network_of_the_fast_kind_learns_in_every_part() -> None:
    cfg = load_config(CONFIGS["emoji/64-fast.toml"], ["net.dim=36", "net.dims=[16,24,36]"])
    net: HourglassTransformer = build_network(cfg)
    torch.nn.init.normal_(net.to_logits.weight)
    tokens = torch.randint(1024, (2, 256))
    net(tokens, torch.tensor([0, 9])).logsumexp(-1).sum().backward()
    for part, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.norm() > 0, part
