"""The SUNDAE objective as what a trainer minimises."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hourglass_transformer import HourglassTransformer
from sundae.config.run_file import RunConfig
from sundae.prior.objective import unroll

if TYPE_CHECKING:
    from sundae.training.trainer import Batch, Losses


class PriorTask:
    """The SUNDAE objective as a trainer's task: one loss for every unroll step."""

    def __init__(self, cfg: RunConfig) -> None:
        self.parts = cfg.unroll_steps
        self.vocab_size = cfg.data.vocab_size
        self.conditional = cfg.net.conditional
        self.num_classes, self.class_dropout = cfg.net.num_classes, cfg.net.class_dropout

    def losses(self, net: nn.Module, batch: Batch, generator: torch.Generator) -> Losses:
        """Yield (loss, metrics) of each unroll step; see `sundae.prior.objective.unroll`."""
        classes = batch["classes"] if self.conditional else None
        if classes is not None and net.training and self.class_dropout:
            classes = drop_classes(classes, self.class_dropout, self.num_classes, generator)
        head = head_of(net)
        steps = unroll(
            lambda tokens: net(tokens, classes, **({} if head is None else {"head": False})),
            batch["tokens"],
            unroll_steps=self.parts,
            vocab_size=self.vocab_size,
            generator=generator,
            head=head,
        )
        for number, (loss, accuracy) in enumerate(steps, start=1):
            metrics = {"loss": loss, "accuracy": accuracy}
            metrics |= {f"{name}_{number}": value for name, value in metrics.items()}
            yield loss, metrics


def head_of(net: nn.Module) -> nn.Linear | None:
    """The last map of a network that can leave it out, also of one spread over several devices."""
    bare = getattr(net, "module", net)
    return bare.to_logits if isinstance(bare, HourglassTransformer) else None


def drop_classes(
    classes: Tensor, chance: float, null_class: int, generator: torch.Generator
) -> Tensor:
    """Replace each class by the null class with a chance (arXiv 2207.12598, algorithm 1).

    Args:
        classes: (batch,) int64.
        chance: in [0, 1].
        null_class: number of the class that means "any".
        generator: on the device of the classes.

    Returns:
        (batch,) int64.
    """
    hidden = torch.rand(len(classes), generator=generator, device=classes.device) < chance
    return classes.masked_fill(hidden, null_class)
