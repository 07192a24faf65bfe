"""A model that stays loaded, and what can be asked of it: samples, answers, variations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sundae.codec.interface import ChunkedCodec, Codec
from sundae.config.sections import SamplingConfig
from sundae.editing.inpaint import Answers, image_to_image, inpaint
from sundae.interactive.settings import Settings
from sundae.sampling.prior import Prior, even_classes, sample_seeds

# Samples that are refined together.
BATCH_SIZE = 64

# (steps done, samples not done yet, what decodes them)
_State = tuple[int, int, Callable[[], Tensor]]
# (seeds, classes, schedule) of a batch -> its states
_Refine = Callable[[Tensor, Tensor | None, SamplingConfig], Iterator[_State]]


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
        self.prior, self.codec = prior, ChunkedCodec(codec)
        self.class_names, self.batch_size = class_names, batch_size

    def settings(self) -> Settings:
        """What the run file says."""
        return Settings(self.prior.cfg, self.class_names)

    def sample(self, settings: Settings) -> Iterator[Progress]:
        """Samples, batch after batch, step by step; the same as sample.py's with this seed.

        Args:
            settings: resolved ones, which have a seed.
        """

        def refine(
            seeds: Tensor, classes: Tensor | None, schedule: SamplingConfig
        ) -> Iterator[_State]:
            for state in self.prior.refine(seeds, classes, schedule):
                yield state.step, state.num_running, partial(self._decode, state.tokens)

        return self._batches(settings, refine)

    def inpaint(
        self, settings: Settings, image: Tensor, hidden: Tensor, *, composite: bool = True
    ) -> Iterator[Progress]:
        """Answers to what a hole in a picture may hold; see `sundae.editing.inpaint.inpaint`.

        Args:
            settings: resolved ones.
            image: (3, H, W) float in [0, 1].
            hidden: (H, W) bool, true where to repaint.
            composite: put the known pixels back into the answers.

        Raises:
            UserError: nothing is hidden, or the picture is too small.
        """

        def refine(
            seeds: Tensor, classes: Tensor | None, schedule: SamplingConfig
        ) -> Iterator[_State]:
            answers = inpaint(
                self.prior,
                self.codec,
                image,
                hidden,
                seeds=seeds,
                classes=classes,
                schedule=schedule,
                composite=composite,
            )
            return map(_state_of, answers)

        return self._batches(settings, refine, image=image, any_unless_chosen=True)

    def vary(self, settings: Settings, image: Tensor, strength: float) -> Iterator[Progress]:
        """Variations of a picture; see `sundae.editing.inpaint.image_to_image`.

        Args:
            settings: resolved ones.
            image: (3, H, W) float in [0, 1].
            strength: fraction of its tokens that start from noise, in [0, 1].

        Raises:
            UserError: the picture is too small, or a strength outside [0, 1].
        """

        def refine(
            seeds: Tensor, classes: Tensor | None, schedule: SamplingConfig
        ) -> Iterator[_State]:
            answers = image_to_image(
                self.prior,
                self.codec,
                image,
                strength=strength,
                seeds=seeds,
                classes=classes,
                schedule=schedule,
            )
            return map(_state_of, answers)

        return self._batches(settings, refine, image=image, any_unless_chosen=True)

    def _batches(
        self,
        settings: Settings,
        refine: _Refine,
        *,
        image: Tensor | None = None,
        any_unless_chosen: bool = False,
    ) -> Iterator[Progress]:
        """image: (3, H, W), what is worked on, if it is a picture."""
        tokens = None if image is None else image[0].numel() // self.codec.factor**2
        batch = self.prior.rows_at_once(self.batch_size, tokens)
        seeds, classes = self._rows(settings, any_unless_chosen)
        schedule = settings.cfg.sampling
        for start in range(0, len(seeds), batch):
            rows = slice(start, start + batch)
            states = refine(seeds[rows], None if classes is None else classes[rows], schedule)
            for step, running, images in states:
                yield Progress(start, step, running, images)

    def _rows(self, settings: Settings, any_unless_chosen: bool) -> tuple[Tensor, Tensor | None]:
        """(N,) seeds, and (N,) classes for a network that knows some."""
        seed, count = settings.extras.seed, settings.cfg.sampling.nb_samples
        if seed is None:
            raise ValueError("settings without a seed: resolve them first")
        wanted = torch.tensor(settings.wanted(any_unless_chosen=any_unless_chosen))
        classes = wanted[even_classes(len(wanted), count)] if self.class_names else None
        return sample_seeds(seed, count), classes

    def _decode(self, tokens: Tensor) -> Tensor:
        return self.codec.decode(self.prior.grids(tokens)).cpu()


def _state_of(answers: Answers) -> _State:
    return answers.step, answers.running, answers.images
