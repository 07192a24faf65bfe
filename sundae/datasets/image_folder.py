"""A folder of drawn images, one sub-folder a class: resumable, with attributes and credits.

Beside the images lie

- `attributes.json`: {"attributes": {"CLASS/HASH@SEED": {"eyes": "round", ...}, ...}}, a value of
  every attribute for every image, by its path without suffix; all images of a class have the same
  attributes, and "none" stands for a part that an image lacks;
- `CREDITS.txt`: whose images they are, and under which licence;
- `NAME.json`: the settings that made them, and how many images each class has. It is written last.

An image is named HASH@SEED.png, with a hash of the combination of parts that it shows. What stands
before the @ decides on which side of a split an image is (`sundae.data.splits`): images of one
combination are never divided between training and held-out images, whatever their number.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from threading import Thread
from typing import Any, Generic, TypeVar

from PIL import Image
from tqdm import tqdm

from sundae.common.errors import UserError, suggestion
from sundae.common.files import atomic_path, write_text
from sundae.common.folders import restore_folder, resumable_folder
from sundae.common.locking import target_lock

ATTRIBUTES = "attributes.json"
CREDITS = "CREDITS.txt"
LARGEST = 1024  # pixels a side
NONE = "none"

_CHUNK = 16  # images that a process draws before it reports

Attributes = dict[str, str]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Drawing:
    """An image that can be drawn: its path without suffix, its attributes, and how to draw it."""

    name: str
    attributes: Attributes
    draw: Callable[[], Image.Image]


@dataclass(frozen=True)
class ImageSet(Generic[Item]):
    """What a folder is to hold.

    Attributes:
        name: of the set; the settings are in NAME.json.
        settings: all that decides the images; a folder of other settings is another set.
        credits: text for `CREDITS.txt`.
        items: what the images are made from, one each.
        plan: the drawing of an item; with several processes both have to be picklable.
    """

    name: str
    settings: Mapping[str, Any]
    credits: str
    items: Sequence[Item]
    plan: Callable[[Item], Drawing]


def write_images(
    images: ImageSet[Item],
    out: Path,
    *,
    overwrite: bool,
    skip_existing: bool,
    nb_workers: int | None,
    quiet: bool,
) -> dict[str, int] | None:
    """Draws all images of a set into `out`, which is there when it is complete only.

    What a killed call has drawn lies in a hidden folder beside `out`; the next call of the same
    settings continues there.

    Args:
        skip_existing: do nothing when `out` holds the same set already.
        nb_workers: processes that draw; 0 draws in this one, None takes one a core.

    Returns:
        Images of each class, or None when skip_existing found all there.

    Raises:
        UserError: `out` is taken or being written by another process, or cannot be written to.
    """
    if not overwrite and is_taken(out, images.name, images.settings, skip_existing):
        return None
    with target_lock(out):
        if not overwrite and is_taken(out, images.name, images.settings, skip_existing):
            return None  # by another process, meanwhile
        with resumable_folder(out, json.dumps(images.settings, sort_keys=True)) as folder:
            drawn = _draw_all(images, folder, nb_workers, quiet)
            classes = (PurePosixPath(name).parent.name for name in drawn)
            counts = dict(sorted(Counter(classes).items()))
            write_text(folder / ATTRIBUTES, _to_json({"attributes": drawn}))
            write_text(folder / CREDITS, images.credits)
            write_manifest(folder, images.name, images.settings, counts)
    return counts


def write_manifest(
    folder: Path, name: str, settings: Mapping[str, Any], counts: Mapping[str, int]
) -> None:
    """Writes NAME.json: the settings of a set and the number of images of each class."""
    write_text(folder / f"{name}.json", _to_json({**settings, "counts": counts}))


def is_taken(out: Path, name: str, settings: Mapping[str, Any], skip_existing: bool) -> bool:
    """True to skip; UserError when `out` holds something else; False when it is free."""
    restore_folder(out)
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        values = json.loads((out / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        values = {}
    found = {k: v for k, v in values.items() if k != "counts"} if isinstance(values, dict) else {}
    if skip_existing and found == settings:
        return True
    what = f"other {name}" if found and found != settings else f"the {name} already"
    holds = f"holds {what if found else 'files'}" if out.is_dir() else "is a file"
    raise UserError(f"{out} {holds}; choose another OUT or pass --overwrite")


def check_number(flag: str, value: int, largest: int) -> None:
    """UserError unless the value of a flag is from 1 to `largest`."""
    if not 1 <= value <= largest:
        raise UserError(f"{flag} is {value}, expected 1 to {largest:,}")


def check_choice(flag: str, value: str, choices: Iterable[str]) -> None:
    """UserError unless the value of a flag is one of some names."""
    if value not in choices:
        raise UserError(f"{flag} is '{value}'{suggestion(value, choices)}")


def combination_name(parts: Mapping[str, str], seed: int) -> str:
    """HASH@SEED, with the same 16 hexadecimal digits for equal parts."""
    text = json.dumps(parts, sort_keys=True).encode()
    return f"{hashlib.blake2b(text, digest_size=8).hexdigest()}@{seed}"


def _draw_all(
    images: ImageSet[Item], folder: Path, nb_workers: int | None, quiet: bool
) -> dict[str, Attributes]:
    """Attributes of every image by its name, in the order of the items; all images are there."""
    items = images.items
    chunks = [items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK)]
    draw = partial(_draw_chunk, images.plan, folder)
    drawn: dict[str, Attributes] = {}
    with tqdm(total=len(items), unit="img", disable=True if quiet else None) as bar:
        for chunk in _run(draw, chunks, nb_workers):
            drawn.update(chunk)
            bar.update(len(chunk))
    return drawn


def _run(
    draw: Callable[[Sequence[Item]], dict[str, Attributes]],
    chunks: Sequence[Sequence[Item]],
    nb_workers: int | None,
) -> Iterator[dict[str, Attributes]]:
    """What `draw` returns for every chunk, in order."""
    nb_workers = min(len(chunks), (os.cpu_count() or 1) if nb_workers is None else nb_workers)
    if nb_workers < 2:
        yield from map(draw, chunks)
        return
    try:
        with ProcessPoolExecutor(
            nb_workers, initializer=_prepare_worker, initargs=(os.getpid(),)
        ) as pool:
            yield from pool.map(draw, chunks)
    except BrokenProcessPool as error:
        raise UserError(
            "a process that draws was killed, perhaps for memory; call again to continue, with "
            "fewer --nb-workers"
        ) from error


def _prepare_worker(main: int) -> None:
    """Leaves Ctrl-C to the main process, and ends when that has ended, also when it was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with, args=(main,), daemon=True).start()


def _end_with(main: int) -> None:
    while os.getppid() == main:
        time.sleep(1)
    os._exit(1)


def _draw_chunk(
    plan: Callable[[Item], Drawing], folder: Path, items: Sequence[Item]
) -> dict[str, Attributes]:
    """Attributes of some images by name; draws those that are not there yet."""
    drawings = [plan(item) for item in items]
    for drawing in drawings:
        path = folder / f"{drawing.name}.png"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            with atomic_path(path) as unfinished:
                drawing.draw().save(unfinished)
    return {drawing.name: drawing.attributes for drawing in drawings}


def _to_json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=1, sort_keys=True) + "\n"
