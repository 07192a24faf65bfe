"""The baseline's network, objective and training: tokens are masked, not replaced (MaskGIT)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from hourglass_transformer import HourglassTransformer
from sundae.config.run_file import RunConfig
from sundae.prior.checkpoint import EMA, MODEL, Checkpoint, load_into, load_weights
from sundae.prior.linear_cross_entropy import entropy
from sundae.prior.objective import corruption_rates
from sundae.training.batches import Batch
from sundae.training.metrics import Metrics
from sundae.training.prior import PriorExperiment, drop_classes, head_of
from sundae.training.trainer import Losses

KIND = "absorbing"  # of its checkpoints

# Logits in float32 at once: 16 MB on a CPU, 128 MB on a GPU.
_CHUNK_CPU, _CHUNK_GPU = 2**22, 2**25


class AbsorbingNetwork(HourglassTransformer):
    """The network of a prior with one more input token, vocab_size, which is the mask.

    Logits are those of the vocab_size codes, so that the mask is never predicted.
    """

    def __init__(self, cfg: RunConfig) -> None:
        super().__init__(cfg.net, vocab_size=cfg.data.vocab_size, grid=cfg.grid_shape)
        self.token_embedding = nn.Embedding(self.vocab_size + 1, self.token_embedding.embedding_dim)
        nn.init.normal_(self.token_embedding.weight, std=0.5)


def mask_rates(batch: int, generator: torch.Generator) -> Tensor:
    """cos(pi u / 2) of a stratified uniform u, one rate a sample (arXiv 2202.04200, section 3.3).

    Returns:
        (batch,) float32 in [0, 1].
    """
    return torch.cos(corruption_rates(batch, generator) * (math.pi / 2))


def draw_mask(rates: Tensor, length: int, generator: torch.Generator) -> Tensor:
    """(batch, length) bool: every token masked with its sample's rate, (batch,) in [0, 1]."""
    shape = (len(rates), length)
    return torch.rand(shape, generator=generator, device=rates.device) < rates[:, None]


class AbsorbingTask:
    """Cross-entropy on the masked tokens, one forward pass a batch.

    Class dropout and the order of random draws are those of `PriorTask`. In evaluation there is
    also the entropy of the predictions.
    """

    num_losses, watched = 1, "loss"

    def __init__(self, cfg: RunConfig) -> None:
        self.cfg = cfg
        # A run file may name a loss of an unroll step; there is one loss, by every such name.
        named = {*cfg.trainer.metric_names, cfg.trainer.metric_best[0]}
        self._aliases = {name: name.split("_")[0] for name in named if "_" in name}

    def losses(self, net: nn.Module, batch: Batch, generator: torch.Generator) -> Losses:
        """Yield (loss, metrics) once; loss and accuracy are means over the masked tokens."""
        cfg, tokens = self.cfg.net, batch["tokens"]
        classes = batch["classes"] if cfg.conditional else None
        if classes is not None and net.training and cfg.class_dropout:
            classes = drop_classes(classes, cfg.class_dropout, cfg.num_classes, generator)
        rates = mask_rates(len(tokens), generator)
        masked = draw_mask(rates, tokens.shape[1], generator)
        visible = tokens.masked_fill(masked, self.cfg.data.vocab_size)
        head = head_of(net)
        if head is None:
            scores = _scores(net(visible, classes), tokens)
        else:
            scores = _chunked_scores(net(visible, classes, head=False), head, tokens)
        number = masked.sum().clamp(min=1)  # a tensor: no host-device synchronisation
        loss, accuracy, spread = ((score * masked).sum() / number for score in scores)
        metrics: Metrics = {"loss": loss, "accuracy": accuracy.detach()}
        metrics |= {alias: metrics[name] for alias, name in self._aliases.items()}
        yield loss, metrics if net.training else {**metrics, "entropy": spread}


def _scores(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy in nats, whether right, and entropy: float32 of the shape of the targets."""
    logits = logits.float()
    losses = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none")
    with torch.no_grad():
        correct = (logits.argmax(-1) == targets).float()
        spread = entropy(logits) if not losses.requires_grad else torch.zeros_like(correct)
    return losses.view(targets.shape), correct, spread


def _chunked_scores(
    features: Tensor, head: nn.Linear, targets: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`_scores` of head(features), (batch, length, dim), with few logits in memory at a time.

    Where there are several chunks, their logits are computed again in the backward pass.
    """
    most = _CHUNK_GPU if features.is_cuda else _CHUNK_CPU
    size = max(1, most // (head.out_features * targets.shape[1]))
    if size >= len(targets):
        return _scores(head(features), targets)

    def chunk(some: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return _scores(head(some), wanted)

    # The random state is left alone: nothing here draws, and reading it would break a CUDA graph.
    parts = [
        recompute(chunk, *pair, use_reentrant=False, preserve_rng_state=False)
        for pair in zip(features.split(size), targets.split(size), strict=True)
    ]
    losses, correct, spread = (torch.cat(some) for some in zip(*parts, strict=True))
    return losses, correct, spread


class AbsorbingExperiment(PriorExperiment):
    """The training of the baseline; all but network and task is that of a prior."""

    kind = KIND

    def build(self, device: torch.device, accumulate: int) -> tuple[nn.Module, Any]:
        net = AbsorbingNetwork(self.cfg)
        net.set_gradient_checkpointing(self.cfg.trainer.gradient_checkpointing)
        return net, AbsorbingTask(self.cfg)


def for_equal_passes(cfg: RunConfig) -> RunConfig:
    """As many forward and backward passes as ours, of as many grids: more optimiser steps.

    The learning-rate schedule and the checkpoints are stretched with them.
    """
    times = 1 + (cfg.unroll_steps - 1) * cfg.objective.unroll_share
    trainer = cfg.trainer
    stretched = ("nb_warmup_steps", "nb_training_steps")
    schedule = {
        key: round(value * times) if key in stretched else value
        for key, value in trainer.lr_scheduler_kwargs.items()
    }
    trainer = replace(
        trainer,
        max_steps=round(trainer.max_steps * times),
        lr_scheduler_kwargs=schedule,
        checkpoint_frequency=round(trainer.checkpoint_frequency * times),
        nb_batches=(round(trainer.nb_batches[0] * times), trainer.nb_batches[1]),
    )
    return replace(cfg, trainer=trainer)


def load_absorbing(checkpoint: Checkpoint, *, ema: bool = True) -> AbsorbingNetwork:
    """The network of a checkpoint of `KIND`, in evaluation mode, on the CPU.

    Raises:
        UserError: the weights are damaged, not finite, or of another network.
    """
    averaged = ema and (checkpoint.folder / EMA).exists()
    weights = load_weights(checkpoint.folder / (EMA if averaged else MODEL))
    with torch.device("meta"):
        net = AbsorbingNetwork(checkpoint.config)
    load_into(net, weights, checkpoint.folder)
    net.reset_tables()
    return net.eval()
