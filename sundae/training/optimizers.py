"""Optimisers by name, and how a batch is shared out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sundae.common.errors import UserError
from sundae.config.run_file import TrainerConfig

_OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adamax": torch.optim.Adamax,
    "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
}


def make_optimizer(
    net: nn.Module, cfg: TrainerConfig, device: torch.device
) -> torch.optim.Optimizer:
    """The optimiser that the config names; fused where torch has it.

    Weight decay spares what is not a matrix: biases, gains, and also embeddings.
    """
    spared = {id(p) for m in net.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    matrices: list[Tensor] = []
    rest: list[Tensor] = []
    for parameter in net.parameters():
        decays = parameter.ndim >= 2 and id(parameter) not in spared
        (matrices if decays else rest).append(parameter)
    groups = [
        {"params": matrices, "weight_decay": cfg.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    options: dict[str, Any] = {"lr": cfg.learning_rate}
    if cfg.optimizer_name in ("adam", "adamw", "adamax"):
        options["betas"] = cfg.betas
    if cfg.optimizer_name in ("adam", "adamw"):
        options["fused"] = device.type in ("cuda", "cpu")
    return _OPTIMIZERS[cfg.optimizer_name](groups, **options)


def split_batch(cfg: TrainerConfig, processes: int) -> tuple[int, int]:
    """How a batch is shared out: rows of a mini-batch, mini-batches per process and step.

    Raises:
        UserError: it does not come out even.
    """
    mini = cfg.mini_batch_size or max(1, cfg.batch_size // processes)
    if cfg.batch_size % (mini * processes):
        raise UserError(
            f"trainer.batch_size ({cfg.batch_size}) is not a multiple of trainer.mini_batch_size "
            f"({mini}) times {processes} processes; change one of them"
        )
    return mini, cfg.batch_size // (mini * processes)
