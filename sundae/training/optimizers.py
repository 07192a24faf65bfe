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


class MuonAdamW(torch.optim.Optimizer):
    """Muon for hidden matrices and AdamW for all else, in one optimiser.

    Muon (https://kellerjordan.github.io/posts/muon/) makes the momentum of a matrix orthogonal; its
    steps are scaled to the root mean square of AdamW's (arXiv 2502.16982, equation 4), so that both
    share a learning rate.

    Args:
        hidden: the matrices, (rows, columns) each.
        groups: of the other parameters.
        lr, betas, fused: see `torch.optim.AdamW`.
        weight_decay: of the matrices.
    """

    def __init__(
        self,
        hidden: list[Tensor],
        groups: list[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        weight_decay: float,
        fused: bool,
    ) -> None:
        self._muon = torch.optim.Muon(
            hidden, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        self._adamw = torch.optim.AdamW(groups, lr=lr, betas=betas, fused=fused)
        super().__init__([*self._muon.param_groups, *self._adamw.param_groups], {})
        self._share()

    def _share(self) -> None:
        """The parts take their groups and their state from the whole."""
        for part, groups in (
            (self._muon, self.param_groups[:1]),
            (self._adamw, self.param_groups[1:]),
        ):
            part.param_groups, part.state = groups, self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Also that of `torch.optim.Optimizer`."""
        super().load_state_dict(state_dict)
        self._share()

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of each part."""
        self._muon.step()
        self._adamw.step()


def make_optimizer(
    net: nn.Module, cfg: TrainerConfig, device: torch.device
) -> torch.optim.Optimizer:
    """The optimiser that the config names; fused where torch has it.

    Weight decay applies to matrices, not to biases, gains and embeddings. Muon takes the matrices
    of linear maps but the last one, which makes logits.
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
    if cfg.optimizer_name in ("adam", "adamw", "adamax", "muon"):
        options["betas"] = cfg.betas
    if cfg.optimizer_name in ("adam", "adamw", "muon"):
        options["fused"] = device.type in ("cuda", "cpu")
    if cfg.optimizer_name == "muon":
        hidden = hidden_matrices(net)
        taken = {id(p) for p in hidden}
        groups[0]["params"] = [p for p in matrices if id(p) not in taken]
        return MuonAdamW(hidden, groups, weight_decay=cfg.weight_decay, **options)
    return _OPTIMIZERS[cfg.optimizer_name](groups, **options)


def hidden_matrices(net: nn.Module) -> list[Tensor]:
    """The weights of the linear maps inside a network, without that of its last one."""
    linears = [module for module in net.modules() if isinstance(module, nn.Linear)]
    return [linear.weight for linear in linears if linear is not getattr(net, "to_logits", None)]
