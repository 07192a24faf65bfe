"""A model that stays loaded, and what can be asked of it: samples, answers, variations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sundae.codecs import Codec
from sundae.interactive.settings import Settings
from sundae.prior import Prior, even_classes, sample_seeds, schedule_of

# Samples that are refined together.
BATCH_SIZE = 64

# Pixels that are decoded together: one picture of a megapixel takes gigabytes on its way.
_PIXELS_AT_ONCE = 2**20


@dataclass(frozen=True)
class Progress:
    """A batch of samples after a step.

    Attributes:
        first: number of the batch's first sample.
        step: how many steps have been done.
        running: how many samples of the batch are not done yet.
        images: decodes them: (batch, 3, H, W) float32 in [0, 1], on the CPU.
    """

    first: int
    step: int
    running: int
    images: Callable[[], Tensor]


class Session:
    """Network and codec, ready for any number of samplings, one after the other."""

    def __init__(
        self,
        prior: Prior,
        codec: Codec,
        class_names: tuple[str, ...] = (),
        *,
        batch_size: int = BATCH_SIZE,
    ) -> None:
        """Keep a model.

        Args:
            prior: the network.
            codec: that it was trained with.
            class_names: of a network that knows classes, else empty.
            batch_size: samples that are refined together at most.
        """
        self.prior, self.codec = prior, SparingCodec(codec)
        self.class_names, self.batch_size = class_names, batch_size

    def settings(self) -> Settings:
        """What the run file says."""
        return Settings(self.prior.cfg, self.class_names)

    def sample(self, settings: Settings) -> Iterator[Progress]:
        """Samples, batch after batch, step by step; the same as sample.py's with this seed.

        Args:
            settings: resolved ones, which have a seed.
        """
        seeds, classes = self._rows(settings)
        for start in range(0, len(seeds), self.batch_size):
            rows = slice(start, start + self.batch_size)
            states = self.prior.refine(
                seeds[rows],
                None if classes is None else classes[rows],
                schedule_of(settings.cfg.sampling),
            )
            for state in states:
                images = partial(self._decode, state.tokens)
                yield Progress(start, state.step, state.running, images)

    def _rows(self, settings: Settings) -> tuple[Tensor, Tensor | None]:
        """(N,) seeds, and (N,) classes for a network that knows some."""
        seed, count = settings.extras.seed, settings.cfg.sampling.nb_samples
        if seed is None:
            raise ValueError("settings without a seed: resolve them first")
        seeds = sample_seeds(seed, count)
        if not self.class_names:
            return seeds, None
        wanted = torch.tensor(settings.classes or range(len(self.class_names)))
        return seeds, wanted[even_classes(len(wanted), count)]

    def _decode(self, tokens: Tensor) -> Tensor:
        return self.codec.decode(self.prior.grids(tokens)).cpu()


class SparingCodec:
    """A codec that decodes no more at once than a small machine's memory holds."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.codebook_size, self.factor = codec.codebook_size, codec.factor
        self.identity = codec.identity

    def encode(self, images: Tensor) -> Tensor:
        """As the codec itself."""
        return self.codec.encode(images)

    def decode(self, tokens: Tensor) -> Tensor:
        """As the codec itself, a few pictures after the other."""
        pixels = tokens.shape[-2] * tokens.shape[-1] * self.factor**2
        parts = tokens.split(max(1, _PIXELS_AT_ONCE // pixels))
        return torch.cat([self.codec.decode(part) for part in parts])

    def to(self, device: torch.device | str) -> SparingCodec:
        """Move to a device; returns the codec itself."""
        self.codec.to(device)
        return self
