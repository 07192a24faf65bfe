"""Initialising a codebook among the latents, and reinitialising its dead codes.

A code that is nearest to no latent gets no gradient and stays dead. Codes are therefore initialised
at latents of the encoder, and one that no image has used for a while is moved to a latent that is
far from every code.
"""

import math

import torch
from torch import Tensor, nn

from sundae.codec.vqgan.quantise import Quantiser
from sundae.common.finite import NonFiniteError
from sundae.training.processes import broadcast_tensor, sum_over_processes

_KEPT_PER_CODE = 4  # recent latents to choose from
_KMEANS_STEPS = 10


class CodebookManager(nn.Module):
    """Initialises a codebook on the first batches and reinitialises dead codes later.

    Its state is in buffers, so it is saved and resumed with the network.
    """

    recent: Tensor  # (4 * codebook_size, embed_dim), the latest encoder outputs
    age: Tensor  # (codebook_size,) int64, batches since a code was last used

    def __init__(
        self,
        codebook_size: int,
        embed_dim: int,
        *,
        init: str = "kmeans",
        restart_every: int = 0,
        restart_until: float = math.inf,
    ) -> None:
        """Args:
        init: kmeans (centres of the first latents), data (some of them) or uniform
            (taming's, in [-1/K, 1/K]).
        restart_every: batches without use after which a code is dead, and batches between two
            checks; 0: never.
        restart_until: batch from which on no code is reinitialised.
        """
        super().__init__()
        self.init, self.restart_every, self.restart_until = init, restart_every, restart_until
        self.register_buffer("recent", torch.zeros(_KEPT_PER_CODE * codebook_size, embed_dim))
        self.register_buffer("age", torch.zeros(codebook_size, dtype=torch.int64))

    @torch.no_grad()
    def reinit_dead(
        self, quantiser: Quantiser, latents: Tensor, batch: int, generator: torch.Generator
    ) -> None:
        """Initialise the codebook, or its dead codes, in place before a batch is quantised.

        Args:
            latents: (B, D, h, w) of this batch; every batch has the same shape.
            batch: number of batches before.
            generator: on the device of the latents.
        """
        per_batch = self._remember(latents, batch, generator)
        known = self.recent[: (batch + 1) * per_batch]
        if batch * per_batch < len(self.recent):
            self._initialise(quantiser, known, batch, generator)
        elif self._restarts_at(batch):
            dead = self.age >= self.restart_every
            restart(quantiser, dead, known, generator)
            self.age.masked_fill_(dead, 0)
        else:
            return
        broadcast_tensor(quantiser.embedding.weight)

    @torch.no_grad()
    def update_usage(self, tokens: Tensor) -> None:
        """Count the age of codes after a batch. tokens: any shape, int64."""
        used = sum_over_processes(occurrences(tokens, len(self.age))) > 0
        self.age.add_(1).masked_fill_(used, 0)

    def alive(self) -> Tensor:
        """Scalar: share of the codes that some image used in the last `restart_every` batches."""
        return (self.age < max(1, self.restart_every)).float().mean()

    def _restarts_at(self, batch: int) -> bool:
        due = self.restart_every and batch % self.restart_every == 0
        return bool(due) and 0 < batch < self.restart_until

    def _initialise(
        self, quantiser: Quantiser, known: Tensor, batch: int, generator: torch.Generator
    ) -> None:
        """Set all codes; repeated with each batch until enough latents are known."""
        codes = quantiser.embedding.weight
        if self.init == "uniform":
            if batch == 0:
                codes.uniform_(-1 / len(codes), 1 / len(codes), generator=generator)
            return
        choice = torch.randint(len(known), (len(codes),), generator=generator, device=known.device)
        codes.copy_(known[choice])
        if self.init == "kmeans" and len(known) == len(self.recent):
            kmeans(quantiser, known, generator)

    def _remember(self, latents: Tensor, batch: int, generator: torch.Generator) -> int:
        """Put a batch's latents over the oldest known ones; returns how many a batch gives."""
        rows = latents.detach().float().movedim(1, -1).flatten(0, 2)
        count = min(len(rows), len(self.recent))
        if len(rows) > count:
            rows = rows[torch.randperm(len(rows), generator=generator, device=rows.device)[:count]]
        places = torch.arange(batch * count, (batch + 1) * count, device=rows.device)
        self.recent.index_copy_(0, places % len(self.recent), rows)
        return count


def kmeans(quantiser: Quantiser, rows: Tensor, generator: torch.Generator) -> None:
    """Move the codes to the centres of clusters of rows (n, D), by Lloyd's algorithm.

    A code that loses all its rows goes to one that is far from every code.
    """
    codes = quantiser.embedding.weight
    for _ in range(_KMEANS_STEPS):
        tokens = nearest(quantiser, rows)
        counts = occurrences(tokens, len(codes))
        sums = torch.zeros_like(codes).index_add_(0, tokens, rows)
        empty = counts == 0
        codes.copy_(torch.where(empty[:, None], codes, sums / counts.clamp(min=1)[:, None]))
        restart(quantiser, empty, rows, generator)


def restart(quantiser: Quantiser, dead: Tensor, rows: Tensor, generator: torch.Generator) -> None:
    """Move the dead codes (K,) bool to some of the rows (n, D), preferably to distant ones.

    Rows are drawn in proportion to their squared distance from the nearest code, as in k-means++,
    because most latents of images on a plain background are that background.

    Raises:
        NonFiniteError: a distance is NaN or infinite: the training has diverged.
    """
    codes = quantiser.embedding.weight
    distance = (rows - codes[nearest(quantiser, rows)]).square().sum(1)
    weights = distance + distance.mean() * 1e-6 + 1e-20
    if not torch.isfinite(weights).all():  # which is fatal to multinomial, on CUDA to the process
        raise NonFiniteError("the encoder's latents are too large to restart codes among them")
    enough = len(rows) >= len(codes)
    choice = weights.multinomial(len(codes), replacement=not enough, generator=generator)
    codes.copy_(torch.where(dead[:, None], rows[choice], codes))


def nearest(quantiser: Quantiser, rows: Tensor) -> Tensor:
    """rows (n, D) -> their tokens (n,) int64."""
    return quantiser(rows.T[None, :, :, None]).flatten()


def occurrences(tokens: Tensor, codebook_size: int) -> Tensor:
    """tokens (any shape, int64) -> (codebook_size,) float32: how often each occurs.

    torch.bincount would make the host wait for a GPU.
    """
    flat = tokens.flatten()
    ones = torch.ones_like(flat, dtype=torch.float32)
    return ones.new_zeros(codebook_size).scatter_add_(0, flat, ones)
