"""Optimisers by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sundae.config.sections import TrainerConfig

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

    Weight decay applies to matrices, not to biases, gains and embeddings.
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
