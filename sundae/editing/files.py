"""Editing of image files: which files, under which names, and what is written of each."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from sundae.codec.interface import Codec
from sundae.common.errors import UserError
from sundae.common.files import make_folder, writing_to
from sundae.common.images import BadImage, list_images, load_image, save_grid, save_image, to_tensor
from sundae.common.naming import path_component
from sundae.editing.request import EditInput
from sundae.sampling.output import GRID_LIMIT, grid_path, sample_path

# Images in a row of a grid: the original, what is known of it, and some samples.
_COLUMNS = 8

# Names of the files that `write_samples` writes; a folder of that name would be in their way.
_WRITTEN = re.compile(r"([0-9]{5}|-grid)\.png$", re.IGNORECASE)


def name_images(path: Path, limit: int) -> dict[str, Path]:
    """The images to edit, a file or the first of a folder, under the names of their results.

    A name is the path within the folder without the suffix, unless two share it, and each component
    of it is safe (see `path_component`). No two are the same, also where letter case does not
    count, and none is a file among another image's results.

    Raises:
        UserError: the path does not exist, or is a folder without images.
    """
    if path.is_file():
        return {_result_name(Path(path.stem)): path}
    paths = list_images(path)[:limit]
    relative = [image.relative_to(path) for image in paths]
    short = [_result_name(name.with_suffix("")) for name in relative]
    full = [_result_name(name) for name in relative]
    return dict(zip(_distinct(short, full), paths, strict=True))


def _result_name(path: Path) -> str:
    """An image's path within its folder as the name of the folder of its samples."""
    safe = map(path_component, path.parts)
    return "/".join(f"{part}_" if _WRITTEN.search(part) else part for part in safe)


def _distinct(short: list[str], full: list[str]) -> list[str]:
    """The short names, the full ones where several share a short one, with numbers if need be."""
    sharing = Counter(map(_same_file, short))
    names: list[str] = []
    used: set[str] = set()
    for name, longer in zip(short, full, strict=True):
        alone = sharing[_same_file(name)] == 1
        numbered = (f"{longer}-{number}" for number in itertools.count(2))
        candidates = itertools.chain([name] * alone, [longer], numbered)
        names.append(next(name for name in candidates if _same_file(name) not in used))
        used.add(_same_file(names[-1]))
    return names


def _same_file(name: str) -> str:
    """Equal for two names that some file system takes for one."""
    return unicodedata.normalize("NFC", name).casefold()


def read_edits(
    images: Mapping[str, Path], prepare: Callable[[Image.Image, int], EditInput]
) -> tuple[dict[str, EditInput], list[BadImage]]:
    """Reads all images before any work, so that what is wrong with one ends the run early.

    Args:
        images: see `name_images`.
        prepare: image, number among those that can be read -> what to edit.

    Returns:
        edits: by name.
        unreadable: the reasons why the others cannot be read.

    Raises:
        UserError: none can be read, or one cannot be edited as requested.
    """
    edits: dict[str, EditInput] = {}
    unreadable: list[BadImage] = []
    for name, path in images.items():
        try:
            edits[name] = prepare(load_image(path), len(edits))
        except BadImage as error:
            unreadable.append(error)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
    if not edits:
        raise UserError(f"{unreadable[0]}; give an image that can be read")
    return edits, unreadable


def prepare_out_dir(out_dir: Path, names: list[str], count: int, *, overwrite: bool) -> None:
    """Creates the folder of all results.

    Raises:
        UserError: a sample or a grid exists and `overwrite` is false, or it cannot be written.
    """
    targets = []
    for folder in (out_dir / name for name in names):
        targets += [grid_path(folder, 0), *(sample_path(folder, i) for i in range(count))]
    with writing_to(out_dir):
        existing = next((path for path in targets if path.exists()), None)
    if existing is not None and not overwrite:
        raise UserError(f"{existing} exists; choose another --out-dir, or pass --overwrite")
    make_folder(out_dir)


def write_samples(folder: Path, samples: Tensor, edit: EditInput, codec: Codec) -> None:
    """Writes one PNG a sample, FOLDER/00000.png and so on, and a grid beside the folder.

    The grid shows the original, what is known of it, and the first samples.

    Args:
        samples: (N, 3, H, W) float in [0, 1].
    """
    make_folder(folder)
    for number, sample in enumerate(samples):
        save_image(sample, sample_path(folder, number))
    panels = [to_tensor(edit.original), known_part(edit, codec), *samples[: GRID_LIMIT - 2]]
    save_grid(torch.stack(panels), grid_path(folder, 0), columns=min(len(panels), _COLUMNS))


def known_part(edit: EditInput, codec: Codec) -> Tensor:
    """(3, H, W): the image with its mask in grey, or the codec's reconstruction for a variation."""
    if edit.mask is None:
        return codec.decode(codec.encode(to_tensor(edit.image)[None]))[0].cpu()
    return to_tensor(edit.original).masked_fill(edit.mask, 0.5)
