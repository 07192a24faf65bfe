"""The figures of sets of images beside real ones, which are looked at once."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from sundae.codec.interface import Codec
from sundae.common.extras import import_extra
from sundae.evaluation.codec_figures import Distance, codec_figures, through
from sundae.evaluation.diversity import class_diversity
from sundae.evaluation.frechet import frechet_distance
from sundae.evaluation.image_sets import ImageSet
from sundae.evaluation.inception_score import inception_score
from sundae.evaluation.kernel_distance import kernel_distance
from sundae.evaluation.manifold import density_coverage, precision_recall
from sundae.evaluation.neighbours import (
    Neighbours,
    digests,
    exact_copies,
    near_copies,
    nearest_neighbours,
)
from sundae.evaluation.real_images import RealImages
from sundae.evaluation.recognition import Figures, Recognition
from sundae.evaluation.statistics_file import FeatureSet, RealFeatures
from sundae.features.interface import FeatureNetwork

Figure = Literal[
    "distance", "manifold", "inception", "diversity", "classes", "attributes", "nearest"
]
FIGURES: tuple[Figure, ...] = get_args(Figure)
_FIDELITY = {"distance", "inception"}  # what torch-fidelity computes

_OF_FEATURES = {"distance", "manifold", "inception"}

_PAIRS = 100  # of a class, for its diversity


@dataclass(frozen=True)
class Column:
    """Figures of one set of images, by name, and the nearest training image of each."""

    figures: Figures
    neighbours: Neighbours | None = None


class Instrument:
    """Compares sets of images with a reference.

    All distances have the same number of images on both sides: the first `count` of each set.

    Attributes:
        real: Features of the reference and of the training images.
        count: Images on each side of a distance.
    """

    def __init__(
        self,
        real: RealImages | RealFeatures,
        network: FeatureNetwork,
        *,
        count: int,
        pool: int = 10_000,
        figures: Collection[str] = FIGURES,
        lpips: Distance | None = None,
        whole: bool = False,
        quiet: bool = True,
    ) -> None:
        """Compute the features of the real images.

        Args:
            count: Images on each side, fewer where a set has fewer.
            pool: Training images at most among which the nearest is found.
            figures: Names from `FIGURES`.
            lpips: A distance of images in [0, 1], for the diversity, which is left out without.
            whole: Compute features of all reference images, to save them.

        Raises:
            UserError: A package is missing, or an image cannot be read.
        """
        if _FIDELITY & set(figures):
            import_extra("torch_fidelity", "requirements-evaluate.txt")
        pool = pool if "nearest" in figures else 0
        sizes = [len(side) for side in (real.reference, real.training) if side is not None]
        self.count = min(count, *sizes)
        self.network, self.figures, self.lpips, self.quiet = network, set(figures), lpips, quiet
        self.images = real if isinstance(real, RealImages) else None
        if isinstance(real, RealImages):
            seen = real if whole else replace(real, reference=real.reference[: self.count])
            real = RealFeatures.of(seen, network, pool=max(self.count, pool), quiet=quiet)
        self.real, self._pool = real, pool
        self._held_out = self._neighbours(real.reference[: self.count])
        self._known: frozenset[bytes] = frozenset()  # training images, once they are needed
        self.recognition: Recognition | None = None
        if self.images is not None and self.images.training is not None:
            self.recognition = Recognition.of(
                self.images, self.figures, device=network.device, quiet=quiet
            )

    def samples(self, images: ImageSet | FeatureSet) -> Column:
        """Figures of samples."""
        features = self._seen(images)
        neighbours, figures = self._neighbours(features), self._distances(features)
        if neighbours is not None and self._held_out is not None:
            copies = near_copies(neighbours, self._held_out)
            figures["near_copies"] = copies.share
            figures["near_copy_threshold"] = copies.threshold
            figures["nearest_similarity"] = float(np.median(neighbours.similarity))
        if isinstance(images, ImageSet):
            figures |= self._diversity(images) | self._exact_copies(images)
            figures |= {} if self.recognition is None else self.recognition.samples(images)
        return Column(figures, neighbours)

    def floor(self) -> Column:
        """What as many training images get in the place of samples, and held-out ones for copies.

        No model of the training images can be expected to come closer to held-out ones.
        """
        if self.real.training is None:
            return Column({})
        figures = self._distances(self.real.training)
        if self._held_out is not None:
            copies = near_copies(self._held_out, self._held_out)
            figures["near_copies"] = copies.held_out_share
            figures["nearest_similarity"] = float(np.median(self._held_out.similarity))
        if self.images is not None and self.images.training is not None:
            figures |= self._diversity(self.images.training[: self.count])
            figures |= self._exact_copies(self.images.reference[: self.count])
        figures |= {} if self.recognition is None else self.recognition.floor()
        return Column(figures, self._held_out)

    def codec(self, codec: Codec) -> Column:
        """The floor after the codec: the figures of samples that are the training tokens."""
        if self.images is None or self.images.training is None:
            return Column({})
        if not self.figures & {*_OF_FEATURES, "diversity"}:
            return Column({})
        decoded = through(codec, self.images.training[: self.count], quiet=self.quiet)[0]
        return Column(self._distances(self._seen(decoded)) | self._diversity(decoded))

    def recognised(self, codec: Codec) -> Figures:
        """What classifiers read off the reference images after the codec, as they do off samples.

        Not off the training images, which the classifiers were fitted on.
        """
        if self.images is None or self.recognition is None or not self.recognition.reads:
            return {}
        decoded = through(codec, self.images.reference[: self.count], quiet=self.quiet)[0]
        return self.recognition.samples(decoded)

    def reconstructions(self, codec: Codec) -> tuple[Column, Column, ImageSet]:
        """Figures of a codec on the reference, image by image.

        Returns:
            Figures of the reconstructions, those of the originals, and the reconstructions.
        """
        assert self.images is not None
        originals = self.images.reference[: self.count]
        decoded, counts = through(codec, originals, quiet=self.quiet)
        figures = codec_figures(originals, decoded, counts, self.lpips)
        if "distance" in self.figures:
            before, after = self.real.reference[: self.count], self._seen(decoded)
            distance = frechet_distance(after.features.pooled, before.features.pooled)
            figures["reconstruction_distance"] = distance
        if self.recognition is None:
            return Column(figures), Column({}), decoded
        read, of_originals = self.recognition.reconstructions(originals, decoded)
        return Column(figures | read), Column(of_originals), decoded

    def _seen(self, images: ImageSet | FeatureSet) -> FeatureSet:
        if isinstance(images, FeatureSet):
            return images
        return FeatureSet.of(images, self.network, quiet=self.quiet)

    def _distances(self, features: FeatureSet) -> Figures:
        """Figures of the first `count` images beside those of the reference."""
        seen = features[: self.count].features
        a, b = seen.pooled, self.real.reference[: self.count].features.pooled
        found: Figures = {}
        if "distance" in self.figures:
            found["frechet_distance"] = frechet_distance(a, b)
            if self.count >= 4:
                names = ("kernel_distance", "kernel_distance_std")
                found |= zip(names, kernel_distance(a, b, subset_size=None, seed=0))
        if "manifold" in self.figures and self.count > 5:
            found |= zip(("precision", "recall"), precision_recall(a, b))
            found |= zip(("density", "coverage"), density_coverage(a, b))
        if "inception" in self.figures and seen.logits is not None:
            parts = min(10, max(1, self.count // 100))
            found["inception_score"], _ = inception_score(seen.logits, splits=parts, seed=0)
        return found

    def _neighbours(self, features: FeatureSet) -> Neighbours | None:
        if "nearest" not in self.figures or self.real.training is None:
            return None
        training = self.real.training.features.layout[: self._pool]
        return nearest_neighbours(features.features.layout, training)

    def _exact_copies(self, images: ImageSet) -> Figures:
        """Share of images that are training images, where tokens are grey levels."""
        training = None if self.images is None else self.images.training
        if "nearest" not in self.figures or training is None or "codec" not in training.about:
            return {}
        if images.size != training.size:
            return {}
        if not self._known:
            self._known = frozenset(_digests_of(training))
        return {"exact_copies": exact_copies(_digests_of(images), self._known)}

    def _diversity(self, images: ImageSet) -> Figures:
        """Mean LPIPS within a class, where two images of a class are there."""
        if "diversity" not in self.figures or self.lpips is None or len(images) < 2:
            return {}
        labels = np.zeros(len(images), int) if images.labels is None else images.labels
        if np.unique(labels, return_counts=True)[1].max() < 2:
            return {}
        value = class_diversity(
            lambda rows: images[rows].pixels().float() / 255, labels, self.lpips, pairs=_PAIRS
        )
        return {"diversity": value}


def _digests_of(images: ImageSet) -> list[bytes]:
    return [digest for batch in images.batches() for digest in digests(batch.numpy())]
