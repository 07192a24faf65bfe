"""The rows that a run trains on and is evaluated on."""

from __future__ import annotations

from pathlib import Path

from sundae.common.errors import UserError
from sundae.config.run_file import (
    RunConfig,
)
from sundae.data.dataset import Latents, TokenDataset, check_agreement, open_latents
from sundae.data.splits import split_rows


def open_datasets(cfg: RunConfig, codec_identity: str) -> tuple[TokenDataset, TokenDataset]:
    """(training, held-out) rows of a run's data, checked against the network and the codec.

    Raises:
        UserError: data that is missing or does not belong to this run; see `check_agreement`.
    """
    if cfg.data.root is not None:
        latents = _open_checked(cfg, cfg.data.root, codec_identity)
        assert cfg.data.split_sizes is not None
        train, held_out = split_rows(latents, cfg.data.split_sizes)
        return _complete(cfg, TokenDataset(latents, train)), TokenDataset(latents, held_out)
    assert cfg.data.train_root is not None and cfg.data.eval_root is not None
    sides = [
        _open_checked(cfg, root, codec_identity)
        for root in (cfg.data.train_root, cfg.data.eval_root)
    ]
    if cfg.net.conditional and sides[0].classes != sides[1].classes:
        raise UserError(
            f"{cfg.data.train_root} and {cfg.data.eval_root} have different classes; "
            "generate both from folders of the same names"
        )
    return _complete(cfg, TokenDataset(sides[0])), TokenDataset(sides[1])


def _complete(cfg: RunConfig, data: TokenDataset) -> TokenDataset:
    """The data itself; UserError when the network is to learn a class that has no picture."""
    latents = data.latents
    if cfg.net.conditional and latents.labels is not None and latents.classes is not None:
        present = set(latents.labels[latents.images[data.rows]].tolist())
        for number, name in enumerate(latents.classes):
            if number not in present:
                raise UserError(
                    f"{latents.root}: class '{name}' has no pictures to train on; add some or "
                    "generate the data again without it"
                )
    return data


def _open_checked(cfg: RunConfig, root: Path, codec_identity: str) -> Latents:
    latents = open_latents(root)
    check_agreement(
        latents,
        vocab_size=cfg.data.vocab_size,
        latent_shape=cfg.grid_shape,
        num_classes=cfg.net.num_classes if cfg.net.conditional else None,
        codec_identity=codec_identity,
    )
    return latents


def learned_classes(cfg: RunConfig, data: TokenDataset) -> list[str] | None:
    """Names of the classes that a network learns; None for an unconditional one."""
    return list(data.latents.classes or ()) if cfg.net.conditional else None
