"""Scores of samples beside held-out data: digits as they are, other images as features."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sundae.codec.interface import PixelCodec, open_codec
from sundae.codec_training.dataset import ImageDataset
from sundae.common.errors import UserError
from sundae.config.run_file import RunConfig
from sundae.config.sections import SamplingConfig
from sundae.data.dataset import Latents, TokenDataset, open_latents
from sundae.evaluation.frechet import frechet_distance
from sundae.evaluation.image_sets import to_bytes
from sundae.evaluation.label_reader import LabelledImages, LabelReader, fitted_reader
from sundae.evaluation.label_table import class_labels
from sundae.evaluation.real_images import data_of_run
from sundae.features.loading import load_features
from sundae.sampling.image_codec import ImageCodec
from sundae.sampling.sampler import BaseSampler, sample_seeds

BATCH = 100

Data = tuple[TokenDataset, TokenDataset]  # training, held out


def draw(
    sampler: BaseSampler, sampling: SamplingConfig, seed: int, classes: Tensor | None, count: int
) -> Tensor:
    """(count, height, width) int64 on the CPU: the first samples of a seed."""
    seeds = sample_seeds(seed, count)
    states = sampler.refine_tokens(seeds, classes, sampling, batch_size=BATCH)
    return torch.cat([state.tokens.cpu() for state in states if state.is_final])


class Scorer(Protocol):
    """Known data as feature vectors (images, channels), and scores of samples beside it."""

    training: np.ndarray
    held_out: np.ndarray

    def score(self, tokens: Tensor, targets: Tensor | None) -> dict[str, float]:
        """Scores by name of samples (count, height, width) with classes (count,), if any."""
        ...


def real_distance(scorer: Scorer, count: int) -> float:
    """The score of perfect samples: the distance of `count` training images."""
    order = np.random.default_rng(0).permutation(len(scorer.training))[:count]
    return frechet_distance(scorer.training[order], scorer.held_out)


@dataclass(frozen=True)
class Digits:
    """Scores of handwritten digits, whose tokens are grey levels."""

    reader: LabelReader
    codec: PixelCodec
    classes: tuple[str, ...]
    training: np.ndarray
    held_out: np.ndarray

    @classmethod
    def open(cls, cfg: RunConfig) -> Digits:
        """The data of a run.

        Raises:
            UserError: it is no run on digits with classes, or they do not exist.
        """
        if cfg.vqgan is not None or not cfg.net.conditional or cfg.data.train_root is None:
            raise UserError("expected a run on handwritten digits with classes, data.train_root "
                            "and data.eval_root, such as `make demo` makes")  # fmt: skip
        assert cfg.data.eval_root is not None
        roots = (cfg.data.train_root, cfg.data.eval_root)
        training, held_out = (open_latents(root) for root in roots)
        assert training.classes is not None
        real = data_of_run(cfg)
        assert real.training is not None
        reader = fitted_reader(*map(LabelledImages.of, (real.training, real.reference)))
        codec = PixelCodec(training.codebook_size)
        return cls(reader, codec, training.classes, _pixels(training), _pixels(held_out))

    def score(self, tokens: Tensor, targets: Tensor | None) -> dict[str, float]:
        """Share that the classifier takes for its class; distance to the held-out digits."""
        assert targets is not None
        labels = class_labels(self.classes[target] for target in targets)
        samples = LabelledImages(to_bytes(self.codec.decode(tokens)), labels)
        return {
            "accuracy": self.reader.share_right(samples),
            "frechet": frechet_distance(tokens.flatten(1).numpy(), self.held_out),
        }


def _pixels(latents: Latents) -> np.ndarray:
    return np.asarray(latents.tokens).reshape(len(latents), -1)


class Decoded:
    """Scores of a codec's tokens: features of the images that they decode to."""

    def __init__(self, cfg: RunConfig, data: Data, root: Path, count: int) -> None:
        """Features of all held-out images and of `count` training ones, below `root`.

        Raises:
            UserError: the codec, the images or the network that sees them is missing.
        """
        self.codec = ImageCodec(open_codec(cfg))
        self.features = load_features("efficientnet-lite0", torch.device("cpu"))
        size = cfg.grid_shape[0] * self.codec.factor

        def features_of(side: TokenDataset, at_most: int | None) -> np.ndarray:
            images = np.random.default_rng(0).permutation(np.unique(side.latents.images[side.rows]))
            paths = [root / side.latents.sources[image] for image in images[:at_most]]
            for path in paths:
                if not path.exists():
                    raise UserError(f"{path} is missing; say with --images where the images are")
            return self.features(images_of(ImageDataset(paths, size))).pooled

        self.training, self.held_out = features_of(data[0], count), features_of(data[1], None)

    def score(self, tokens: Tensor, targets: Tensor | None) -> dict[str, float]:
        """The distance to the held-out images, whatever their classes."""
        made = self.features(self.codec.decode(tokens).float())
        return {"frechet": frechet_distance(made.pooled, self.held_out)}


def images_of(data: ImageDataset, indices: Any = None) -> Tensor:
    """(N, 3, H, W) float32 in [0, 1], all images unless indices are given."""
    chosen = list(range(len(data))) if indices is None else indices
    return data.__getitems__(chosen)["images"].contiguous()
