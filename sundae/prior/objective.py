"""The SUNDAE objective (arXiv 2112.06749): corrupt, denoise, sample, denoise again.

Pure functions of any `denoise(tokens) -> logits`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sundae.prior.categorical import draw_tokens
from sundae.prior.linear_cross_entropy import (
    Prediction,
    TokenScores,
    entropy,
    linear_cross_entropy,
)

Denoise = Callable[[Tensor], Tensor]


def corruption_rates(batch: int, generator: torch.Generator) -> Tensor:
    """One rate per sample from U[0, 1], stratified: every 1/batch-wide interval gets exactly one.

    Returns:
        (batch,) float32 in [0, 1], in random order.
    """
    device = generator.device
    order = torch.randperm(batch, generator=generator, device=device)
    within = torch.rand(batch, generator=generator, device=device)
    return (order + within) / batch


def corrupt(tokens: Tensor, rates: Tensor, vocab_size: int, generator: torch.Generator) -> Tensor:
    """Replace each token, with its sample's probability, by a uniform one.

    Args:
        tokens: (batch, length) int64.
        rates: (batch,) float in [0, 1].
        vocab_size: replacements are uniform over [0, vocab_size); some equal what they replace.

    Returns:
        (batch, length) int64.
    """
    device = generator.device
    chosen = torch.rand(tokens.shape, generator=generator, device=device) < rates[:, None]
    noise = torch.randint(vocab_size, tokens.shape, generator=generator, device=device)
    return torch.where(chosen, noise, tokens)


def unroll(
    denoise: Denoise,
    tokens: Tensor,
    *,
    unroll_steps: int,
    vocab_size: int,
    generator: torch.Generator,
    head: nn.Linear | None = None,
    rates: Tensor | None = None,
) -> Iterator[Prediction]:
    """Yield loss, accuracy and sample of each unroll step; the objective is the mean of the losses.

    The steps share no graph, because the sample between them carries no gradient: with a backward
    pass after each, only the activations of one step are in memory at a time.

    Args:
        denoise: (batch, length) int64 -> logits (batch, length, vocab); with a head, the features
            (batch, length, dim) that the head turns into logits.
        tokens: (batch, length) int64, clean, on the generator's device.
        head: the network's last map, dim -> vocab, if `denoise` leaves it out: then the logits are
            never in memory as a whole, see `sundae.prior.linear_cross_entropy`.
        rates: (batch,) in [0, 1], of the corruption before the first step; by default
            `corruption_rates`.
    """
    if rates is None:
        rates = corruption_rates(len(tokens), generator)
    current = corrupt(tokens, rates, vocab_size, generator)
    for step in range(unroll_steps):
        outputs = denoise(current)
        uniforms = None
        if step + 1 < unroll_steps:  # the last sample is not used
            uniforms = torch.rand(tokens.shape, generator=generator, device=generator.device)
        if head is None:
            predicted = _predict(outputs, tokens, uniforms)
        else:
            predicted = linear_cross_entropy(outputs, head, tokens, uniforms)
        if predicted.drawn is not None:
            current = predicted.drawn
        del outputs
        yield predicted


def _predict(logits: Tensor, targets: Tensor, uniforms: Tensor | None) -> Prediction:
    """As `linear_cross_entropy`, from logits (batch, length, vocab)."""
    with torch.no_grad():
        correct = logits.argmax(dim=-1) == targets
        drawn = None if uniforms is None else draw_tokens(logits, uniforms)
    logits = logits.float()
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    losses = losses.view(targets.shape)
    scores = None if losses.requires_grad else TokenScores(losses, correct, entropy(logits))
    return Prediction(losses.mean(), correct.float().mean(), drawn, scores)
