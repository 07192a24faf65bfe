"""Nearest code of every latent vector, in fp32 and in bounded memory."""

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sundae.common import memory
from sundae.common.finite import NonFiniteError

DISTANCES = ("l2", "cosine", "dot", "gumbel")


class Quantiser(nn.Module):
    """The codebook and the rule by which it is searched.

    l2: nearest code (VQ-VAE, arXiv 1711.00937, eq. 1). cosine: nearest after normalising both
    sides, and the codebook is normalised for decoding too (LlamaGen, arXiv 2406.06525). dot:
    largest inner product (IBQ, arXiv 2412.02692). gumbel: largest logit of a projection, without
    the noise of training (DALL-E's dVAE as in taming's GumbelVQ).
    """

    def __init__(self, codebook_size: int, embed_dim: int, distance: str = "l2") -> None:
        if distance not in DISTANCES:
            raise ValueError(f"distance must be one of {', '.join(DISTANCES)}, got {distance!r}")
        super().__init__()
        self.distance = distance
        self.embedding = nn.Embedding(codebook_size, embed_dim)
        if distance == "gumbel":
            self.proj = nn.Conv2d(embed_dim, codebook_size, 1)

    def codebook(self) -> Tensor:
        """(codebook_size, embed_dim) float32: the vectors that tokens stand for."""
        weight = self.embedding.weight.float()
        return F.normalize(weight, dim=1) if self.distance == "cosine" else weight

    @torch.no_grad()
    def forward(self, latents: Tensor, max_scores: int = memory.CODEBOOK_SCORES) -> Tensor:
        """(B, embed_dim, h, w) float -> tokens (B, h, w) int64.

        `max_scores` bounds the (positions x codes) scores in memory and changes no token.

        Raises:
            NonFiniteError: a latent is NaN or infinite, which makes every token wrong.
        """
        batch, _, height, width = latents.shape
        with torch.autocast(latents.device.type, enabled=False), _full_matmul_precision():
            rows = latents.float().permute(0, 2, 3, 1).flatten(0, 2)
            if not torch.isfinite(rows).all():
                raise NonFiniteError("the encoder produced NaN or infinite latents")
            bias, matrix = self._linear_scores()
            chunk = max(1, max_scores // len(matrix))
            tokens = [torch.addmm(bias, part, matrix.T).argmax(1) for part in rows.split(chunk)]
        return torch.cat(tokens).view(batch, height, width)

    def embed(self, tokens: Tensor) -> Tensor:
        """tokens: (B, h, w) integer -> codebook vectors (B, embed_dim, h, w) float32."""
        return F.embedding(tokens, self.codebook()).permute(0, 3, 1, 2)

    def _linear_scores(self) -> tuple[Tensor, Tensor]:
        """bias (K,) and matrix (K, D) such that the token of z is argmax(bias + matrix @ z).

        For l2, |z - e|^2 = |z|^2 - 2(z.e - |e|^2 / 2): |z|^2 is common to all codes and left out.
        """
        if self.distance == "gumbel":
            assert self.proj.bias is not None
            return self.proj.bias.float(), self.proj.weight.float().flatten(1)
        matrix = self.codebook()
        if self.distance == "l2":
            return -0.5 * matrix.square().sum(1), matrix
        return matrix.new_zeros(len(matrix)), matrix


def perplexity(counts: Tensor) -> Tensor:
    """How many codes the occurrences of each, (codebook_size,) float, amount to: a scalar.

    exp of the entropy of the frequencies (nats): 1 when one code is all, the codebook size when all
    are equally frequent.
    """
    return torch.special.entr(counts / counts.sum()).sum().exp()


@contextlib.contextmanager
def _full_matmul_precision() -> Iterator[None]:
    """No TF32 inside: its 10-bit mantissa moves one token in a hundred to another code."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
