"""3D emoji as a folder of images, one sub-folder for each Unicode group.

An emoji that differs from another in skin tone or sex only is named as a variant of it, so that
both are on the same side of a split into training and held-out images.

The images are those of the npm package @lobehub/fluent-emoji-3d (MIT), 256x256 with transparency;
the groups come from unicode-emoji-json (MIT).
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sundae.common.errors import UserError
from sundae.common.folders import atomic_folder
from sundae.common.images import BadImage, load_image, resize_and_crop
from sundae.common.locking import target_lock
from sundae.datasets.image_folder import (
    CREDITS,
    check_choice,
    check_number,
    is_taken,
    write_manifest,
)
from sundae.datasets.packages import npm_files

IMAGES = "@lobehub/fluent-emoji-3d@1.1.0"
GROUPS = "unicode-emoji-json@0.9.0"
BACKGROUNDS = {"grey": "#ececec", "white": "#ffffff"}

_NAME = "emoji"
_NAMES = 2  # how files are named; 1 was without BASE@
_CREDITS = f"""\
Fluent Emoji, 3D. Copyright Microsoft Corporation, licence: MIT
(https://github.com/microsoft/fluentui-emoji). Packages: {IMAGES} (MIT), {GROUPS} (MIT).
"""

_LARGEST = 4096  # pixels a side
_VARIATION_SELECTOR = 0xFE0F  # "show as an image": some spellings have it, some do not
_SKIN_TONES = range(0x1F3FB, 0x1F400)
_JOINER = 0x200D
_SEX_SIGNS = (0x2640, 0x2642)
# Man and woman, boy and girl, old man and old woman -> person, child, older person.
_NEUTRAL = {0x1F468: 0x1F9D1, 0x1F469: 0x1F9D1, 0x1F466: 0x1F9D2, 0x1F467: 0x1F9D2}
_NEUTRAL |= {0x1F474: 0x1F9D3, 0x1F475: 0x1F9D3}


def write_emoji(
    out: Path,
    *,
    size: int = 256,
    background: str = "grey",
    skin_tones: bool = True,
    package_dir: Path | None = None,
    overwrite: bool = False,
    skip_existing: bool = False,
    quiet: bool = False,
) -> dict[str, int] | None:
    """Writes OUT/GROUP/CODEPOINTS.png, or BASE@CODEPOINTS.png for a variant, whole or not at all.

    Args:
        size: side in pixels.
        background: key of BACKGROUNDS; what shows where an emoji is transparent.
        skin_tones: whether to include the variants of an emoji in five skin tones.
        package_dir: folder that holds the two npm packages as .tgz; None fetches them with npm.
        skip_existing: do nothing when `out` holds the same images already.

    Returns:
        Images of each group, or None when skip_existing found all there.

    Raises:
        UserError: `out` is taken or being written by another process, or a package could not be
            downloaded.
    """
    check_number("--size", size, _LARGEST)
    check_choice("--background", background, BACKGROUNDS)
    settings = {"pictures": IMAGES, "groups": GROUPS, "size": size}
    settings |= {"background": background, "skin_tones": skin_tones, "names": _NAMES}
    if not overwrite and is_taken(out, _NAME, settings, skip_existing):
        return None
    with target_lock(out), tempfile.TemporaryDirectory(prefix="emoji-") as temporary:
        if not overwrite and is_taken(out, _NAME, settings, skip_existing):
            return None  # by another process, meanwhile
        images, groups = (
            npm_files(package, package_dir, Path(temporary)) for package in (IMAGES, GROUPS)
        )
        return _write(out, images, groups, settings, quiet)


def _write(
    out: Path, images: Path, groups: Path, settings: dict[str, Any], quiet: bool
) -> dict[str, int]:
    """Images of each group, written by `settings`, from the two unpacked packages."""
    group_of = read_groups(groups / "data-by-emoji.json")
    paths = sorted((images / "assets").glob("*.webp"))
    if not settings["skin_tones"]:
        paths = [p for p in paths if not any(c in _SKIN_TONES for c in codepoints(p.stem))]
    counts: Counter[str] = Counter()
    with atomic_folder(out) as folder:
        for path in tqdm(paths, unit="img", disable=True if quiet else None):
            group = group_of.get(bare(codepoints(path.stem)), "flags")  # tagged regional flags
            (folder / group).mkdir(exist_ok=True)
            try:
                image = load_image(path, BACKGROUNDS[settings["background"]])
            except BadImage as error:
                raise UserError(f"{IMAGES}: {path.name} cannot be read; fetch it again") from error
            image = resize_and_crop(image, settings["size"])
            image.save(folder / group / f"{file_name(path.stem)}.png")
            counts[group] += 1
        (folder / CREDITS).write_text(_CREDITS, encoding="utf-8")
        write_manifest(folder, _NAME, settings, counts)
    return dict(sorted(counts.items()))


def codepoints(name: str) -> tuple[int, ...]:
    """'1f44b-1f3fb' -> (0x1F44B, 0x1F3FB)."""
    return tuple(int(part, 16) for part in re.split("[-_]", name))


def bare(points: tuple[int, ...]) -> tuple[int, ...]:
    """An emoji without skin tones and variation selectors, which do not change its group."""
    return tuple(p for p in points if p != _VARIATION_SELECTOR and p not in _SKIN_TONES)


def file_name(name: str) -> str:
    """'1f468-1f3fb-200d-1f680', a man's rocket -> '1f9d1-200d-1f680@1f468-1f3fb-200d-1f680'.

    What stands before the @ is the same emoji of a person of no certain sex and skin tone; an emoji
    that is that already has its own name only.
    """
    points = codepoints(name)
    neutral = [_NEUTRAL.get(p, p) for p in bare(points) if p not in _SEX_SIGNS]
    while neutral and neutral[-1] == _JOINER:  # what joined a sign of sex
        neutral.pop()
    if not neutral or tuple(neutral) == points:
        return name
    return "-".join(f"{p:04x}" for p in neutral) + "@" + name


def read_groups(path: Path) -> dict[tuple[int, ...], str]:
    """Bare codepoints -> name of the group as a folder, such as 'smileys-emotion'."""
    try:
        entries: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return {
            bare(tuple(map(ord, emoji))): "-".join(re.findall("[a-z]+", entry["group"].lower()))
            for emoji, entry in entries.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{GROUPS} is not laid out as expected: {error}") from error
