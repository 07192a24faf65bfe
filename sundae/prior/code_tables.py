"""Which codes are near each other, for corruption by near codes and for clusters in the loss."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sundae.config.sections import ObjectiveConfig

_NEAREST = 16  # codes a near one is drawn from
_KMEANS_STEPS = 30
_CODES_AT_ONCE = 1024


class NearCodes(NamedTuple):
    """The nearest codes of each code, and how likely each is drawn.

    Attributes:
        codes: (vocab, count) int64, the nearest first, never the code itself.
        cumulative: (vocab, count) float32, sums of the probabilities up to each.
    """

    codes: Tensor
    cumulative: Tensor

    def draw(self, tokens: Tensor, uniforms: Tensor) -> Tensor:
        """tokens (...) int64, uniforms (...) float in [0, 1) -> a near code of each, (...) int64"""
        place = (uniforms[..., None] >= self.cumulative[tokens]).sum(-1, keepdim=True)
        place = place.clamp(max=self.codes.shape[-1] - 1)  # the last sum may round to below 1
        return self.codes[tokens].gather(-1, place)[..., 0]


class CodeTables(NamedTuple):
    """What the options `neighbours` and `clusters` of [objective] know of the codes.

    Attributes:
        near: None where no near codes are drawn.
        clusters: (vocab,) int64, the cluster of each code; None without clusters.
    """

    near: NearCodes | None
    clusters: Tensor | None

    @classmethod
    def of(
        cls, options: ObjectiveConfig, codebook: Tensor, device: torch.device | str
    ) -> CodeTables:
        """Compute what the options need of a codebook, (vocab, dim) float; see `Codec.codebook`."""
        codebook = codebook.detach().float().cpu()  # the same tables whatever the device
        near, clusters = None, None
        if options.neighbours:
            near = NearCodes(*(table.to(device) for table in near_codes(codebook)))
        if options.clusters:
            clusters = cluster_codes(codebook, options.clusters).to(device)
        return cls(near, clusters)


def near_codes(codebook: Tensor) -> NearCodes:
    """The 16 nearest codes of each, drawn with chances softmax(-d / m).

    Args:
        codebook: (vocab, dim) float32; d is the Euclidean distance, and m the mean of the distances
            of all codes to their nearest one.
    """
    count = min(_NEAREST, len(codebook) - 1)
    distances, codes = [], []
    for start in range(0, len(codebook), _CODES_AT_ONCE):
        some = codebook[start : start + _CODES_AT_ONCE]
        away = torch.cdist(some, codebook, compute_mode="donot_use_mm_for_euclid_dist")
        own = torch.arange(len(some))
        away[own, own + start] = torch.inf
        nearest = away.topk(count, largest=False)
        distances.append(nearest.values)
        codes.append(nearest.indices)
    away = torch.cat(distances)
    scale = away[:, 0].mean().clamp(min=1e-12)
    return NearCodes(torch.cat(codes), (-away / scale).softmax(-1).cumsum(-1))


def cluster_codes(codebook: Tensor, count: int) -> Tensor:
    """The cluster of each code by k-means, Lloyd's algorithm from k-means++; always the same.

    Args:
        codebook: (vocab, dim) float32.
        count: number of clusters, below vocab; one may be empty where codes are equal.

    Returns:
        (vocab,) int64 in [0, count).
    """
    generator = torch.Generator().manual_seed(0)
    codebook = codebook.double()
    first = torch.randint(len(codebook), (1,), generator=generator)
    centres = codebook[first]
    away = torch.full((len(codebook),), torch.inf, dtype=codebook.dtype)
    for _ in range(count - 1):
        away = away.minimum((codebook - centres[-1]).square().sum(1))
        chances = away if away.sum() > 0 else torch.ones_like(away)
        centres = torch.cat([centres, codebook[chances.multinomial(1, generator=generator)]])
    for _ in range(_KMEANS_STEPS):
        clusters = torch.cdist(codebook, centres).argmin(1)
        sums = torch.zeros_like(centres).index_add_(0, clusters, codebook)
        sizes = clusters.bincount(minlength=count)[:, None]
        centres = torch.where(sizes > 0, sums / sizes.clamp(min=1), centres)
    return torch.cdist(codebook, centres).argmin(1)
