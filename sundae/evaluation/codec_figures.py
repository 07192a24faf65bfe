"""How well a codec keeps images, figure by figure."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sundae.codec.interface import Codec
from sundae.codec.vqgan.quantise import perplexity
from sundae.common import memory
from sundae.evaluation.image_sets import ImageSet, images_in_memory, to_bytes
from sundae.evaluation.reconstruction import image_psnr, image_ssim

Distance = Callable[[Tensor, Tensor], Tensor]

_LPIPS_BATCH = 8


def through(codec: Codec, images: ImageSet, *, quiet: bool = True) -> tuple[ImageSet, Tensor]:
    """Images after encoding and decoding, rounded to 8 bits, and the uses of each code.

    Returns:
        The reconstructions in the order of the images; (codebook_size,) int64.

    Raises:
        UserError: The images cannot be cut into patches of the codec.
    """
    parts, counts = [], torch.zeros(codec.codebook_size, dtype=torch.int64)
    at_once = max(1, memory.PIXELS // (images.size[0] * images.size[1]))
    for batch in images.batches(quiet, size=min(64, at_once)):
        tokens = codec.encode(batch.float() / 255)
        counts += torch.bincount(tokens.flatten().cpu(), minlength=len(counts))
        parts.append(to_bytes(codec.decode(tokens)).cpu())
    details = {"labels": images.labels, "names": images.names, "about": images.about}
    title = f"{images.title} through the codec"
    return images_in_memory(torch.cat(parts), title, **details), counts


def codec_figures(
    originals: ImageSet, decoded: ImageSet, counts: Tensor, lpips: Distance | None
) -> dict[str, float]:
    """Figures of reconstructions, each beside its original.

    Args:
        decoded, counts: As `through` returns them of the originals.
        lpips: Distances (n,) of images (n, 3, H, W) in [0, 1]; that figure is left out without.

    Returns:
        psnr in decibels, ssim, and lpips, means over images; codes_used, a share; perplexity.
    """
    scores: dict[str, list[float]] = {"psnr": [], "ssim": [], "lpips": []}
    pairs = zip(originals.batches(size=_LPIPS_BATCH), decoded.batches(size=_LPIPS_BATCH))
    for pair in pairs:
        before, after = (part.float() / 255 for part in pair)
        scores["psnr"] += map(image_psnr, before, after)
        scores["ssim"] += map(image_ssim, before, after)
        if lpips is not None:
            scores["lpips"] += lpips(before, after).tolist()
    figures = {name: sum(values) / len(values) for name, values in scores.items() if values}
    used = float((counts > 0).double().mean())
    return figures | {"codes_used": used, "perplexity": float(perplexity(counts.double()))}
