"""Several images in one file that browsers play, and images at a size to look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from sundae.common.errors import UserError
from sundae.common.files import atomic_path

# Options for Pillow's writers. A GIF has at most 256 colours, a WebP all of them.
_FORMATS: dict[str, dict[str, Any]] = {
    ".webp": {"format": "WEBP", "quality": 90, "method": 2},
    ".gif": {"format": "GIF", "disposal": 1},
}


def save_animation(
    frames: Sequence[Image.Image], path: Path, *, frame_ms: int = 100, last_ms: int = 2000
) -> None:
    """Writes RGB images of one size as an animation that plays again and again, atomically.

    The suffix selects the format, .webp or .gif. The last frame, the result, lasts `last_ms`.

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
    """The image, scaled down where its longer side has more than `side` pixels."""
    scale = side / max(image.size)
    if scale >= 1:
        return image
    width, height = (max(1, round(length * scale)) for length in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def enlarged(image: Image.Image, side: int) -> Image.Image:
    """The image with hard pixels, a whole factor larger where it is smaller than `side`.

    The shorter side then has about that many pixels and no fewer than two thirds of it, unless the
    longer side would have more than four times as many.
    """
    factor = min(round(side / min(image.size)), 4 * side // max(image.size))
    return image.resize((image.width * factor, image.height * factor), 0) if factor > 1 else image
