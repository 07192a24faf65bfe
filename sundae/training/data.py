"""The token grids that a run trains on and is evaluated on."""

from __future__ import annotations

from pathlib import Path

from sundae.common.errors import UserError
from sundae.config.run_file import RunConfig
from sundae.data.dataset import Latents, TokenDataset, check_agreement, open_latents
from sundae.data.splits import split_rows


def open_datasets(cfg: RunConfig, codec_identity: str) -> tuple[TokenDataset, TokenDataset]:
    """(training, held-out) rows of a run's data, checked against the network and the codec.

    Raises:
        UserError: the data is missing or does not belong to this run; see `check_agreement`.
    """
    data = cfg.data
    if data.root is not None:
        latents = _open(cfg, data.root, codec_identity)
        assert data.split_sizes is not None
        rows = split_rows(latents, data.split_sizes)
        train, held_out = (TokenDataset(latents, some) for some in rows)
    else:
        assert data.train_root is not None and data.eval_root is not None
        roots = data.train_root, data.eval_root
        train, held_out = (TokenDataset(_open(cfg, root, codec_identity)) for root in roots)
        if cfg.net.conditional and train.latents.classes != held_out.latents.classes:
            raise UserError(
                f"{data.train_root} and {data.eval_root} have different classes; "
                "generate both from folders of the same names"
            )
    if cfg.net.conditional:
        _check_every_class_has_images(train)
    return train, held_out


def _open(cfg: RunConfig, root: Path, codec_identity: str) -> Latents:
    latents = open_latents(root)
    check_agreement(
        latents,
        vocab_size=cfg.data.vocab_size,
        latent_shape=cfg.grid_shape,
        num_classes=cfg.net.num_classes if cfg.net.conditional else None,
        codec_identity=codec_identity,
    )
    return latents


def _check_every_class_has_images(data: TokenDataset) -> None:
    latents = data.latents
    if latents.labels is None or latents.classes is None:
        return
    present = set(latents.labels[latents.images[data.rows]].tolist())
    for number, name in enumerate(latents.classes):
        if number not in present:
            raise UserError(
                f"{latents.root}: class '{name}' has no images to train on; add some or "
                "generate the data again without it"
            )
