"""Samples on disk: one PNG each, a grid beside them, nothing overwritten."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import contents
from small_nets import ClassNet
from torch import Tensor

from sundae.codec.interface import PixelCodec
from sundae.common.errors import UserError
from sundae.common.images import load_image, to_tensor
from sundae.config.run_file import RunConfig
from sundae.sampling.output import grid_path, prepare_out_dir, sample_path, write_samples
from sundae.sampling.sampler import BaseSampler

Config = Callable[..., RunConfig]


def grey(level: int) -> Tensor:
    """What an image of one grey level is once it has been a PNG."""
    return torch.full((3, 4, 4), round(level * 255 / 4) / 255)


def write(config: Config, out_dir: Path, count: int, *, offset: int = 0, **options: Any) -> Path:
    """Images by the fake network, classes in turn."""
    sampler = BaseSampler(ClassNet(), PixelCodec(5), config())
    states = sampler.refine(count, seed=0, first=offset, steps=4, **options)
    prepare_out_dir(out_dir, count, offset, overwrite=False)
    return write_samples(states, out_dir, count, offset=offset, progress=False)


def test_every_sample_is_one_png_of_its_class(config: Config, tmp_path: Path) -> None:
    grid = write(config, tmp_path / "out", 7, batch_size=3)
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == [f"{i:05d}.png" for i in range(7)]
    for i in range(7):
        image = to_tensor(load_image(sample_path(tmp_path / "out", i)))
        assert torch.equal(image, grey(i % 3))
    assert grid == tmp_path / "out-grid.png"
    assert grid.exists()


def test_names_and_classes_go_on_from_the_offset(config: Config, tmp_path: Path) -> None:
    grid = write(config, tmp_path / "out", 2, batch_size=3, offset=4)
    assert set(contents(tmp_path)) == {"out/00004.png", "out/00005.png", "out-grid-4.png"}
    assert torch.equal(to_tensor(load_image(tmp_path / "out" / "00004.png")), grey(1))
    assert grid == tmp_path / "out-grid-4.png"


def test_the_grid_shows_a_hundred_images_at_most(config: Config, tmp_path: Path) -> None:
    grid = write(config, tmp_path / "out", 104, batch_size=30)
    width, height = load_image(grid).size
    small, _ = load_image(write(config, tmp_path / "few", 100, batch_size=100)).size
    assert width == height == small


def test_files_that_exist_are_not_overwritten_unasked(tmp_path: Path) -> None:
    out_dir = tmp_path / "out"
    prepare_out_dir(out_dir, 3, 0, overwrite=False)
    sample_path(out_dir, 5).touch()
    prepare_out_dir(out_dir, 5, 0, overwrite=False)
    with pytest.raises(UserError, match=r"00005\.png exists; .* --overwrite"):
        prepare_out_dir(out_dir, 6, 0, overwrite=False)
    prepare_out_dir(out_dir, 6, 0, overwrite=True)
    grid_path(out_dir, 0).touch()
    with pytest.raises(UserError, match=r"out-grid\.png exists"):
        prepare_out_dir(out_dir, 1, 0, overwrite=False)
    prepare_out_dir(out_dir, 1, 6, overwrite=False)


@pytest.mark.parametrize("name", ["file", "file/below", "x" * 300])
def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write to"):
        prepare_out_dir(tmp_path / name, 1, 0, overwrite=False)
    assert set(contents(tmp_path)) == {"file"}


def test_the_current_folder_is_an_out_dir_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "below")
    assert grid_path(Path(), 0) == tmp_path / "here" / "below-grid.png"
    assert grid_path(Path(".."), 8) == tmp_path / "here-grid-8.png"
