"""Known pixels around a hole: continued into it, and put back into samples."""

import pytest
import torch
from torch import Tensor

from sundae.editing.compositing import composite, edge_depth, fill_masked


def hole(size: tuple[int, int], top: int, left: int, height: int, width: int) -> Tensor:
    mask = torch.zeros(size, dtype=torch.bool)
    mask[top : top + height, left : left + width] = True
    return mask


@pytest.mark.parametrize("size", [(16, 24), (13, 7), (1, 9), (9, 1), (1, 1)])
def test_a_fill_depends_on_known_pixels_only_and_stays_within_them(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(3, *size, generator=generator)
    for share in (0.1, 0.5, 0.9):
        mask = torch.rand(size, generator=generator) < share
        filled = fill_masked(image, mask)
        assert torch.equal(filled[:, ~mask], image[:, ~mask])
        for other in (0.0, 1.0, float("nan"), float("inf")):
            changed = image.masked_fill(mask, other)
            assert torch.equal(fill_masked(changed, mask), filled)
        if not mask.all():
            known = image[:, ~mask]
            assert (filled >= known.amin(1)[:, None, None] - 1e-6).all()
            assert (filled <= known.amax(1)[:, None, None] + 1e-6).all()


def test_a_fill_continues_what_lies_beside_the_hole() -> None:
    """Two halves of different colours: the mean of the known pixels would be an edge in both."""
    image = torch.zeros(1, 32, 32)
    image[:, :, 16:] = 1
    mask = hole((32, 32), 12, 0, 8, 32)
    filled = fill_masked(image, mask)
    assert filled[0, 12:20, :8].max() < 0.1
    assert filled[0, 12:20, 24:].min() > 0.9


def test_where_nothing_is_known_a_fill_is_nothing() -> None:
    mask = torch.ones(5, 6, dtype=torch.bool)
    assert torch.equal(fill_masked(torch.rand(3, 5, 6), mask), torch.zeros(3, 5, 6))


def test_depth_counts_from_the_known_pixels_not_from_the_border() -> None:
    depth = edge_depth(hole((5, 6), 0, 1, 5, 5), limit=2)
    assert torch.equal(depth, torch.tensor([0.0, 1, 2, 3, 3, 3]).expand(5, 6))
    assert torch.equal(edge_depth(torch.ones(3, 3, dtype=torch.bool), 1), torch.full((3, 3), 2.0))


def test_known_pixels_are_the_images_and_deep_ones_the_samples() -> None:
    generator = torch.Generator().manual_seed(1)
    # Values of 8 bits: their differences are rounded, so adding them back would not be exact.
    image, *samples = torch.randint(256, (3, 3, 20, 20), generator=generator) / 255
    samples = torch.stack(samples)
    mask = hole((20, 20), 4, 0, 12, 16)
    joined = composite(samples, image, mask, feather=3)
    assert torch.equal(joined[:, :, ~mask], image[:, ~mask].expand(2, 3, -1))
    deep = edge_depth(mask, 3) == 4
    assert torch.equal(joined[:, :, deep], samples[:, :, deep])
    assert not torch.equal(joined[:, :, mask], samples[:, :, mask])
    hard = composite(samples, image, mask, feather=0)
    assert torch.equal(hard[:, :, mask], samples[:, :, mask])


def test_the_tone_of_an_sample_fades_into_the_images_over_the_feather() -> None:
    image, samples = torch.full((3, 1, 12), 0.4), torch.full((1, 3, 1, 12), 0.8)
    joined = composite(samples, image, hole((1, 12), 0, 4, 1, 8), feather=3)[0, 0, 0]
    expected = [0.4] * 4 + [0.5, 0.6, 0.7] + [0.8] * 5
    assert joined.tolist() == pytest.approx(expected)


def test_where_everything_is_masked_the_sample_is_left_as_it_is() -> None:
    samples = torch.rand(2, 3, 6, 5)
    mask = torch.ones(6, 5, dtype=torch.bool)
    assert torch.equal(composite(samples, torch.zeros(3, 6, 5), mask, feather=2), samples)
