"""Figures of a codec: PSNR, SSIM, codes used and perplexity of images encoded and decoded."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

import torch
from torch import Tensor

from sundae.codec.interface import Codec
from sundae.codec.vqgan.quantise import perplexity
from sundae.common import memory
from sundae.common.errors import UserError
from sundae.common.fitting import Fitted, fit_image
from sundae.common.images import BadImage, load_image, stack_on_white

# SSIM compares windows of 11x11 pixels (Wang et al. 2004); smaller images have none.
_SSIM_WINDOW = 11

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Report:
    """How well images survive a codec.

    Attributes:
        psnr: decibels, mean over images.
        ssim: in [-1, 1], mean over images, NaN below 11 pixels.
        counts: (codebook_size,) occurrences of each token.
        pairs: the first (original, reconstruction) pairs, each (3, H, W).
        unreadable: images that were skipped.
    """

    num_images: int
    psnr: float
    ssim: float
    counts: Tensor
    pairs: list[Pair]
    unreadable: list[BadImage]

    @property
    def codes_used(self) -> int:
        """Number of distinct tokens."""
        return int((self.counts > 0).sum())

    @property
    def perplexity(self) -> float:
        """How many equally frequent codes would be as varied as those in `counts`."""
        return float(perplexity(self.counts.double()))

    def __str__(self) -> str:
        noun, size = "image" if self.num_images == 1 else "images", len(self.counts)
        return (
            f"{self.num_images} {noun}: PSNR {self.psnr:.2f} dB, SSIM {self.ssim:.4f}, "
            f"{self.codes_used} of {size} codes used ({100 * self.codes_used / size:.1f}%), "
            f"perplexity {self.perplexity:.1f}"
        )


def reconstruct(
    codec: Codec,
    paths: Iterable[Path],
    *,
    size: int | None = None,
    fit: str = "resize",
    batch_size: int = 8,
    max_pairs: int = 8,
) -> Report:
    """Encodes and decodes images, `batch_size` of equal shape at a time, fewer of large ones.

    Args:
        codec: on any device.
        paths: image files, read one batch after the other.
        size: the shorter side is scaled to this many pixels first; None leaves sizes alone.
        fit: the treatment of sides that are not multiples of the factor, see `fit_image`.
        max_pairs: pairs in the report; memory does not grow with the folder.

    Raises:
        UserError: not one image is readable, or none is large enough.
    """
    unreadable: list[BadImage] = []
    counts = torch.zeros(codec.codebook_size, dtype=torch.int64)
    scores: list[tuple[float, float]] = []
    pairs: list[Pair] = []
    fitted = _fit_all(paths, codec.factor, size, fit, unreadable)
    for batch in _same_shape(fitted, batch_size):
        tokens = codec.encode(torch.stack([image.pixels for image in batch]))
        counts += torch.bincount(tokens.flatten().cpu(), minlength=len(counts))
        for image, decoded in zip(batch, codec.decode(tokens).cpu(), strict=True):
            pair = image.visible(image.pixels), image.visible(decoded)
            scores.append((image_psnr(*pair), image_ssim(*pair)))
            pairs += [pair][: max_pairs - len(pairs)]
    if not scores:
        raise UserError(f"no image is readable; the first: {unreadable[0]}")
    psnr, ssim = (sum(values) / len(scores) for values in zip(*scores))
    return Report(len(scores), psnr, ssim, counts, pairs, unreadable)


def _fit_all(
    paths: Iterable[Path], factor: int, size: int | None, fit: str, unreadable: list[BadImage]
) -> Iterator[Fitted]:
    for path in paths:
        try:
            yield fit_image(load_image(path), factor, size, fit)
        except BadImage as error:
            unreadable.append(error)


def _same_shape(images: Iterable[Fitted], batch_size: int) -> Iterator[list[Fitted]]:
    """Consecutive images of one shape, at most `batch_size` and `memory.PIXELS` at a time."""
    for (_, height, width), group in groupby(images, key=lambda image: image.pixels.shape):
        size = min(batch_size, max(1, memory.PIXELS // (height * width)))
        while batch := list(islice(group, size)):
            yield batch


def image_psnr(original: Tensor, decoded: Tensor) -> float:
    """Decibels, of images (3, H, W) in [0, 1]."""
    from torchmetrics.functional.image import peak_signal_noise_ratio  # takes seconds to import

    return float(peak_signal_noise_ratio(decoded, original, data_range=1.0))


def image_ssim(original: Tensor, decoded: Tensor) -> float:
    """In [-1, 1], of images (3, H, W) in [0, 1]; NaN where a side has less than 11 pixels."""
    if min(original.shape[1:]) < _SSIM_WINDOW:
        return float("nan")
    from torchmetrics.functional.image import structural_similarity_index_measure

    score = structural_similarity_index_measure(decoded[None], original[None], data_range=1.0)
    return float(score)  # type: ignore[arg-type]


def side_by_side(pairs: Sequence[Pair]) -> Tensor:
    """(3, H, W) pairs of any sizes -> (2 * len(pairs), 3, H_max, W_max) on white, for two columns.

    Even rows are originals (left column), odd rows reconstructions (right column).
    """
    return stack_on_white([image for pair in pairs for image in pair])
