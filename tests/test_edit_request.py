"""What can be requested of an image, and the image and mask at a size to work on."""

from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from sundae.common.errors import UserError
from sundae.common.images import resize_and_crop, to_pil, to_tensor
from sundae.editing.masks import BlockMask
from sundae.editing.request import EditInput, EditRequest, Margins

ONE = torch.ones(1, 1, dtype=torch.bool)


def noise(height: int = 16, width: int = 16) -> Image.Image:
    return to_pil(torch.rand(3, height, width, generator=torch.Generator().manual_seed(0)))


def prepare(image: Image.Image, **request: Any) -> EditInput:
    generator = torch.Generator().manual_seed(0)
    return EditRequest(**request).prepare(image, generator, trained=(4, 4), factor=4)


def mask_of(edit: EditInput) -> Tensor:
    assert edit.mask is not None
    return edit.mask


@pytest.mark.parametrize("request_", [{}, {"mask": ONE, "strength": 0.5}])
def test_exactly_one_edit_is_requested(request_: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="exactly one of mask, outpaint and strength"):
        EditRequest(**request_)


@pytest.mark.parametrize(
    ("request_", "complaint"),
    [
        ({"strength": -0.1}, "expected a fraction of the tokens, 0 to 1"),
        ({"strength": float("nan")}, "expected a fraction of the tokens, 0 to 1"),
        ({"mask": ~ONE}, "nothing to repaint"),
        ({"mask": ONE, "feather": -1}, "feather is -1"),
    ],
)
def test_what_makes_no_sense_is_one_line(request_: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        EditRequest(**request_)


def test_no_margin_or_a_negative_one_is_one_line() -> None:
    with pytest.raises(UserError, match="at least one side must be above 0"):
        Margins()
    with pytest.raises(UserError, match="left is -1, expected at least 0"):
        Margins(left=-1, top=4)


@pytest.mark.parametrize("size", [(16, 16), (8, 8), (37, 90), (64, 64), (1, 1)])
@pytest.mark.parametrize("canvas", [(4, 4), (4, 8)])
def test_scaling_leaks_nothing_that_is_masked(
    size: tuple[int, int], canvas: tuple[int, int]
) -> None:
    image, mask = noise(*size), torch.zeros(size, dtype=torch.bool)
    mask[size[0] // 3 : (5 * size[0] + 3) // 6, size[1] // 3 : (2 * size[1] + 2) // 3] = True
    changed = to_pil(to_tensor(image).masked_fill(mask, 1.0))
    expected, other = (prepare(one, mask=mask, canvas=canvas) for one in (image, changed))
    assert mask_of(expected).any() and torch.equal(mask_of(expected), mask_of(other))
    assert expected.image == other.image


def test_an_image_of_the_right_size_is_not_touched() -> None:
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[3:9, 5:9] = True
    edit = prepare(noise(), mask=mask)
    assert torch.equal(mask_of(edit), mask)
    assert edit.original == noise()
    assert torch.equal(to_tensor(edit.image)[:, ~mask], to_tensor(noise())[:, ~mask])


def test_a_mask_is_cut_as_its_image_is() -> None:
    """White exactly where the mask is set: after scaling and cutting, all of it is covered."""
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        size = (20 + 9 * seed, 77 - 11 * seed)
        mask = torch.rand(size, generator=generator) < 0.02
        white = Image.fromarray((mask * 255).byte().numpy()).convert("RGB")
        cut = mask_of(prepare(white, mask=mask))
        bright = to_tensor(resize_and_crop(white, 16))[0] > 0.25
        assert not (bright & ~cut).any()
        assert cut.any() and not cut.all()


def test_a_mask_of_another_size_is_stretched_over_the_whole_image() -> None:
    edit = prepare(noise(16, 32), mask=torch.tensor([[True, True, False, False]]))
    assert torch.equal(mask_of(edit).any(dim=0), torch.arange(16) < 8)
    with pytest.raises(UserError, match="covers nothing of the centre that is cut out"):
        prepare(noise(16, 64), mask=torch.tensor([[True, False, False, False]]))


def test_a_kind_of_mask_has_shares_of_what_is_cut_out() -> None:
    kind = BlockMask(height=0.5, width=1.0, top=0.5, left=0.0)
    assert mask_of(prepare(noise(16, 64), mask=kind)).any(dim=1).tolist() == [
        row >= 8 for row in range(16)
    ]


def test_margins_are_masked() -> None:
    edit = prepare(noise(), outpaint=Margins(left=2, bottom=3))
    assert edit.image.size == (18, 19)
    known = ~mask_of(edit)
    assert known.sum() == 256 and known[:16, 2:].all()
    assert edit.image.crop((2, 0, 18, 16)) == noise()


@pytest.mark.parametrize(
    ("fit", "size", "result"),
    [
        ("crop", (20, 99), (16, 16)),
        ("whole", (20, 99), (16, 80)),
        ("whole", (99, 20), (80, 16)),
        ("whole", (5, 5), (16, 16)),
        ("keep", (20, 99), (20, 99)),
        ("keep", (8, 10), (16, 20)),
    ],
)
def test_ways_to_fit(fit: str, size: tuple[int, int], result: tuple[int, int]) -> None:
    edit = prepare(noise(*size), strength=0.5, fit=fit)
    assert (edit.image.height, edit.image.width) == result
    assert edit.mask is None and edit.original == edit.image


@pytest.mark.parametrize("fit", ["whole", "keep"])
def test_too_long_an_image_is_one_line(fit: str) -> None:
    with pytest.raises(UserError, match="as a whole, more than 64 times the 4x4"):
        prepare(noise(1, 999), strength=0.5, fit=fit)


def test_an_image_covers_a_canvas() -> None:
    assert prepare(noise(), strength=0.5, canvas=(6, 8)).image.size == (32, 24)
    with pytest.raises(UserError, match="3x8 tokens is smaller than the 4x4"):
        prepare(noise(), strength=0.5, canvas=(3, 8))
