"""Vector avatars of twelve DiceBear styles, as many as one likes, one style a class.

A seed, counted from 0, decides what an avatar looks like; a larger set of the same size begins with
the smaller one. The drawings are those of the package dicebear-styles, all of them CC0 1.0; resvg
renders them at any size.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from functools import cache, partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from sundae.common.extras import package_folder
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

if TYPE_CHECKING:
    from dicebear import Style

STYLES = tuple(
    "critters clay sprouts planets voxel-art voxel-bot moods cutouts landscape marbles pixel-art "
    "stack".split()
)
PACKAGES = ("dicebear-core 10.7.0", "dicebear-styles 10.6.0", "resvg-py 0.5.0")
LARGEST_COUNT = 1_000_000  # images of a class

_NAMES = 1  # how files are named
_CREDITS = f"""\
Avatars by DiceBear (https://www.dicebear.com), licence: CC0 1.0
(https://creativecommons.org/publicdomain/zero/1.0/), as each of these styles says:
{", ".join(STYLES[:8])},
{", ".join(STYLES[8:])}.
Packages: {", ".join(PACKAGES)}.
"""


def write_avatars(
    out: Path,
    *,
    size: int = 64,
    count: int = 1000,
    styles: Sequence[str] = STYLES,
    overwrite: bool = False,
    skip_existing: bool = False,
    nb_workers: int | None = None,
    quiet: bool = False,
) -> dict[str, int] | None:
    """Writes OUT/STYLE/HASH@SEED.png and what `sundae.datasets.image_folder` describes.

    Args:
        size: side in pixels.
        count: images of each style, of the seeds 0 to count - 1.
        styles: some of STYLES.

    Returns:
        Images of each style, or None when skip_existing found all there.

    Raises:
        UserError: as `write_images`; a package is missing, or a value is impossible.
    """
    check_number("--size", size, LARGEST)
    check_number("--count", count, LARGEST_COUNT)
    for style in styles:
        check_choice("--styles", style, STYLES)
    styles = list(dict.fromkeys(styles))
    settings = {"packages": ", ".join(PACKAGES), "size": size, "count": count, "styles": styles}
    check_installed(*PACKAGES)
    images = ImageSet(
        name="avatars",
        settings={**settings, "names": _NAMES},
        credits=_CREDITS,
        items=[(style, seed) for style in styles for seed in range(count)],
        plan=partial(plan_avatar, size=size),
    )
    return write_images(
        images,
        out,
        overwrite=overwrite,
        skip_existing=skip_existing,
        nb_workers=nb_workers,
        quiet=quiet,
    )


def plan_avatar(item: tuple[str, int], *, size: int) -> Drawing:
    """The avatar of an item, (style, seed).

    Its combination is that of its parts. Colours and the placement of parts, which is continuous,
    do not count, so that the same drawing in other colours stays on the same side of a split.
    """
    from dicebear import Avatar

    style, seed = item
    avatar = Avatar(load_style(style), {"seed": str(seed)})
    options = avatar.to_json()["options"]
    parts = {name: options.get(f"{name}Variant", NONE) for name in parts_of(style)}
    colours = {name: _first(options.get(name)) for name in _colours_of(style)}
    return Drawing(
        f"{style}/{combination_name(parts, seed)}",
        {**parts, **colours},
        partial(_render, avatar.to_string(), size),
    )


@cache
def load_style(style: str) -> Style:
    """A style, parsed and checked once: that takes a hundred times as long as an avatar."""
    from dicebear import Style

    path = package_folder("dicebear-styles", REMEDY) / f"{style}.json"
    return Style(json.loads(path.read_text(encoding="utf-8")))


@cache
def parts_of(style: str) -> dict[str, int]:
    """Parts that differ between the avatars of a style -> number of looks, absence being one.

    The stars behind a planet are left out: twelve dots of five kinds, of which no two skies agree,
    and with which each planet would be a combination of its own.
    """
    looks = {
        name: sum(variant.weight() > 0 for variant in component.variants().values())
        + (component.probability() < 100)
        for name, component in load_style(style).components().items()
        if not name.startswith("star")
    }
    return {name: number for name, number in looks.items() if number > 1}


def num_combinations(style: str) -> int:
    """How many combinations of parts a style has."""
    return prod(parts_of(style).values())


@cache
def _colours_of(style: str) -> list[str]:
    """Names of the colours that differ between the avatars of a style."""
    colours = load_style(style).colors().items()
    return [f"{name}Color" for name, colour in colours if len(colour.values()) > 1]


def _first(colours: list[str] | None) -> str:
    return colours[0] if colours else NONE


def _render(svg: str, size: int) -> Image.Image:
    """Renders a square SVG on white as RGB."""
    from resvg_py import svg_to_bytes

    png = svg_to_bytes(
        svg_string=svg, width=size, height=size, background="white", skip_system_fonts=True
    )
    return Image.open(io.BytesIO(png)).convert("RGB")
