"""Uploaded images and the masks painted over them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sundae.common.errors import UserError
from sundae.common.images import save_image
from sundae.interactive.painting import painted_mask, read_upload


def test_whatever_a_brush_touches_is_masked() -> None:
    layer = np.zeros((8, 8, 4), np.uint8)
    layer[2, 5] = 255, 0, 0, 1  # as lightly as can be
    assert painted_mask([layer], (8, 8)).nonzero().tolist() == [[2, 5]]
    assert painted_mask([layer], (4, 4)).nonzero().tolist() == [[1, 2]]
    assert painted_mask([layer], (16, 8)).nonzero().tolist() == [[4, 5], [5, 5]]
    assert not painted_mask([], (4, 4)).any()
    other = np.zeros_like(layer)
    other[7, 0, 3] = 255
    assert painted_mask([layer, other], (8, 8)).sum() == 2


def test_an_upload_that_is_no_image_is_named_without_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "notes.png"
    path.write_text("not an image")
    with pytest.raises(UserError, match="^notes.png cannot be read as an image") as refusal:
        read_upload(path)
    assert str(tmp_path) not in str(refusal.value)


def test_a_huge_upload_is_scaled_down(tmp_path: Path) -> None:
    save_image(torch.zeros(3, 10, 4096), tmp_path / "wide.png")
    assert read_upload(tmp_path / "wide.png").size == (2048, 5)
