"""Samples as files: one PNG each, and a grid beside them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from tqdm import tqdm

from sundae.common.errors import UserError
from sundae.common.files import make_folder, named_path, writing_to
from sundae.common.images import save_grid, save_image
from sundae.sampling.sampler import SampleBatch

# Images of a grid; more cannot be told apart.
GRID_LIMIT = 100


def write_samples(
    states: Iterable[SampleBatch],
    out_dir: Path,
    count: int,
    *,
    offset: int = 0,
    progress: bool = True,
) -> Path:
    """Sample, decode, and write one PNG a sample: OUT_DIR/00000.png and so on.

    The grid goes beside the folder, not into it, because tools that compute an FID read every
    image of a folder.

    Args:
        states: of `count` samples, as `BaseSampler.refine` returns them.
        out_dir: made by `prepare_out_dir`.
        count: number of samples.
        offset: number of the first file.
        progress: show a bar, if this is a terminal.

    Returns:
        the path of the grid, which shows the first samples, at most 100.
    """
    shown = []
    with tqdm(total=count, unit="sample", disable=None if progress else True) as bar:
        for state in states:
            bar.set_postfix(step=f"{state.step}/{state.num_steps}", running=state.num_running)
            if state.is_final:
                images = state.pixels()
                for number, image in enumerate(images, offset + state.first):
                    save_image(image, sample_path(out_dir, number))
                shown.append(images[: max(0, GRID_LIMIT - state.first)])
                bar.update(len(images))
    grid = grid_path(out_dir, offset)
    save_grid(torch.cat(shown), grid)
    return grid


def sample_path(out_dir: Path, number: int) -> Path:
    """Where sample `number` is written."""
    return out_dir / f"{number:05d}.png"


def grid_path(out_dir: Path, offset: int) -> Path:
    """Where the grid of the samples from `offset` on is written."""
    folder = named_path(out_dir)
    return folder.parent / f"{folder.name}-grid{f'-{offset}' if offset else ''}.png"


def prepare_out_dir(out_dir: Path, count: int, offset: int, *, overwrite: bool) -> None:
    """Create the folder for samples offset .. offset+count-1.

    Raises:
        UserError: a file exists and `overwrite` is false, or the folder cannot be written.
    """
    targets = [
        grid_path(out_dir, offset),
        *(sample_path(out_dir, offset + i) for i in range(count)),
    ]
    with writing_to(out_dir):
        existing = [path for path in targets if path.exists()]
    if existing and not overwrite:
        raise UserError(
            f"{existing[0]} exists; choose another --out-dir or --count-offset, or pass --overwrite"
        )
    make_folder(targets[0].parent)
    make_folder(out_dir)
