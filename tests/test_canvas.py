"""Canvases larger than the trained grid."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from conftest import make_schedule
from torch import Tensor, nn

from sundae.codec.interface import PixelCodec
from sundae.common.errors import UserError
from sundae.config.run_file import RunConfig
from sundae.sampling.canvas import check_canvas, parse_canvas, window_starts, windowed
from sundae.sampling.sampler import BaseSampler

VOCAB = 5


class PointwiseNet(nn.Module):
    """Logits that depend on the token and the class alone, so windows must agree about them."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[tuple[int, ...]] = []

    def forward(self, tokens: Tensor, classes: Tensor | None) -> Tensor:
        self.sizes.append(tuple(tokens.shape))
        shift = 0 if classes is None else classes[:, None]
        logits = nn.functional.one_hot((tokens + shift + 1) % VOCAB, VOCAB).double()
        return logits * (tokens[..., None] + 1)


@pytest.mark.parametrize(
    ("side", "window", "overlap", "starts"),
    [
        (8, 8, 2, [0]),
        (9, 8, 2, [0, 1]),
        (14, 8, 2, [0, 6]),
        (15, 8, 2, [0, 4, 7]),
        (64, 32, 8, [0, 16, 32]),
        (5, 1, 0, [0, 1, 2, 3, 4]),
    ],
)
def test_windows_are_as_few_as_cover_the_side(
    side: int, window: int, overlap: int, starts: list[int]
) -> None:
    assert window_starts(side, window, overlap) == starts


def test_windows_cover_every_side_and_overlap_enough() -> None:
    for window in range(1, 9):
        for overlap in range(window):
            for side in range(window, 30):
                starts = window_starts(side, window, overlap)
                assert starts[0] == 0 and starts[-1] == side - window
                gaps = [after - before for before, after in pairwise(starts)]
                assert all(0 < gap <= window - overlap for gap in gaps), (window, overlap, side)


@pytest.mark.parametrize("at_once", [1, 7, 64])
def test_where_windows_agree_their_blend_says_the_same(at_once: int) -> None:
    net = PointwiseNet()
    tokens = torch.randint(VOCAB, (3, 7 * 11), generator=torch.Generator().manual_seed(0))
    classes = torch.tensor([0, 1, 3])
    denoise = windowed(net, (4, 4), (7, 11), at_once=at_once)
    logits = denoise(tokens, classes)
    assert torch.allclose(logits.double(), PointwiseNet()(tokens, classes))
    assert torch.allclose(denoise(tokens, None).double(), PointwiseNet()(tokens, None))
    assert max(rows for rows, _ in net.sizes) <= max(3, at_once)
    assert sum(rows for rows, _ in net.sizes) == 2 * 3 * (2 * 4)  # each window once


def test_a_window_counts_most_where_it_sees_most() -> None:
    """Each window says its own number; going from one to the other the blend goes over slowly."""
    calls = iter(range(2))

    def denoise(tokens: Tensor, classes: Tensor | None) -> Tensor:
        return torch.full((*tokens.shape, 1), float(next(calls)))

    blend = windowed(denoise, (1, 4), (1, 6), at_once=1)(torch.zeros(1, 6).long(), None)
    # alone, alone, weights 2:1, weights 1:2, alone, alone
    assert blend.flatten().tolist() == pytest.approx([0, 0, 1 / 3, 2 / 3, 1, 1])


def test_what_all_windows_forbid_stays_forbidden() -> None:
    def denoise(tokens: Tensor, classes: Tensor | None) -> Tensor:
        return torch.tensor([0.0, -torch.inf]).expand(*tokens.shape, 2)

    logits = windowed(denoise, (2, 2), (3, 3))(torch.zeros(1, 9).long(), None)
    assert torch.equal(logits, denoise(torch.zeros(1, 9), None))


def test_the_trained_grid_costs_nothing_extra() -> None:
    net = PointwiseNet()
    assert windowed(net, (4, 4), (4, 4)) is net


@pytest.mark.parametrize("canvas", [(3, 9), (9, 3)])
def test_a_canvas_below_the_trained_grid_is_one_line(
    config: Callable[..., RunConfig], canvas: tuple[int, int]
) -> None:
    with pytest.raises(UserError, match="smaller than the 4x4 that the network was trained on"):
        check_canvas(canvas, (4, 4))
    with pytest.raises(UserError, match="choose one at least as large"):
        BaseSampler(PointwiseNet(), PixelCodec(5), config()).refine(1, canvas=canvas)


@pytest.mark.parametrize(
    ("text", "factor", "canvas"),
    [
        ("32x64", 16, (32, 64)),
        ("1024x2048px", 32, (32, 64)),
        ("8X4PX", 1, (8, 4)),
    ],
)
def test_canvases_in_tokens_and_in_pixels(text: str, factor: int, canvas: tuple[int, int]) -> None:
    assert parse_canvas(text, factor) == canvas


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("32", "expected HEIGHTxWIDTH in tokens"),
        ("0x4", "expected HEIGHTxWIDTH"),
        ("-1x4", "expected HEIGHTxWIDTH"),
        ("4x4 inches", "expected HEIGHTxWIDTH"),
        ("100x64px", "multiples of 16, such as 96x64px"),
        ("1x64px", "multiples of 16, such as 16x64px"),
    ],
)
def test_what_is_no_canvas_is_one_line(text: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        parse_canvas(text, 16)


class LastTokenNet(nn.Module):
    """As certain as it can be that every token equals the class."""

    def forward(self, tokens: Tensor, classes: Tensor | None) -> Tensor:
        assert classes is not None and tokens.shape[1] == 16
        rows = 50.0 * nn.functional.one_hot(classes, VOCAB).float()
        return rows[:, None].expand(*tokens.shape, VOCAB)


@pytest.mark.parametrize("strategy", ["random", "confidence", "halton", "renoise", "posterior"])
def test_a_canvas_is_sampled_with_classes_and_frozen_tokens(
    config: Callable[..., RunConfig], strategy: str
) -> None:
    sampler = BaseSampler(LastTokenNet(), PixelCodec(5), config())
    tokens = torch.full((2, 5, 9), 4)
    frozen = torch.zeros(2, 5, 9, dtype=torch.bool)
    frozen[:, 0, 7] = True
    *_, last = sampler.refine_tokens(
        torch.tensor([1, 2]),
        torch.tensor([0, 2]),
        make_schedule(steps=12, strategy=strategy, temperature=0.1, end_temperature=0.1),
        tokens=tokens,
        frozen=frozen,
    )
    grids = last.tokens
    assert grids.shape == (2, 5, 9)
    assert grids[:, 0, 7].tolist() == [4, 4]
    grids[:, 0, 7] = torch.tensor([0, 2])
    assert (grids[0] == 0).all() and (grids[1] == 2).all()


def test_a_canvas_that_no_computer_holds_is_one_line_that_thinks_of_pixels() -> None:
    check_canvas((64, 64), (8, 8))
    with pytest.raises(UserError, match=r"64 times the 8x8 .* written with px"):
        check_canvas((64, 65), (8, 8))


def test_batches_shrink_on_large_canvases(config: Callable[..., RunConfig]) -> None:
    sampler = BaseSampler(nn.Identity(), PixelCodec(5), config())
    vocabulary = sampler.cfg.data.vocab_size
    assert sampler.batch_size_for((4, 4), 64) == 64
    assert sampler.batch_size_for((1, 2**28 // vocabulary), 64) == 4
    assert sampler.batch_size_for((2**20, 2**20), 64) == 1
