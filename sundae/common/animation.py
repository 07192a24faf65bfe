"""Pictures one after the other in one file that browsers play."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from sundae.common.errors import UserError
from sundae.common.files import atomic_path

# What each format needs beyond what Pillow does unasked. A GIF has 256 colours at most; a WebP has
# all of them and takes less room.
_FORMATS: dict[str, dict[str, Any]] = {
    ".webp": {"format": "WEBP", "quality": 90, "method": 2},
    ".gif": {"format": "GIF", "disposal": 1},
}


def save_animation(
    frames: Sequence[Image.Image], path: Path, *, frame_ms: int = 100, last_ms: int = 2000
) -> None:
    """Write an animation that plays again and again, atomically.

    Args:
        frames: RGB pictures of one size, at least one.
        path: its suffix says the format: .webp or .gif.
        frame_ms: how long each frame shows, in milliseconds.
        last_ms: the same for the last frame, which is the result.

    Raises:
        UserError: another suffix, or the file cannot be written.
    """
    options = _FORMATS.get(path.suffix.lower())
    if options is None:
        raise UserError(f"{path}: expected an animation named .webp or .gif")
    first, *rest = frames
    durations = [frame_ms] * len(rest) + [last_ms]
    with atomic_path(path) as partial:
        first.save(
            partial, save_all=True, append_images=rest, duration=durations, loop=0, **options
        )


def within(image: Image.Image, side: int) -> Image.Image:
    """The picture, scaled down where its longer side has more than `side` pixels."""
    scale = side / max(image.size)
    if scale >= 1:
        return image
    width, height = (max(1, round(length * scale)) for length in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def enlarged(image: Image.Image, side: int) -> Image.Image:
    """The picture, hard pixels staying hard, a whole factor larger where it is smaller than `side`.

    The shorter side then has about that many pixels, and no fewer than two thirds of that; unless
    that would make the longer side more than four times as long.
    """
    factor = min(round(side / min(image.size)), 4 * side // max(image.size))
    return image.resize((image.width * factor, image.height * factor), 0) if factor > 1 else image
