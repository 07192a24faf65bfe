"""Images in and out: read any file as RGB, resize and crop, save one or a grid of them."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import ceil, sqrt
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from sundae.common.errors import UserError
from sundae.common.files import atomic_path
from sundae.common.naming import natural_key

_SUFFIXES = frozenset(
    ".png .jpg .jpeg .jpe .jfif .webp .avif .jp2 .gif .bmp .tif .tiff .ppm .pgm .pbm .pnm "
    ".tga".split()
)
_CELL_SIDE = 64  # pixels that an image in a grid has at least, to be recognisable


class BadImage(Exception):  # noqa: N818 - says what it is
    """A file that cannot be decoded as an image."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)  # both, so that it survives the way out of a worker process
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def list_images(root: Path) -> list[Path]:
    """All images below a folder in natural order, without hidden files and folders.

    Raises:
        UserError: the folder does not exist or holds no image.
    """
    if not root.is_dir():
        problem = "is a file, expected a folder of images" if root.exists() else "does not exist"
        raise UserError(f"{root} {problem}; correct the path")
    paths = [path for path in _walk(root) if path.suffix.lower() in _SUFFIXES]
    if not paths:
        raise UserError(
            f"{root} holds no images: expected .png, .jpg, .webp or alike, also in sub-folders"
        )
    return sorted(paths, key=lambda path: natural_key(path.relative_to(root)))


def _walk(root: Path) -> Iterator[Path]:
    """Files below root; follows links to folders, but none twice, since links may form a circle."""
    seen: set[str] = set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        seen.add(os.path.realpath(folder))
        subfolders[:] = [
            name
            for name in sorted(subfolders)
            if not name.startswith(".") and os.path.realpath(os.path.join(folder, name)) not in seen
        ]
        yield from (Path(folder, name) for name in files if not name.startswith("."))


def load_image(path: Path, background: str = "white") -> Image.Image:
    """Reads the first frame of any image file as 8-bit RGB, upright; see `to_rgb`.

    Raises:
        BadImage: not an image, truncated, or with values of no known range.
    """
    with _naming(path), Image.open(path) as image:
        image.load()
        return to_rgb(image, background)


def image_size(path: Path) -> tuple[int, int]:
    """(height, width) of an image file as `load_image` turns it upright, without decoding it.

    Raises:
        BadImage: not an image.
    """
    with _naming(path), Image.open(path) as image:
        lies = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5 and image.format != "TIFF"
        return (image.width, image.height) if lies else (image.height, image.width)


@contextmanager
def refusing_bad_images() -> Iterator[None]:
    """Turns a `BadImage` into the line that ends a program, where none may be left out."""
    try:
        yield
    except BadImage as error:
        raise UserError(f"cannot read {error}; repair or remove it") from error


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turns whatever a decoder raises into a `BadImage`."""
    try:
        yield
    # Decoders fail with OSError, SyntaxError, struct.error, zlib.error and more, depending on the
    # byte that is wrong; whatever it is, this one file is the reason.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadImage(path, reason.replace(str(path), "the file")) from error


def to_rgb(image: Image.Image, background: str = "white") -> Image.Image:
    """Any image as 8-bit RGB.

    EXIF orientation is applied, transparency shows the background, CMYK and palettes are converted,
    and deeper greys are scaled: 16-bit and 32-bit integers by their range, floats by the smallest
    of 1, 255 and 65,535 that holds them.

    Raises:
        ValueError: grey values of no known range.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":
        image = _to_8bit(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    return image.convert("RGB")


def _to_8bit(image: Image.Image) -> Image.Image:
    """Scales grey values of more than 8 bits (modes I, I;16 in any byte order, F)."""
    values = np.asarray(image)
    if values.dtype == np.int32:
        values = values.view(np.uint32)  # Pillow has no unsigned mode of 32 bits
    largest = float(values.max(initial=0))
    ranges = (1.0, 255.0, 65535.0) if image.mode == "F" else (65535.0, 2.0**32 - 1)
    white = next((white for white in ranges if largest <= white), None)
    if white is None:  # also when a value is not a number
        raise ValueError(f"grey values up to {largest}, expected at most {ranges[-1]:.0f}")
    return Image.fromarray(np.rint(values.clip(0, white) * (255 / white)).astype(np.uint8))


def resize_and_crop(image: Image.Image, size: int | tuple[int, int]) -> Image.Image:
    """Scales an image until it just covers `size` and cuts out its centre, with a Lanczos filter.

    `size` is (height, width) in pixels, or one number for a square.
    """
    height, width = (size, size) if isinstance(size, int) else size
    box = crop_box((image.height, image.width), (height, width))
    return image.resize((width, height), Image.Resampling.LANCZOS, box=box)


def crop_box(size: tuple[int, int], target: tuple[int, int]) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of what `resize_and_crop` takes; sizes are (height, width)."""
    (height, width), (to_height, to_width) = size, target
    scale = max(to_height / height, to_width / width)
    cut_width, cut_height = min(to_width / scale, width), min(to_height / scale, height)
    # From whole pixels on, so that an image of the right scale is cut and not resampled.
    left, top = (width - cut_width) // 2, (height - cut_height) // 2
    return left, top, left + cut_width, top + cut_height


def to_tensor(image: Image.Image) -> Tensor:
    """RGB image -> (3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float() / 255


def to_pil(image: Tensor) -> Image.Image:
    """(3, H, W) float, clamped to [0, 1] -> 8-bit RGB image."""
    pixels = (image.detach().float().clamp(0, 1) * 255).round().byte()
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())


def save_image(image: Tensor, path: Path) -> None:
    """Writes (3, H, W) float in [0, 1] as a PNG, atomically."""
    with atomic_path(path) as partial:
        to_pil(image).save(partial, format="PNG")


def make_grid(
    images: Tensor, columns: int | None = None, scale: int | None = None, gap: int = 2
) -> Tensor:
    """Puts images side by side on white, row by row.

    Args:
        images: (N, 3, H, W) float in [0, 1], N > 0.
        columns: images in a row; None makes the grid as square as possible.
        scale: whole factor to enlarge by, with hard pixels; None makes tiny images recognisable.
        gap: white pixels around each image.

    Returns:
        (3, rows * (H * scale + gap) + gap, columns * (W * scale + gap) + gap).
    """
    count, _, height, width = images.shape
    columns = columns or ceil(sqrt(count))
    scale = scale or ceil(_CELL_SIDE / min(_CELL_SIDE, height, width))
    images = images.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    images = F.pad(images, (0, gap, 0, gap, 0, 0, 0, -count % columns), value=1.0)
    grid = rearrange(images, "(r c) ch h w -> ch (r h) (c w)", c=columns)
    return F.pad(grid, (gap, 0, gap, 0), value=1.0)


def stack_on_white(images: Sequence[Tensor]) -> Tensor:
    """(3, H, W) images of any sizes -> (N, 3, H_max, W_max), at the top left of white."""
    height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
    return torch.stack(
        [F.pad(p, (0, width - p.shape[2], 0, height - p.shape[1]), value=1.0) for p in images]
    )


def save_grid(
    images: Tensor, path: Path, columns: int | None = None, scale: int | None = None
) -> None:
    """Writes (N, 3, H, W) float in [0, 1] as one PNG, arranged by make_grid, atomically."""
    save_image(make_grid(images, columns, scale), path)


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
