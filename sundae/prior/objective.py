"""The SUNDAE objective (arXiv 2112.06749): corrupt, denoise, sample, denoise again.

Pure functions of any `denoise(tokens) -> logits`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sundae.config.sections import ObjectiveConfig
from sundae.prior.categorical import draw_tokens
from sundae.prior.linear_cross_entropy import (
    Prediction,
    TokenScores,
    entropy,
    linear_cross_entropy,
)

Denoise = Callable[[Tensor], Tensor]

# The paper's, and those of every evaluation.
DEFAULTS = ObjectiveConfig()

# Least height and width of a hole, as shares of the grid's.
_HOLE = 0.25


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
    """Replace each token, with a probability, by a uniform one.

    Args:
        tokens: (batch, length) int64.
        rates: (batch,) float in [0, 1], of each sample, or (batch, length), of each token.
        vocab_size: replacements are uniform over [0, vocab_size); some equal what they replace.

    Returns:
        (batch, length) int64.
    """
    device = generator.device
    rates = rates if rates.dim() == 2 else rates[:, None]
    chosen = torch.rand(tokens.shape, generator=generator, device=device) < rates
    noise = torch.randint(vocab_size, tokens.shape, generator=generator, device=device)
    return torch.where(chosen, noise, tokens)


def hole_rates(
    rates: Tensor, grid: tuple[int, int], share: float, generator: torch.Generator
) -> Tensor:
    """Rates of each token, 0 for some of them in the first samples: only a hole is corrupted there.

    A hole is a rectangle of a quarter to all of the grid's height and width, anywhere on it, or
    everything outside of one, each in half of the samples. Without holes in training, what a
    network takes for noise depends on the noise in the whole image, and the noise in a hole of a
    clean image is taken for content. The first samples are also those that `unroll` unrolls.

    Args:
        rates: (batch,) float in [0, 1].
        grid: (height, width) in tokens.
        share: of the samples that have a hole, in [0, 1]; a fractional number of samples is met on
            average.
        generator: on the device of the rates.

    Returns:
        (batch, height*width), in raster order.
    """
    batch, device = len(rates), rates.device
    uniforms = torch.rand(2, 2, batch, generator=generator, device=device)
    inside = []
    for size, (extent, place) in zip(grid, uniforms, strict=True):
        length = size * (_HOLE + (1 - _HOLE) * extent)
        start = place * (size - length)
        middles = torch.arange(size, device=device) + 0.5
        inside.append((middles >= start[:, None]) & (middles < (start + length)[:, None]))
    rectangle = (inside[0][:, :, None] & inside[1][:, None, :]).flatten(1)
    chance = torch.rand(batch + 1, generator=generator, device=device)
    hole = rectangle ^ (chance[1:, None] < 0.5)
    whole = torch.arange(batch, device=device) + chance[0] >= share * batch
    return rates[:, None] * (hole | whole[:, None])


def unroll_rows(batch: int, share: float) -> int:
    """Number of rows, the first of the batch, in the unroll steps after the first; at least 1."""
    return max(1, round(batch * share))


def step_weights(batch: int, unroll_steps: int, share: float) -> list[float]:
    """Factors of the steps' losses, of mean 1, by which every (row, step) pair counts the same."""
    rows = [batch] + [unroll_rows(batch, share)] * (unroll_steps - 1)
    return [unroll_steps * count / sum(rows) for count in rows]


def unroll(
    denoise: Denoise,
    tokens: Tensor,
    *,
    unroll_steps: int,
    vocab_size: int,
    generator: torch.Generator,
    head: nn.Linear | None = None,
    rates: Tensor | None = None,
    options: ObjectiveConfig = DEFAULTS,
    grid: tuple[int, int] | None = None,
) -> Iterator[Prediction]:
    """Yield loss, accuracy and sample of each unroll step; the objective is the mean of the losses,
    times the factors of `step_weights`.

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
        options: what to learn from. With an `unroll_share` below 1, `denoise` is given only the
            first rows of the batch after the first step.
        grid: (height, width) of the tokens in raster order; needed for `options.hole_share`.
    """
    if rates is None:
        rates = corruption_rates(len(tokens), generator)
    field = rates
    if options.hole_share:
        assert grid is not None
        field = hole_rates(rates, grid, options.hole_share, generator)
    current = corrupt(tokens, field, vocab_size, generator)
    rows = unroll_rows(len(tokens), options.unroll_share)
    for step in range(unroll_steps):
        outputs = denoise(current)
        uniforms = None
        if step + 1 < unroll_steps:  # the last sample is not used
            shape = tokens[:rows].shape
            uniforms = torch.rand(shape, generator=generator, device=generator.device)
        if head is None:
            predicted = _predict(outputs, tokens, uniforms)
        else:
            predicted = linear_cross_entropy(outputs, head, tokens, uniforms)
        if predicted.drawn is not None:
            current, tokens = predicted.drawn, tokens[:rows]
        del outputs
        yield predicted


def _predict(logits: Tensor, targets: Tensor, uniforms: Tensor | None) -> Prediction:
    """As `linear_cross_entropy`, from logits (batch, length, vocab)."""
    with torch.no_grad():
        correct = logits.argmax(dim=-1) == targets
        drawn = None if uniforms is None else draw_tokens(logits[: len(uniforms)], uniforms)
    logits = logits.float()
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    losses = losses.view(targets.shape)
    scores = None if losses.requires_grad else TokenScores(losses, correct, entropy(logits))
    return Prediction(losses.mean(), correct.float().mean(), drawn, scores)
