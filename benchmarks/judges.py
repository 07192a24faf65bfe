"""What samples are held against by benchmarks/networks.py: digits, or pictures behind latents."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from strategies import open_digits
from torch import Tensor

from sundae.codec.interface import Codec, open_codec
from sundae.common.errors import UserError
from sundae.common.naming import printable
from sundae.config.run_file import RunConfig
from sundae.data.dataset import TokenDataset
from sundae.evaluation.frechet import frechet_distance
from sundae.sampling.prior import Prior, sample_seeds

BATCH = 100  # samples at a time

Data = tuple[TokenDataset, TokenDataset]  # training, held out


class Judge(Protocol):
    """Known pictures as features (pictures, channels), and how near samples come to them."""

    @property
    def training(self) -> np.ndarray: ...

    @property
    def held_out(self) -> np.ndarray: ...

    def judged(self, tokens: np.ndarray, wanted: Any) -> dict[str, float]:
        """Measures by name of samples (count, length) asked for by classes (count,), if any."""
        ...


@dataclass(frozen=True)
class Pictures:
    """The judge of a codec's tokens: features of the pictures they decode to."""

    codec: Codec
    features: Any  # benchmarks/pretrained.py's
    grid: tuple[int, int]
    training: np.ndarray
    held_out: np.ndarray

    def judged(self, tokens: np.ndarray, wanted: Any) -> dict[str, float]:
        """The distance of samples to the held-out pictures, whatever their classes."""
        grids = torch.from_numpy(tokens).unflatten(1, self.grid)
        made = [self.features.pooled(self.codec.decode(part)) for part in grids.split(BATCH)]
        return {"frechet": frechet_distance(torch.cat(made), self.held_out)}


def open_judge(cfg: RunConfig, data: Data, root: Path, count: int) -> Judge | None:
    """The judge of a run's samples; None, after saying why, where there is none.

    Args:
        root: folder of the pictures that a codec's tokens were made from.
        count: samples that will be judged.
    """
    try:
        if cfg.vqgan is not None:
            return open_images(cfg, data, root, count)
        if cfg.net.conditional and cfg.data.train_root is not None:
            return open_digits(cfg)
        raise UserError("their classifier needs classes, data.train_root and data.eval_root")
    except UserError as error:
        print(printable(f"samples are not judged: {error}"), file=sys.stderr)
        return None


def open_images(cfg: RunConfig, data: Data, root: Path, count: int) -> Pictures:
    """Features of all held-out pictures and of `count` training ones.

    Raises:
        UserError: the codec, the pictures or the network that sees them is missing.
    """
    from pretrained import Features, images_of
    from sundae.codec_training.dataset import ImageDataset
    from sundae.codec_training.perceptual import load_perceptual

    codec = open_codec(cfg)
    features = Features(load_perceptual("efficientnet-lite0"))  # type: ignore[arg-type]

    def seen(side: TokenDataset, at_most: int | None) -> np.ndarray:
        shown = np.unique(side.latents.images[side.rows])
        chosen = np.random.default_rng(0).permutation(shown)[:at_most]
        paths = [root / side.latents.sources[picture] for picture in chosen]
        for path in paths:
            if not path.exists():
                raise UserError(f"{path} is missing; say with --pictures where the pictures are")
        pictures = ImageDataset(paths, cfg.grid_shape[0] * codec.factor)
        found: np.ndarray = features.pooled(images_of(pictures, list(range(len(paths))))).numpy()
        return found

    return Pictures(codec, features, cfg.grid_shape, seen(data[0], count), seen(data[1], None))


def some(data: TokenDataset, count: int) -> dict[str, Tensor]:
    """A batch of rows in a fixed random order, which begins again where there are too few."""
    order = np.random.default_rng(0).permutation(len(data))
    return data.__getitems__(np.resize(order, count))  # type: ignore[arg-type]


def real_distance(judge: Judge, count: int) -> float:
    """What perfect samples would get: the distance of `count` training pictures."""
    order = np.random.default_rng(0).permutation(len(judge.training))[:count]
    return frechet_distance(judge.training[order], judge.held_out)


def draw(prior: Prior, steps: int, seed: int, count: int, classes: Tensor | None) -> np.ndarray:
    """(count, length): samples of the run file's schedule, all of the steps done."""
    schedule = replace(prior.cfg.sampling, steps=steps, early_stop=False)
    seeds, drawn = sample_seeds(seed, count), []
    for rows in torch.arange(count).split(prior.rows_at_once(BATCH)):
        picked = None if classes is None else classes[rows]
        *_, last = prior.refine(seeds[rows], picked, schedule)
        drawn.append(last.tokens.cpu())
    return torch.cat(drawn).numpy()


def judge_samples(
    prior: Prior, held_out: TokenDataset, judge: Judge, seed: int, count: int, steps: set[int]
) -> dict[str, float]:
    """Measures by name and number of steps; samples have the classes of some held-out pictures."""
    classes = some(held_out, count)["classes"] if prior.cfg.net.conditional else None
    wanted, found = None if classes is None else classes.numpy(), {}
    for number in sorted(steps):
        tokens = draw(prior, number, seed, count, classes)
        for name, value in judge.judged(tokens, wanted).items():
            found[f"{'classified' if name == 'accuracy' else name}@{number}"] = value
    return found
