"""Masks: which pixels, which tokens."""

from pathlib import Path

import numpy as np
import pytest
import torch
from einops import EinopsError
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from sundae.common.errors import UserError
from sundae.editing.masks import (
    MASK_KINDS,
    BlockMask,
    ClassicMask,
    GridMask,
    RandomMask,
    mask_kind,
    read_mask,
    resize_mask,
    token_mask,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def strip(length: int, start: int, width: int) -> Tensor:
    """(length,) bool with a run of true."""
    line = torch.zeros(length, dtype=torch.bool)
    line[start : start + width] = True
    return line


def test_every_alignment_of_a_hole_and_the_patches() -> None:
    """All offsets and widths, along both sides at once: tokens from the first to the last pixel."""
    factor, tokens = 8, 4
    length = factor * tokens
    for start in range(length):
        for width in range(1, length - start + 1):
            expected = strip(
                tokens, start // factor, (start + width - 1) // factor - start // factor + 1
            )
            across = strip(length, start, width)
            down = across.flip(0)
            mask = token_mask(down[:, None] & across, factor)
            assert torch.equal(mask, expected.flip(0)[:, None] & expected), (start, width)


def test_one_masked_pixel_masks_its_token_alone() -> None:
    for row in range(16):
        for column in range(24):
            mask = torch.zeros(16, 24, dtype=torch.bool)
            mask[row, column] = True
            assert token_mask(mask, 8).nonzero().tolist() == [[row // 8, column // 8]]


def test_a_mask_that_is_no_whole_number_of_patches_is_an_error() -> None:
    with pytest.raises(EinopsError, match="can't divide axis of length 9"):
        token_mask(torch.zeros(9, 8, dtype=torch.bool), 8)


def test_the_classic_hole_is_the_centre() -> None:
    expected = torch.zeros(8, 12, dtype=torch.bool)
    expected[2:6, 3:9] = True
    assert torch.equal(ClassicMask().make((8, 12), seeded()), expected)
    assert ClassicMask(share=1.0).make((8, 8), seeded()).all()


def test_a_grid_masks_a_square_in_every_cell() -> None:
    mask = GridMask(count=2, share=0.5).make((8, 16), seeded())
    assert torch.equal(mask.any(1), torch.tensor([0, 1, 1, 0, 0, 1, 1, 0]).bool())
    assert mask.sum() == 4 * (2 * 4)
    assert mask[1, 2:6].all() and mask[6, 10:14].all()


def test_a_block_is_where_requested_or_drawn() -> None:
    mask = BlockMask(height=0.25, width=0.5, top=0.5, left=0.75).make((8, 8), seeded())
    assert mask.nonzero().tolist() == [[4, 6], [4, 7], [5, 6], [5, 7]]  # cut off at the edge
    generator = seeded()
    drawn = [BlockMask(height=0.25, width=0.5).make((8, 8), generator) for _ in range(400)]
    assert {int(mask.sum()) for mask in drawn} == {2 * 4}
    covered = torch.stack(drawn).any(dim=0)
    assert covered.all()  # every place can be drawn, up to the edges
    assert torch.equal(BlockMask().make((8, 8), seeded(3)), BlockMask().make((8, 8), seeded(3)))


def test_random_blocks_are_as_many_and_as_large_as_requested() -> None:
    one = RandomMask(count=1, smallest=0.2, largest=0.4).make((100, 100), seeded())
    rows, columns = int(one.any(1).sum()), int(one.any(0).sum())
    assert 20 <= rows <= 40 and 20 <= columns <= 40 and int(one.sum()) == rows * columns
    many = RandomMask(count=20, smallest=0.2, largest=0.4).make((100, 100), seeded())
    assert many.sum() > 3 * one.sum()


@pytest.mark.parametrize("kind", MASK_KINDS)
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 2), (10, 10_000)])
def test_every_kind_of_mask_covers_something_of_any_image(kind: str, size: tuple[int, int]) -> None:
    mask = MASK_KINDS[kind]().make(size, seeded())
    assert mask.shape == size and mask.dtype == torch.bool and mask.any()


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("block", {"height": 1.5}),
        ("block", {"top": 1.0}),
        ("random", {"count": 0}),
        ("random", {"smallest": 0.5}),
        ("grid", {"share": 0.0}),
        ("classic", {"share": float("nan")}),
    ],
)
def test_sizes_out_of_range_are_refused(kind: str, sizes: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        MASK_KINDS[kind](**sizes)


@pytest.mark.parametrize(
    ("kind", "flags", "complaint"),
    [
        ("circle", {}, "--inpaint-strategy circle: expected one of block, random, grid, classic"),
        (
            "block",
            {"mask.block.height": 1.5},
            "--block-height: expected a number above 0 and at most 1, got 1.5",
        ),
        (
            "random",
            {"mask.random.smallest": 0.5},
            "--random-smallest: is above largest",
        ),
        ("block", {"mask.grid.count": 2}, "--grid-count needs --inpaint-strategy grid"),
        (None, {"mask.grid.count": 2}, "--grid-count needs --inpaint-strategy grid"),
    ],
)
def test_flags_that_make_no_mask_are_one_line(
    kind: str | None, flags: dict[str, float], complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        mask_kind(kind, flags)


# -- mask images ------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "result"), [(8, 3), (3, 8), (7, 7), (12, 4), (4, 12), (1, 5)])
def test_every_pixel_that_white_touches_is_repainted(length: int, result: int) -> None:
    """Along one side, all runs of white: true exactly where the two intervals overlap."""
    for start in range(length):
        for width in range(1, length - start + 1):
            scaled = resize_mask(strip(length, start, width)[None], (1, result))[0]
            for pixel in range(result):
                # in units of 1 / (length * result): white [low, high), pixel [left, right)
                low, high = start * result, (start + width) * result
                left, right = pixel * length, (pixel + 1) * length
                overlaps = low < right and left < high
                assert scaled[pixel] == overlaps, (start, width, pixel)


def test_a_mask_of_another_size_is_stretched() -> None:
    mask = resize_mask(torch.tensor([[True, False], [False, False]]), (4, 6))
    assert mask.nonzero().tolist() == [[row, column] for row in (0, 1) for column in (0, 1, 2)]


def saved(path: Path, image: Image.Image) -> Path:
    image.save(path)
    return path


def mask_images() -> dict[str, Image.Image]:
    """A white left half, in every way that a program may save it."""
    white = np.zeros((4, 4), np.uint8)
    white[:, :2] = 255
    grey = Image.fromarray(white)
    layer = Image.merge("RGBA", [grey.point(lambda _: 255)] * 3 + [grey])  # white on nothing
    palette = grey.convert("RGB").quantize(2)
    return {
        "grey": grey,
        "one bit": grey.convert("1"),
        "colour": grey.convert("RGB"),
        "layer": layer,
        "grey layer": Image.merge("LA", [grey, Image.new("L", (4, 4), 255)]),
        "palette": palette,
        "16 bits": Image.fromarray(white.astype(np.uint16) * 257),
        "soft": grey.point(lambda value: 128 if value else 127),
    }


@pytest.mark.parametrize("kind", list(mask_images()))
def test_white_is_repainted_however_it_is_saved(tmp_path: Path, kind: str) -> None:
    path = saved(tmp_path / "mask.png", mask_images()[kind])
    expected = torch.zeros(4, 4, dtype=torch.bool)
    expected[:, :2] = True
    assert torch.equal(read_mask(path), expected)


def test_a_mask_image_is_upright_like_its_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    path = tmp_path / "mask.png"
    mask_images()["grey"].save(path, exif=exif)
    assert torch.equal(resize_mask(read_mask(path), (1, 2)), torch.tensor([[False, True]]))


def test_a_single_white_pixel_survives_any_shrinking(tmp_path: Path) -> None:
    image = Image.new("L", (1000, 700))
    image.putpixel((421, 399), 255)
    mask = resize_mask(read_mask(saved(tmp_path / "dot.png", image)), (7, 10))
    assert mask.nonzero().tolist() == [[3, 4]]


def test_a_mask_that_masks_nothing_or_is_no_image_is_one_line(tmp_path: Path) -> None:
    path = saved(tmp_path / "black.png", Image.new("L", (4, 4), 127))
    with pytest.raises(UserError, match=r"black\.png masks nothing: expected white"):
        read_mask(path)
    path.write_text("no image")
    with pytest.raises(UserError, match=r"black\.png: .*give an image"):
        read_mask(path)
