"""Images through a codec and back, and how much of them survives."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from sundae.codec.interface import Codec
from sundae.common.errors import UserError
from sundae.common.images import BadImage, load_image, resize_and_crop, to_tensor

FITS = ("resize", "pad", "crop")

# SSIM compares windows of 11x11 pixels (Wang et al. 2004); smaller images have none.
_SSIM_WINDOW = 11


@dataclass(frozen=True)
class Fitted:
    """An image ready to be cut into patches.

    pixels: (3, H, W) in [0, 1], H and W multiples of the factor. height, width: how much of that,
    from the top left, is image; the rest is padding.
    """

    pixels: Tensor
    height: int
    width: int

    def visible(self, pixels: Tensor) -> Tensor:
        """`pixels` (3, H, W) without the padding."""
        return pixels[:, : self.height, : self.width]


@dataclass
class Report:
    """How well images survive a codec.

    psnr: decibels, mean over images. ssim: in [-1, 1], mean over images, NaN below 11 pixels.
    codes_used: distinct tokens. perplexity: exp of the entropy of their frequencies (nats).
    pairs: the first (original, reconstruction) pairs, each (3, H, W). unreadable: what was skipped.
    """

    num_images: int
    psnr: float
    ssim: float
    codes_used: int
    codebook_size: int
    perplexity: float
    pairs: list[tuple[Tensor, Tensor]]
    unreadable: list[BadImage]

    def __str__(self) -> str:
        noun = "image" if self.num_images == 1 else "images"
        used = 100 * self.codes_used / self.codebook_size
        return (
            f"{self.num_images} {noun}: PSNR {self.psnr:.2f} dB, SSIM {self.ssim:.4f}, "
            f"{self.codes_used} of {self.codebook_size} codes used ({used:.1f}%), "
            f"perplexity {self.perplexity:.1f}"
        )


def reconstruct(
    codec: Codec,
    paths: Sequence[Path],
    *,
    size: int | None = None,
    fit: str = "resize",
    batch_size: int = 8,
    max_pairs: int = 8,
    progress: Callable[[int], object] = lambda done: None,
) -> Report:
    """Encode and decode images, `batch_size` of equal shape at a time.

    size: scale the shorter side to this many pixels first; None keeps the images' own sizes.
    fit: what to do with sides that are not multiples of the factor, see `fit_image`.
    max_pairs: how many pairs to keep for showing; memory does not grow with the folder.
    progress: called after each batch with the number of images so far.

    Raises UserError when not one image is readable, or none is large enough.
    """
    unreadable: list[BadImage] = []
    tally = _Tally(torch.zeros(codec.codebook_size, dtype=torch.int64), max_pairs)
    fitted = _fit_all(paths, codec.factor, size, fit, unreadable)
    for batch in _same_shape(fitted, batch_size):
        images = torch.stack([image.pixels for image in batch])
        tokens = codec.encode(images)
        tally.add(batch, tokens, codec.decode(tokens).cpu())
        progress(len(tally.psnr))
    if not tally.psnr:
        raise UserError(f"no image is readable; the first: {unreadable[0]}")
    return tally.report(unreadable)


def fit_image(image: Image.Image, factor: int, size: int | None, fit: str) -> Fitted:
    """Bring an image to a size that can be cut into patches of `factor` pixels.

    resize: keep the aspect and round each side to the nearest multiple. pad: repeat the border to
    the next multiple, which is not counted or shown later. crop: the centre; a square when `size`
    is given, else the largest that fits. An image that already fits is not resampled.
    """
    height, width = _scaled(image, size)
    if fit == "pad":
        pixels = to_tensor(resize_to(image, height, width))
        padding = (0, -width % factor, 0, -height % factor)
        return Fitted(F.pad(pixels[None], padding, mode="replicate")[0], height, width)
    if fit == "crop":
        height, width = (size, size) if size else (height, width)
        height, width = height // factor * factor, width // factor * factor
        if 0 in (height, width):
            raise UserError(f"an image of {image.height}x{image.width} is smaller than a patch")
        image = resize_and_crop(image, (height, width)) if size else _centre(image, height, width)
        return Fitted(to_tensor(image), height, width)
    height, width = (max(factor, round(side / factor) * factor) for side in (height, width))
    return Fitted(to_tensor(resize_to(image, height, width)), height, width)


def resize_to(image: Image.Image, height: int, width: int) -> Image.Image:
    """Stretch to exactly height x width; an image of that size is returned as it is."""
    if (image.height, image.width) == (height, width):
        return image
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _scaled(image: Image.Image, size: int | None) -> tuple[int, int]:
    """(height, width) with the shorter side at `size`."""
    if size is None:
        return image.height, image.width
    scale = size / min(image.height, image.width)
    return max(1, round(image.height * scale)), max(1, round(image.width * scale))


def _centre(image: Image.Image, height: int, width: int) -> Image.Image:
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _fit_all(
    paths: Iterable[Path], factor: int, size: int | None, fit: str, unreadable: list[BadImage]
) -> Iterator[Fitted]:
    for path in paths:
        try:
            yield fit_image(load_image(path), factor, size, fit)
        except BadImage as error:
            unreadable.append(error)


def _same_shape(images: Iterable[Fitted], batch_size: int) -> Iterator[list[Fitted]]:
    """Consecutive images of one shape, at most `batch_size` at a time."""
    batch: list[Fitted] = []
    for image in images:
        full = len(batch) == batch_size
        if batch and (full or image.pixels.shape != batch[0].pixels.shape):
            yield batch
            batch = []
        batch.append(image)
    if batch:
        yield batch


@dataclass
class _Tally:
    """Sums over the images seen so far."""

    counts: Tensor
    max_pairs: int
    psnr: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)
    pairs: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def add(self, batch: list[Fitted], tokens: Tensor, decoded: Tensor) -> None:
        self.counts += torch.bincount(tokens.flatten().cpu(), minlength=len(self.counts))
        for image, pixels in zip(batch, decoded, strict=True):
            pair = image.visible(image.pixels), image.visible(pixels)
            self.psnr.append(float(peak_signal_noise_ratio(pair[1], pair[0], data_range=1.0)))
            self.ssim.append(_ssim(*pair))
            if len(self.pairs) < self.max_pairs:
                self.pairs.append(pair)

    def report(self, unreadable: list[BadImage]) -> Report:
        total = len(self.psnr)
        return Report(
            num_images=total,
            psnr=sum(self.psnr) / total,
            ssim=sum(self.ssim) / total,
            codes_used=int((self.counts > 0).sum()),
            codebook_size=len(self.counts),
            perplexity=perplexity(self.counts),
            pairs=self.pairs,
            unreadable=unreadable,
        )


def _ssim(original: Tensor, reconstruction: Tensor) -> float:
    if min(original.shape[1:]) < _SSIM_WINDOW:
        return float("nan")
    score = structural_similarity_index_measure(
        reconstruction[None], original[None], data_range=1.0
    )
    return float(score)  # type: ignore[arg-type]


def perplexity(counts: Tensor) -> float:
    """counts: (codebook_size,) occurrences of each token -> how many codes they amount to.

    exp of the entropy of the frequencies: 1 when one code does it all, the codebook size when all
    are equally frequent.
    """
    frequencies = counts[counts > 0].double() / counts.sum()
    return float(torch.exp(-(frequencies * frequencies.log()).sum()))


def side_by_side(pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """(3, H, W) pairs of any sizes -> (2 * len(pairs), 3, H_max, W_max) on white, for two columns.

    Even rows are originals (left column), odd rows reconstructions (right column).
    """
    flat = [image for pair in pairs for image in pair]
    height = max(image.shape[1] for image in flat)
    width = max(image.shape[2] for image in flat)
    return torch.stack(
        [F.pad(p, (0, width - p.shape[2], 0, height - p.shape[1]), value=1.0) for p in flat]
    )
