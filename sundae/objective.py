"""The SUNDAE objective (arXiv 2112.06749): corrupt, denoise, sample, denoise again.

Pure functions of any `denoise(tokens) -> logits`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sundae.categorical import draw_tokens

Denoise = Callable[[Tensor], Tensor]


class UnrollStep(NamedTuple):
    """What one unroll step contributes.

    Attributes:
        loss: scalar, mean cross-entropy over all positions in nats, differentiable.
        accuracy: scalar in [0, 1], share of positions whose most likely token is the clean one.
    """

    loss: Tensor
    accuracy: Tensor


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
) -> Iterator[UnrollStep]:
    """Yield the loss of each unroll step; the objective is their mean.

    The steps share no graph, because the sample between them carries no gradient. A caller that
    goes backward on each as it comes therefore holds the activations of one step at a time.

    Args:
        denoise: (batch, length) int64 -> logits (batch, length, vocab).
        tokens: (batch, length) int64, clean, on the generator's device.
        unroll_steps: at least 1.
        vocab_size: number of distinct tokens.
        generator: source of all randomness.
    """
    rates = corruption_rates(len(tokens), generator)
    current = corrupt(tokens, rates, vocab_size, generator)
    for step in range(unroll_steps):
        logits = denoise(current)
        with torch.no_grad():
            accuracy = (logits.argmax(dim=-1) == tokens).float().mean()
            if step + 1 < unroll_steps:  # nobody looks at the last sample
                uniforms = torch.rand(tokens.shape, generator=generator, device=generator.device)
                current = draw_tokens(logits.detach(), uniforms)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), tokens.flatten())
        del logits
        yield UnrollStep(loss, accuracy)
