"""The SUNDAE objective (arXiv 2112.06749): corrupt, denoise, sample, denoise again.

Pure functions of any `denoise(tokens) -> logits`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sundae.config.sections import ObjectiveConfig
from sundae.prior.categorical import draw_tokens
from sundae.prior.code_tables import CodeTables, NearCodes
from sundae.prior.linear_cross_entropy import (
    Prediction,
    TokenScores,
    cluster_logits,
    entropy,
    linear_cross_entropy,
)

Denoise = Callable[[Tensor], Tensor]

# SUNDAE's, and those of every evaluation.
DEFAULTS = ObjectiveConfig()

# Cells of the table of quantiles, and points of the integral behind it.
_CELLS, _POINTS = 2**12, 2**16


def corruption_rates(
    batch: int, generator: torch.Generator, beta: tuple[float, float] = DEFAULTS.rate_beta
) -> Tensor:
    """One rate per sample from Beta(a, b), stratified by quantiles.

    Every interval between two successive multiples of the quantile 1/batch holds exactly one rate.

    Args:
        beta: (a, b), both above 0; (1, 1) is U[0, 1]. AutoNAT (arXiv 2406.11838) has (12, 3).

    Returns:
        (batch,) float32 in [0, 1], in random order.
    """
    device = generator.device
    order = torch.randperm(batch, generator=generator, device=device)
    within = torch.rand(batch, generator=generator, device=device)
    uniforms = (order + within) / batch
    if beta == (1, 1):
        return uniforms
    table = _beta_quantiles(*beta, device)
    place = uniforms * _CELLS
    cell = place.long().clamp(max=_CELLS - 1)
    return torch.lerp(table[cell], table[cell + 1], place - cell)


@cache
def _beta_quantiles(a: float, b: float, device: torch.device) -> Tensor:
    """(_CELLS + 1,) float32: quantiles 1/_CELLS apart of Beta(a, b), the outermost just inside.

    On the scale x = log(t / (1 - t)) the density is t^a (1 - t)^b, smooth for all a and b, and
    falls from its mode log(a / b) as exp(a x) and exp(-b x).
    """
    mode = math.log(a / b)
    x = torch.linspace(mode - 8 - 40 / a, mode + 8 + 40 / b, _POINTS, dtype=torch.float64)
    density = a * F.logsigmoid(x) + b * F.logsigmoid(-x)
    mass = F.pad(torch.cumulative_trapezoid((density - density.max()).exp()), (1, 0))
    wanted = torch.linspace(0, 1, _CELLS + 1, dtype=torch.float64)
    # Quantiles 0 and 1 may be far out, and a line to them a poor tail.
    wanted = wanted.clamp(0.1 / _CELLS, 1 - 0.1 / _CELLS) * mass[-1]
    above = torch.searchsorted(mass, wanted).clamp(1, _POINTS - 1)
    low, high = mass[above - 1], mass[above]
    part = ((wanted - low) / (high - low).clamp(min=1e-300)).clamp(0, 1)
    return torch.lerp(x[above - 1], x[above], part).sigmoid().float().to(device)


def corrupt(
    tokens: Tensor,
    rates: Tensor,
    vocab_size: int,
    generator: torch.Generator,
    near: NearCodes | None = None,
    near_share: float = 0.0,
) -> Tensor:
    """Replace each token, with its sample's probability, by a uniform one.

    Args:
        tokens: (batch, length) int64.
        rates: (batch,) float in [0, 1].
        vocab_size: replacements are uniform over [0, vocab_size); some equal what they replace.
        near: codes near each code.
        near_share: share of the replacements drawn from `near` instead, in [0, 1].

    Returns:
        (batch, length) int64.
    """
    device = generator.device
    chosen = torch.rand(tokens.shape, generator=generator, device=device) < rates[:, None]
    noise = torch.randint(vocab_size, tokens.shape, generator=generator, device=device)
    if near is not None and near_share:
        is_near = torch.rand(tokens.shape, generator=generator, device=device) < near_share
        uniforms = torch.rand(tokens.shape, generator=generator, device=device)
        noise = torch.where(is_near, near.draw(tokens, uniforms), noise)
    return torch.where(chosen, noise, tokens)


def loss_weights(current: Tensor, tokens: Tensor, rates: Tensor, unchanged_weight: float) -> Tensor:
    """Lower loss weights of unchanged tokens, the lower the less is corrupted.

    As in Paella (arXiv 2211.07292, code), an unchanged token of a sample at corruption rate t
    weighs 1 - (1 - t)(1 - unchanged_weight) and any other 1, before all are divided by their mean.

    Args:
        current: (batch, length) int64, input of the network.
        tokens: (batch, length) int64, clean.
        rates: (batch,) float in [0, 1].
        unchanged_weight: in [0, 1].

    Returns:
        (batch, length) float32 of mean 1.
    """
    unchanged = 1 - (1 - rates[:, None]) * (1 - unchanged_weight)
    weights = torch.where(current == tokens, unchanged, 1.0)
    return weights / weights.mean().clamp(min=1e-6)


def unroll_rows(batch: int, share: float) -> int:
    """Number of rows, the first of the batch, in the unroll steps after the first; at least 1."""
    return max(1, round(batch * share))


def step_weights(batch: int, unroll_steps: int, share: float) -> list[float]:
    """Factors of the steps' losses, of mean 1, by which every (row, step) pair weighs the same."""
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
    tables: CodeTables | None = None,
) -> Iterator[Prediction]:
    """Yield loss, accuracy and sample of each unroll step; the objective is the mean of the losses,
    with the factors of `step_weights`.

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
        options: of the loss. With an `unroll_share` below 1, `denoise` is given the first rows of
            the batch only after the first step.
        tables: needed for `options.neighbours` and `options.clusters`.
    """
    if rates is None:
        rates = corruption_rates(len(tokens), generator, options.rate_beta)
    near, clusters = (None, None) if tables is None else tables
    current = corrupt(tokens, rates, vocab_size, generator, near, options.neighbours)
    rows = unroll_rows(len(tokens), options.unroll_share)
    for step in range(unroll_steps):
        outputs = denoise(current)
        uniforms = None
        if step + 1 < unroll_steps:  # the last sample is not used
            shape = tokens[:rows].shape
            uniforms = torch.rand(shape, generator=generator, device=generator.device)
        weights = None
        if options.unchanged_weight < 1:
            weights = loss_weights(current, tokens, rates, options.unchanged_weight)
        loss: Any = {
            "weights": weights,
            "smoothing": options.label_smoothing,
            "clusters": clusters,
        }
        if head is None:
            predicted = _predict(outputs, tokens, uniforms, **loss)
        else:
            predicted = linear_cross_entropy(outputs, head, tokens, uniforms, **loss)
        if predicted.drawn is not None:
            current, tokens, rates = predicted.drawn, tokens[:rows], rates[:rows]
        del outputs
        yield predicted


def _predict(
    logits: Tensor,
    targets: Tensor,
    uniforms: Tensor | None,
    *,
    weights: Tensor | None,
    smoothing: float,
    clusters: Tensor | None,
) -> Prediction:
    """As `linear_cross_entropy`, from logits (batch, length, vocab)."""
    with torch.no_grad():
        correct = logits.argmax(dim=-1) == targets
        drawn = None if uniforms is None else draw_tokens(logits[: len(uniforms)], uniforms)
    logits = logits.float()
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    losses = losses.view(targets.shape)
    scores = None if losses.requires_grad else TokenScores(losses, correct, entropy(logits))
    if smoothing:
        spread = logits.logsumexp(-1) - logits.mean(-1)
        losses = (1 - smoothing) * losses + smoothing * spread
    if clusters is not None:
        within = cluster_logits(logits, targets, clusters).logsumexp(-1)
        losses = losses + logits.logsumexp(-1) - within
    if weights is not None:
        losses = losses * weights
    return Prediction(losses.mean(), correct.float().mean(), drawn, scores)
