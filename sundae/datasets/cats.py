"""Painted cats, put together from the layers of Robohash's fourth set, at up to 1024x1024 pixels.

15 bodies, 9 furs, 15 pairs of eyes, 10 mouths and 16 accessories, of which two hide the mouth, make
287,550 cats that differ. A seed, counted from 0, is a place in a fixed random order of all of them:
no cat occurs twice, a larger set begins with the smaller one, and the held-out images of a split
are unseen combinations.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache, partial
from itertools import product
from pathlib import Path

from PIL import Image

from sundae.common.errors import UserError
from sundae.common.extras import package_folder
from sundae.common.images import load_image, resize_and_crop
from sundae.datasets.image_folder import (
    LARGEST,
    NONE,
    Drawing,
    ImageSet,
    check_choice,
    check_number,
    combination_name,
    write_images,
)
from sundae.datasets.packages import REMEDY, check_installed

PACKAGE = "robohash 2.0"
PARTS = ("body", "fur", "eyes", "mouth", "accessory")  # from back to front
COLOURS = {
    "sand": "#f2e3c6", "rose": "#f3c9cf", "peach": "#fbd3b4", "lemon": "#f7eeb0",
    "lime": "#d9eab8", "mint": "#bfe6d2", "sky": "#bfdff2", "blue": "#b7c8ee",
    "lilac": "#d8c9ee", "grey": "#d9dce0", "slate": "#8f9bab", "night": "#3a4257",
}  # fmt: skip
BACKGROUNDS = ("colours", "scenes")

_NAMES = 1  # how files are named
_SAME = {"fur6"}  # empty, as fur2 is
_SCARVES = {"accessory0", "accessory7"}  # hide the mouth
_CREDITS = f"""\
Cats by David Revoy (https://www.peppercarrot.com/extras/html/2016_cat-generator/), licence: CC BY
4.0 (https://creativecommons.org/licenses/by/4.0/), from the Python package {PACKAGE}; put together
from its layers and scaled.
"""
_SCENE_CREDITS = """\
Backgrounds by Zikri Kader, of the same package, licence: CC BY 3.0 or CC BY 4.0; scaled.
"""


def write_cats(
    out: Path,
    *,
    size: int = 256,
    count: int = 10_000,
    background: str = "colours",
    classes_by: str | None = None,
    overwrite: bool = False,
    skip_existing: bool = False,
    nb_workers: int | None = None,
    quiet: bool = False,
) -> dict[str, int] | None:
    """Writes OUT/HASH@SEED.png and what `sundae.datasets.image_folder` describes.

    Args:
        size: side in pixels.
        count: number of images, of the seeds 0 to count - 1.
        background: "colours", a flat one of COLOURS, or "scenes", one of the package's 20, which
            have 300 or 350 pixels a side.
        classes_by: one of PARTS, whose values then are the classes: OUT/VALUE/HASH@SEED.png.

    Returns:
        Images of each class, of '' without classes, or None when skip_existing found all there.

    Raises:
        UserError: as `write_images`; the package is missing, or a value is impossible.
    """
    check_number("--size", size, LARGEST)
    check_installed(PACKAGE)
    package = package_folder("robohash", REMEDY)
    check_number("--count", count, len(_order(package)))
    check_choice("--background", background, BACKGROUNDS)
    looks = {"size": size, "background": background, "classes_by": classes_by}
    images = ImageSet(
        name="cats",
        settings={"package": PACKAGE, "count": count, "names": _NAMES, **looks},
        credits=_CREDITS + (_SCENE_CREDITS if background == "scenes" else ""),
        items=range(count),
        plan=partial(
            plan_cat, package=package, size=size, background=background, classes_by=classes_by
        ),
    )
    return write_images(
        images,
        out,
        overwrite=overwrite,
        skip_existing=skip_existing,
        nb_workers=nb_workers,
        quiet=quiet,
    )


def plan_cat(
    seed: int, *, package: Path, size: int, background: str, classes_by: str | None
) -> Drawing:
    """The cat of a seed. Its combination is that of its parts; the background does not count."""
    layers = _order(package)[seed]
    parts = {part: _name_of(path) for part, path in zip(PARTS, layers)}
    if parts["accessory"] in _SCARVES:
        parts["mouth"] = NONE
    scenes = _scene_files(package) if background == "scenes" else [Path(name) for name in COLOURS]
    scene = scenes[random.Random(seed).randrange(len(scenes))]
    folder = f"{parts[classes_by]}/" if classes_by else ""
    return Drawing(
        folder + combination_name(parts, seed),
        {**parts, "background": _name_of(scene)},
        partial(_compose, scene, layers, size),
    )


def _compose(scene: Path, layers: Sequence[Path], size: int) -> Image.Image:
    """Layers over a scene, which is a file or the name of a colour, as RGB."""
    cat = _scene(scene, size).copy()
    for path in layers:
        image, corner = _layer(path, size)
        cat.alpha_composite(image, corner)
    return cat.convert("RGB")


@cache
def _scene(scene: Path, size: int) -> Image.Image:
    if scene.name in COLOURS:
        return Image.new("RGBA", (size, size), COLOURS[scene.name])
    return resize_and_crop(load_image(scene), size).convert("RGBA")


@cache
def _layer(path: Path, size: int) -> tuple[Image.Image, tuple[int, int]]:
    """What a layer of `size` pixels a side shows, and where its left upper corner lies."""
    with Image.open(path) as image:
        layer = image.convert("RGBA").resize((size, size), Image.Resampling.LANCZOS)
    box = layer.getbbox() or (0, 0, 1, 1)
    return layer.crop(box), box[:2]


@cache
def _order(package: Path) -> list[tuple[Path, ...]]:
    """The layers of every cat, in a random order that is always the same."""
    files = _part_files(package)
    cats = [
        layers
        for layers in product(*files.values())
        if _name_of(layers[-1]) not in _SCARVES or layers[-2] == files["mouth"][0]
    ]
    random.Random(0).shuffle(cats)
    return cats


@cache
def _part_files(package: Path) -> dict[str, list[Path]]:
    """Layers of each part, by their numbers."""
    folders = _sorted(package / "sets" / "set4", "*")
    files = {part: _sorted(folder, "*.png") for part, folder in zip(PARTS, folders)}
    if len(files) != len(PARTS) or not all(files.values()):
        raise UserError(f"{package} is not laid out as {PACKAGE}; install requirements-data.txt")
    return {part: [p for p in paths if _name_of(p) not in _SAME] for part, paths in files.items()}


@cache
def _scene_files(package: Path) -> list[Path]:
    return _sorted(package / "backgrounds", "*/*.png")


def _sorted(folder: Path, pattern: str) -> list[Path]:
    return sorted(folder.glob(pattern), key=lambda path: path.as_posix())


@cache
def _name_of(path: Path) -> str:
    """'003#body3.png' -> 'body3'."""
    return path.stem.rpartition("#")[2]
