"""Repaint picture files: what is asked for, which files, and what is written."""

from __future__ import annotations

import argparse
import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from sundae.codec.interface import Codec
from sundae.common.errors import UserError
from sundae.common.files import make_folder, writing_to
from sundae.common.images import (
    BadImage,
    list_images,
    load_image,
    resize_and_crop,
    save_grid,
    save_image,
    to_tensor,
)
from sundae.common.naming import path_component
from sundae.config.sections import SamplingConfig
from sundae.editing.inpaint import fit_picture, image_to_image, inpaint, outpaint_canvas
from sundae.editing.masks import MASK_SIZES, make_mask, read_mask
from sundae.sampling.canvas import LARGEST_CANVAS, Shape
from sundae.sampling.loop import Refinement
from sundae.sampling.output import GRID_LIMIT, grid_path, sample_path
from sundae.sampling.prior import Prior

# Pictures in a row of a grid: the original, what is known of it, and some answers.
_COLUMNS = 8

# What `write_answers` calls the files that it writes; a folder of that name would be in their way.
_ANSWER_FILE = re.compile(r"([0-9]{5}|-grid)\.png$", re.IGNORECASE)


@dataclass(frozen=True)
class Wish:
    """What to do to each picture: one of a mask, an outpainting and an image-to-image.

    Attributes:
        strategy: kind of mask to make; classic where nothing else is asked for.
        sizes: of that kind of mask.
        mask: a user's mask picture.
        outpaint: pixels to add (left, right, top, bottom).
        strength: of image-to-image, in [0, 1].
    """

    strategy: str | None = None
    sizes: Mapping[str, float] = field(default_factory=dict)
    mask: Path | None = None
    outpaint: tuple[int, int, int, int] | None = None
    strength: float | None = None

    def __post_init__(self) -> None:
        """Raises UserError for more than one thing, and for numbers that make no sense."""
        asked = {
            "--inpaint-strategy": self.strategy,
            "--mask": self.mask,
            "--outpaint": self.outpaint,
            "--image-to-image": self.strength,
        }
        given = [name for name, value in asked.items() if value is not None]
        if len(given) > 1:
            raise UserError(f"{given[0]} and {given[1]} cannot be combined; choose one of them")
        if not given:
            object.__setattr__(self, "strategy", "classic")
        if self.strategy is not None:
            make_mask(self.strategy, (8, 8), torch.Generator(), self.sizes)
        if self.mask is not None:
            read_mask(self.mask, (1, 1))
        if self.outpaint is not None:
            left, right, top, bottom = self.outpaint
            outpaint_canvas(torch.zeros(3, 1, 1), left=left, right=right, top=top, bottom=bottom)
        if self.strength is not None and not 0 <= self.strength <= 1:
            raise UserError(f"--image-to-image {self.strength:g}: expected a fraction from 0 to 1")


@dataclass(frozen=True)
class Task:
    """A picture, ready to be repainted.

    Attributes:
        original: (3, H, W) float32 in [0, 1], to be looked at.
        image: (3, H, W) float32 in [0, 1]; to be trusted where it is known.
        hidden: (H, W) bool; None for image-to-image.
    """

    original: Tensor
    image: Tensor
    hidden: Tensor | None


def read_wish(args: argparse.Namespace) -> Wish:
    """What the flags of inpaint.py ask for.

    Raises:
        UserError: they make no sense, or contradict each other.
    """
    given = {
        (kind, name): getattr(args, f"{kind}_{name}")
        for kind, sizes in MASK_SIZES.items()
        for name in sizes
    }
    given = {key: value for key, value in given.items() if value is not None}
    for kind, name in given:
        if kind != args.inpaint_strategy:
            raise UserError(f"--{kind}-{name} needs --inpaint-strategy {kind}")
    if args.image_to_image is not None and (args.no_composite or args.feather is not None):
        flag = "--no-composite" if args.no_composite else "--feather"
        raise UserError(f"{flag} is about the edge of a hole, --image-to-image has none; drop one")
    return Wish(
        strategy=args.inpaint_strategy,
        sizes={name: value for (_, name), value in given.items()},
        mask=args.mask,
        outpaint=None if args.outpaint is None else _parse_outpaint(args.outpaint),
        strength=args.image_to_image,
    )


def _parse_outpaint(text: str) -> tuple[int, int, int, int]:
    try:
        left, right, top, bottom = (int(part) for part in text.split(","))
    except ValueError:
        raise UserError(
            f"--outpaint {text}: expected LEFT,RIGHT,TOP,BOTTOM in pixels, such as 0,128,0,0"
        ) from None
    return left, right, top, bottom


def open_task(
    path: Path,
    generator: torch.Generator,
    *,
    wish: Wish,
    grid: Shape,
    factor: int,
    whole: bool = False,
) -> Task:
    """Read a picture and what is to be repainted of it.

    Args:
        path: any picture. It is scaled until it just covers the grid, and its centre is cut out; a
            mask goes the same way.
        generator: on the CPU; for masks that are drawn.
        wish: what to do.
        grid: (height, width) in tokens.
        factor: pixels a token along each side.
        whole: cut out nothing but what does not fill a patch, so that the grid is that of the
            picture's proportions.

    Raises:
        BadImage: it cannot be read.
        UserError: nothing is hidden within the part that was cut out, or the whole is too large.
    """
    picture = load_image(path)
    if whole:
        grid = _whole_grid(path, (picture.height, picture.width), grid)
    size = (grid[0] * factor, grid[1] * factor)
    original = to_tensor(resize_and_crop(picture, size))
    if wish.strength is not None:
        return Task(original, original, None)
    if wish.outpaint is not None:
        left, right, top, bottom = wish.outpaint
        image, hidden = outpaint_canvas(original, left=left, right=right, top=top, bottom=bottom)
        return Task(image.masked_fill(hidden, 1.0), image, hidden)
    if wish.mask is None:
        assert wish.strategy is not None
        return Task(original, original, make_mask(wish.strategy, size, generator, wish.sizes))
    hidden = read_mask(wish.mask, (picture.height, picture.width))
    image, hidden = fit_picture(picture, size, hidden)
    if not hidden.any():
        raise UserError(
            f"{wish.mask} hides nothing of the centre that is cut out of {path}; paint there, or "
            "keep all of it with --whole"
        )
    return Task(original, image, hidden)


def _whole_grid(path: Path, size: Shape, grid: Shape) -> Shape:
    """The grid of a picture's proportions that just covers `grid`."""
    scale = max(side / whole for side, whole in zip(grid, size))
    height, width = (max(side, round(whole * scale)) for side, whole in zip(grid, size))
    if height * width > LARGEST_CANVAS * grid[0] * grid[1]:
        raise UserError(
            f"{path} would take {height}x{width} tokens as a whole, more than {LARGEST_CANVAS} "
            f"times {grid[0]}x{grid[1]}; leave --whole out, or say how much with --canvas"
        )
    return height, width


def repaint(
    task: Task,
    wish: Wish,
    prior: Prior,
    codec: Codec,
    *,
    seeds: Tensor,
    classes: Tensor | None,
    schedule: SamplingConfig,
    batch_size: int,
    composite: bool = True,
    feather: int | None = None,
    watch: Callable[[Refinement], None] = lambda state: None,
) -> Tensor:
    """All answers to a picture.

    Args:
        seeds: (N,) int64, one an answer.
        classes: (N,) int64 for a conditional network, else None.
        batch_size: answers at a time.
        composite, feather: see `sundae.editing.inpaint.inpaint`.
        watch: called after each step.

    Returns:
        (N, 3, H, W) float32 in [0, 1], on the CPU.
    """
    images = []
    batch_size = prior.rows_at_once(batch_size, task.image[0].numel() // codec.factor**2)
    for start in range(0, len(seeds), batch_size):
        rows = slice(start, start + batch_size)
        some = None if classes is None else classes[rows]
        if task.hidden is None:
            assert wish.strength is not None
            running = image_to_image(
                prior,
                codec,
                task.image,
                strength=wish.strength,
                seeds=seeds[rows],
                classes=some,
                schedule=schedule,
            )
        else:
            running = inpaint(
                prior,
                codec,
                task.image,
                task.hidden,
                seeds=seeds[rows],
                classes=some,
                schedule=schedule,
                composite=composite,
                feather=feather,
            )
        for answers in running:
            watch(answers.refinement)
        images.append(answers.images())
    return torch.cat(images)


def second_panel(task: Task, codec: Codec) -> Tensor:
    """(3, H, W): the picture with what is hidden in grey, or what the codec makes of all of it."""
    if task.hidden is None:
        return codec.decode(codec.encode(task.image[None]))[0].cpu()
    return task.original.masked_fill(task.hidden, 0.5)


def name_pictures(path: Path, limit: int) -> dict[str, Path]:
    """The pictures to work on: a file, or the first of a folder, under the names of their answers.

    A name is the path within the folder without the suffix, unless two share it, and each component
    of it is safe (see `path_component`). No two are the same, also where letter case does not
    count, and none is a file of another picture's answers.

    Raises:
        UserError: there is nothing of that name, or a folder without pictures.
    """
    if path.is_file():
        return {_answers_name(Path(path.name), suffix=False): path}
    paths = list_images(path)[:limit]
    relative = [picture.relative_to(path) for picture in paths]
    short = [_answers_name(name, suffix=False) for name in relative]
    full = [_answers_name(name, suffix=True) for name in relative]
    return dict(zip(_distinct(short, full), paths, strict=True))


def _distinct(short: list[str], full: list[str]) -> list[str]:
    """The short names, the full ones of those who share a short one, with numbers if need be."""
    sharing = Counter(map(_same_file, short))
    names: list[str] = []
    taken: set[str] = set()
    for name, longer in zip(short, full, strict=True):
        alone = sharing[_same_file(name)] == 1
        numbered = (f"{longer}-{number}" for number in itertools.count(2))
        candidates = itertools.chain([name] * alone, [longer], numbered)
        names.append(next(name for name in candidates if _same_file(name) not in taken))
        taken.add(_same_file(names[-1]))
    return names


def _answers_name(name: Path, *, suffix: bool) -> str:
    """A picture's path within its folder as the name of the folder of its answers."""
    parts = [*name.parent.parts, name.name if suffix else name.stem]
    safe = [path_component(part) for part in parts]
    return "/".join(f"{part}_" if _ANSWER_FILE.search(part) else part for part in safe)


def _same_file(name: str) -> str:
    """Equal for two names that some file system takes for one."""
    return unicodedata.normalize("NFC", name).casefold()


def readable(
    pictures: Mapping[str, Path], read: Callable[[Path, torch.Generator], Task]
) -> tuple[dict[str, Path], list[BadImage]]:
    """Which pictures can be repainted, found out before any work.

    Args:
        pictures: see `name_pictures`.
        read: as `open_task`.

    Returns:
        those that can be read, and why the others cannot.

    Raises:
        UserError: none can be read, or one cannot be repainted as was wished.
    """
    good: dict[str, Path] = {}
    bad: list[BadImage] = []
    for name, path in pictures.items():
        try:
            read(path, torch.Generator())
            good[name] = path
        except BadImage as error:
            bad.append(error)
    if not good:
        raise UserError(f"{bad[0]}; give a picture that can be read")
    return good, bad


def prepare_answers(out_dir: Path, names: list[str], count: int, *, overwrite: bool) -> None:
    """Create the folder of all answers.

    Raises:
        UserError: an answer or a grid exists and `overwrite` is false, or it cannot be written.
    """
    targets = [
        path
        for name in names
        for path in (
            grid_path(out_dir / name, 0),
            *(sample_path(out_dir / name, number) for number in range(count)),
        )
    ]
    with writing_to(out_dir):
        existing = next((path for path in targets if path.exists()), None)
    if existing is not None and not overwrite:
        raise UserError(f"{existing} exists; choose another --out-dir, or pass --overwrite")
    make_folder(out_dir)


def write_answers(folder: Path, answers: Tensor, task: Task, codec: Codec) -> Path:
    """Write one PNG an answer, FOLDER/00000.png and so on, and a grid beside the folder.

    Args:
        answers: (N, 3, H, W) float in [0, 1].

    Returns:
        the path of the grid: the original, what is known of it, and the first answers.
    """
    make_folder(folder)
    for number, answer in enumerate(answers):
        save_image(answer, sample_path(folder, number))
    panels = torch.stack([task.original, second_panel(task, codec), *answers[: GRID_LIMIT - 2]])
    grid = grid_path(folder, 0)
    save_grid(panels, grid, columns=min(len(panels), _COLUMNS))
    return grid
