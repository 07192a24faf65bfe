"""Random numbers for tokens: categorical draws, and noise that belongs to a sample, not a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from sundae.common import memory

# Splitmix-style multipliers, odd and below 2**31 so that products of 31-bit words fit an int64.
_MIX = (0x45D9F3B, 0x119DE1F3)
_WORD = 0x7FFFFFFF

# Bits of a probability counted in whole numbers, and of a uniform number.
_SHARE_BITS, _UNIFORM_BITS = 30, 24


def draw_tokens(
    logits: Tensor,
    uniforms: Tensor,
    temperature: float | Tensor = 1.0,
    *,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Tensor:
    """Draw one token a row by inverting the cumulative distribution softmax(logits / temperature).

    One uniform number a row instead of one a code makes this many times cheaper than a Gumbel or
    exponential race, and leaves the randomness to the caller. A token's chance is right to
    within about 2**-24, the step of the uniform numbers.

    Args:
        logits: (..., vocab) float; -inf marks an impossible token.
        uniforms: (...) float in [0, 1).
        temperature: at least 0; 0 takes the most likely token. A () float32 tensor must be above
            0, which is not checked.
        top_k, top_p: see `keep_likely`; probabilities are those at the temperature.

    Returns:
        tokens: (...) int64 in [0, vocab), also where the logits are not numbers.
    """
    if not isinstance(temperature, Tensor) and temperature == 0:
        return logits.argmax(dim=-1)
    rows = logits.reshape(-1, logits.shape[-1])
    points = uniforms.flatten()[:, None]
    size = max(1, memory.drawn_logits(logits.device) // logits.shape[-1])
    drawn = [
        _invert(keep_likely(part.float() / temperature, top_k, top_p), point)
        for part, point in zip(rows.split(size), points.split(size), strict=True)
    ]
    return torch.cat(drawn).view(logits.shape[:-1])


def keep_likely(logits: Tensor, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Make all but the likely tokens impossible.

    Args:
        logits: (..., vocab) float.
        top_k: keep this many of the most likely; 0 for all. Of equals at the edge any may stay.
        top_p: then keep the fewest of the most likely whose probabilities, among those left, reach
            this sum (nucleus sampling, arXiv 1904.09751); in (0, 1], 1 for all.

    Returns:
        (..., vocab) float, the others -inf; `logits` itself where nothing is left out.
    """
    vocab = logits.shape[-1]
    if not 0 < top_k < vocab and top_p >= 1:
        return logits
    values, codes = logits.topk(top_k if 0 < top_k < vocab else vocab, dim=-1)
    if top_p < 1:
        share = values.softmax(-1)
        before = share.cumsum(-1) - share
        values = values.masked_fill(before >= top_p, -torch.inf)
    return torch.full_like(logits, -torch.inf).scatter_(-1, codes, values)


def _invert(logits: Tensor, points: Tensor) -> Tensor:
    """logits: (rows, vocab), points: (rows, 1) in [0, 1) -> (rows,) int64"""
    # In whole numbers the sums are exact, in whatever order a device adds them: an impossible token
    # adds nothing, so it is never drawn, and a seed gives the same tokens every time.
    share = torch.softmax(logits, dim=-1).mul_(2**_SHARE_BITS).int()
    mass = share.cumsum(dim=-1, dtype=torch.int32)
    point = (points * 2**_UNIFORM_BITS).long() * mass[:, -1:] >> _UNIFORM_BITS
    # The logits of a diverged network draw anything, but nothing that an embedding would choke on.
    drawn = torch.searchsorted(mass, point.int(), right=True)[:, 0]
    return drawn.clamp_(0, logits.shape[-1] - 1)


def _mix(word: Tensor) -> Tensor:
    """A bijection that scrambles 31-bit words, held in int64."""
    for multiplier in _MIX:
        word = ((word ^ (word >> 16)) * multiplier) & _WORD
    return word ^ (word >> 15)


def seeded_uniforms(seeds: Tensor, stream: int | Tensor, length: int) -> Tensor:
    """Noise by counting instead of by state: a hash of (seed, stream, position).

    A row depends on its own seed alone, so a sample is the same whatever batch it is part of, on
    whatever device, and whichever rows have left the batch before.

    Args:
        seeds: (batch,) int64 in [0, 2**62).
        stream: which draw this is, in [0, 2**31), as a number or a () int64 tensor; every use
            within one sample takes another one.
        length: numbers per row.

    Returns:
        (batch, length) float32 in [0, 1), multiples of 2**-24.
    """
    position = torch.arange(length, device=seeds.device)
    # The halves of a seed go in one after the other: seeds that agree in one of them still differ.
    low, high = seeds & _WORD, (seeds >> 31) & _WORD
    turn = (stream * 0x9E3779B1) & _WORD
    word = _mix(_mix((low + 0x2545F491) & _WORD)[:, None] ^ _mix(position * 2 + 1))
    word = _mix(word ^ _mix(_mix(high) ^ turn)[:, None])
    return (_mix((word + 0x3C6EF372) & _WORD) >> 7).float() * 2.0**-_UNIFORM_BITS


def draw_seeds(count: int, generator: torch.Generator) -> Tensor:
    """(count,) int64 in [0, 2**62): one seed a sample, the first ones independent of the count."""
    words = torch.randint(2**31, (count, 2), generator=generator, device=generator.device)
    return (words[:, 0] << 31) | words[:, 1]
