"""Samples as files: one PNG each, and a grid beside them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm import tqdm

from sundae.codec.interface import Codec
from sundae.common.errors import UserError
from sundae.common.files import make_folder, named_path, writing_to
from sundae.common.images import save_grid, save_image
from sundae.sampling.loop import Schedule

if TYPE_CHECKING:
    pass
from sundae.sampling.prior import Prior

# Pictures of a grid; more cannot be told apart.
GRID_LIMIT = 100


def write_samples(
    prior: Prior,
    codec: Codec,
    out_dir: Path,
    *,
    seeds: Tensor,
    classes: Tensor | None,
    schedule: Schedule,
    batch_size: int,
    offset: int = 0,
    progress: bool = True,
) -> Path:
    """Sample, decode, and write one PNG a sample: OUT_DIR/00000.png and so on.

    The grid goes beside the folder, not into it, because tools that compute an FID read every
    picture of a folder.

    Args:
        seeds: (N,) int64, one a sample.
        classes: (N,) int64 for a conditional network, else None.
        offset: number of the first file.
        progress: show a bar, if this is a terminal.

    Returns:
        the path of the grid, which shows the first samples, at most 100.
    """
    count, shown = len(seeds), []
    batch_size = prior.rows_at_once(batch_size)
    with tqdm(total=count, unit="sample", disable=None if progress else True) as bar:
        for start in range(0, count, batch_size):
            # Compiled for batches of one size: the last one is filled up with what is done already.
            begin = max(0, min(start, count - batch_size)) if prior.compiled else start
            rows = slice(begin, start + batch_size)
            running = prior.refine(
                seeds[rows], None if classes is None else classes[rows], schedule
            )
            for state in running:
                bar.set_postfix(step=f"{state.step}/{schedule.steps}", running=state.running)
            images = codec.decode(prior.grids(state.tokens[start - begin :])).cpu()
            for place, image in enumerate(images, offset + start):
                save_image(image, sample_path(out_dir, place))
            shown.append(images[: max(0, GRID_LIMIT - start)])
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
