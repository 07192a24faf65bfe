"""Which rows are trained on and which are held out, decided by the file names alone."""

import hashlib
from collections.abc import Sequence

import numpy as np

from sundae.common.errors import UserError
from sundae.common.naming import family_name, image_name
from sundae.data.dataset import Latents


def split_rows(
    latents: Latents, split_sizes: Sequence[int] | Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Divides a data set into training and held-out rows.

    An image and its mirror images always stay together; so do its variants, "NAME@VARIANT.png",
    when the sizes are fractions. The result follows from the names of the images only: it is the
    same on every machine, and files added at the end move no other.

    Args:
        latents: the data.
        split_sizes: (train, eval), either two fractions of the images, of sum at most 1, or two
            counts of images (mirror images come on top). Fractions are met up to chance, since
            each image's side is drawn by a hash of its name; counts are met exactly and taken
            from the first train + eval images.

    Returns:
        (train, eval): ascending int64 row indices, both non-empty.

    Raises:
        UserError: sizes that are not positive, exceed what exists, or leave a side empty.
    """
    row_sides = split_names(latents.sources, split_sizes)[latents.images]
    train, held_out = np.flatnonzero(row_sides == TRAIN), np.flatnonzero(row_sides == EVAL)
    if not len(train) or not len(held_out):
        raise UserError(
            f"data.split_sizes {list(split_sizes)} leaves {len(train)} rows to train and "
            f"{len(held_out)} to evaluate out of {len(latents)}; use larger sizes or more images"
        )
    return train, held_out


UNUSED, TRAIN, EVAL = 0, 1, 2


def split_names(sources: Sequence[str], split_sizes: Sequence[int] | Sequence[float]) -> np.ndarray:
    """Side of each image of a folder, UNUSED, TRAIN or EVAL; see `split_rows`.

    Args:
        sources: paths below the folder, in natural order.
        split_sizes: (train, eval), as in `split_rows`.

    Raises:
        UserError: sizes that are not positive or exceed what exists.
    """
    if len(split_sizes) != 2 or not all(size > 0 for size in split_sizes):
        raise UserError(f"data.split_sizes is {list(split_sizes)}, expected two positive numbers")
    # Two sources share a name when a folder already held mirror images before it was encoded.
    index: dict[str, int] = {}
    place = [index.setdefault(image_name(source), len(index)) for source in sources]
    if all(isinstance(size, int) for size in split_sizes):
        sides = _split_by_count(list(index), int(split_sizes[0]), int(split_sizes[1]))
    else:
        sides = split_by_fraction(list(index), float(split_sizes[0]), float(split_sizes[1]))
    return sides[place]


def _unit_hash(name: str) -> float:
    """A number in [0, 1) that depends on the name only."""
    digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def split_by_fraction(names: Sequence[str], train: float, held_out: float) -> np.ndarray:
    """Side of each image, by its name; variants of an image are on its side."""
    if train + held_out > 1 + 1e-9:
        raise UserError(
            f"data.split_sizes [{train}, {held_out}] has sum {train + held_out:g}, "
            "expected fractions of sum at most 1, or two whole numbers of images"
        )
    position = np.array([_unit_hash(family_name(name)) for name in names])
    everything_else = abs(train + held_out - 1) < 1e-9  # 0.7 + 0.3 must not lose one to rounding
    sides = np.where((position < held_out + train) | everything_else, TRAIN, UNUSED)
    sides[position < held_out] = EVAL
    return sides


def _split_by_count(names: list[str], train: int, held_out: int) -> np.ndarray:
    used = train + held_out
    if used > len(names):
        raise UserError(f"data.split_sizes is {train} + {held_out} images, there are {len(names)}")
    sides = np.full(len(names), UNUSED)
    sides[:used] = TRAIN
    order = np.argsort([_unit_hash(name) for name in names[:used]], kind="stable")
    sides[order[:held_out]] = EVAL
    return sides
