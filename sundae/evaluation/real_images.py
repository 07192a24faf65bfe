"""Real images: those that samples are compared with, and those that were learned from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from sundae.codec.interface import PixelCodec
from sundae.common.errors import UserError
from sundae.common.images import list_images
from sundae.config.run_file import RunConfig
from sundae.data.dataset import Latents, TokenDataset, open_latents
from sundae.data.format import MANIFEST_NAME
from sundae.data.splits import EVAL, TRAIN, split_names
from sundae.evaluation.image_sets import ImageSet, Size, images_of_folder, images_of_tokens
from sundae.training.prior import open_datasets

Side = Literal["held-out", "training", "all"]
SIDES = get_args(Side)

_HELD_OUT, _TRAINING = "held-out images", "training images"


@dataclass(frozen=True)
class RealImages:
    """Two sets without a common image, each in random order.

    Attributes:
        reference: What samples are compared with.
        training: What the model learned from, or other images in their place; None where nothing
            says which these are.
        split: How the two were told apart, for the protocol.
    """

    reference: ImageSet
    training: ImageSet | None
    split: str

    @classmethod
    def of(
        cls, held_out: ImageSet, training: ImageSet | None, split: str, side: Side
    ) -> RealImages:
        """The reference is what `side` says, and the other set takes the place of the training."""
        if side == "all":
            raise UserError("--split all: only a folder of images is taken as a whole")
        sets = (held_out.shuffled(), training and training.shuffled())
        if side == "training":
            if sets[1] is None:
                raise UserError("--split training: nothing says which images were trained on; give "
                                "--eval-fraction or --training")  # fmt: skip
            return cls(sets[1], sets[0], f"{split}; the reference is the training images")
        return cls(*sets, split)


def open_images(
    root: Path,
    size: Size | None,
    *,
    split_sizes: Sequence[int] | Sequence[float] | None = None,
    training: Path | None = None,
    side: Side = "held-out",
) -> RealImages:
    """The images below a folder.

    Args:
        size: See `images_of_folder`.
        split_sizes: (train, eval), by which file names divide the folder as they divide the data
            of a training; None takes all images as held out.
        training: Another folder, of the training images; then nothing is divided.
        side: Which of them is the reference.

    Raises:
        UserError: There are no images, or none of one kind, or both folders are the same.
    """
    if training is not None and training.resolve() == root.resolve():
        raise UserError(
            f"{root} is given as REFERENCE and as --training; the floor compares images that were "
            "trained on with others: give another folder, or --eval-fraction to divide this one"
        )
    paths = list_images(root)
    if training is not None or split_sizes is None or side == "all":
        held_out = images_of_folder(root, size, _HELD_OUT if training else "images", paths)
        learned = images_of_folder(training, held_out.size, _TRAINING) if training else None
        split = "folders of their own" if training else "all images are the reference"
        return RealImages.of(held_out, learned, split, "held-out" if side == "all" else side)
    sides = split_names([path.relative_to(root).as_posix() for path in paths], split_sizes)
    parts = [[path for path, at in zip(paths, sides) if at == part] for part in (EVAL, TRAIN)]
    if not all(parts):
        raise UserError(
            f"{root}: split {list(split_sizes)} leaves {len(parts[1])} training and "
            f"{len(parts[0])} held-out images of {len(paths)}; give --split all or more images"
        )
    held_out = images_of_folder(root, size, _HELD_OUT, parts[0])
    learned = images_of_folder(root, held_out.size, _TRAINING, parts[1])
    return RealImages.of(held_out, learned, f"by file names, {list(split_sizes)}", side)


def open_grey_levels(root: Path, *, side: Side = "held-out") -> RealImages:
    """Images whose tokens are grey levels: a folder with train/ and eval/, or one of the two.

    Raises:
        UserError: There are none, or the tokens are those of a VQ-GAN.
    """
    if (root / MANIFEST_NAME).exists():
        only = _decoded(TokenDataset(open_latents(root)), "images")
        return RealImages.of(only, None, "all images are the reference", side)
    held_out, learned = (TokenDataset(open_latents(root / name)) for name in ("eval", "train"))
    return RealImages.of(
        _decoded(held_out, _HELD_OUT), _decoded(learned, _TRAINING), "eval/ and train/", side
    )


def data_of_run(cfg: RunConfig, *, side: Side = "held-out") -> RealImages:
    """The data of a run on grey levels, as it was divided for the training.

    Raises:
        UserError: It is missing, or not that of the run.
    """
    sets = open_datasets(cfg, PixelCodec(cfg.data.vocab_size).identity)
    learned, held_out = (_decoded(data, name) for data, name in zip(sets, (_TRAINING, _HELD_OUT)))
    return RealImages.of(held_out, learned, "as in the training", side)


def holds_tokens(folder: Path) -> bool:
    """Whether a folder holds packed latents, or `train` and `eval` with some."""
    return any((folder / name / MANIFEST_NAME).exists() for name in (".", "train", "eval"))


def _decoded(data: TokenDataset, title: str) -> ImageSet:
    latents: Latents = data.latents
    if not latents.codec_identity.startswith("pixels-"):
        raise UserError(
            f"{latents.root} holds tokens of a VQ-GAN, which only decode to reconstructions; give "
            "the folder of images that they were made from"
        )
    return images_of_tokens(data, PixelCodec(latents.codebook_size), title)
