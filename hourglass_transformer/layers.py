"""Attention, feed-forward, normalisation, 2-D rotary position: what a layer is made of."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .config import Level, NetConfig
from .windows import Windows

# Keys up to which bfloat16 attention weights may stand in a CPU's memory.
_SHORT = 512

# Attention weights of a head, queries times keys, up to which a GPU does better without a kernel.
_FEW = 64

# On an H100 torch prefers cuDNN's attention. It builds a plan for every new shape, which takes as
# long as many steps of sampling, and with a mask its gradients may be NaN for windows of 8x8 tokens
# (pytorch/pytorch issue 196678). Without it torch takes flash attention, as on other GPUs.
torch.backends.cuda.enable_cudnn_sdp(False)

# cos and sin of every (token, channel), each (tokens, head_width)
Rotation = tuple[Tensor, Tensor]


class ScaleNorm(nn.Module):
    """x / |x| times one learned scale (arXiv 1910.05895)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(math.sqrt(dim)))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x.float(), dim=-1, eps=1e-6).to(x.dtype) * self.scale


def make_norm(cfg: NetConfig, level: Level) -> nn.Module:
    """Normalisation over the last dimension, which is the level's width."""
    return ScaleNorm(level.dim) if cfg.use_scalenorm else nn.LayerNorm(level.dim)


def axial_rotation(rows: Tensor, columns: Tensor, extent: tuple[int, int], width: int) -> Rotation:
    """Rotary tables (arXiv 2104.09864) for 2-D positions: half of a head turns with the row, half
    with the column.

    The frequencies are spaced geometrically from one radian a token, which tells neighbours apart,
    to half a turn over the whole grid, which tells the two ends apart; so they follow the grid
    instead of a sequence length that it does not have.

    Args:
        rows, columns: (tokens,) float positions in tokens.
        extent: (height, width) of the grid that the positions are measured on.
        width: head width, divisible by 4.

    Returns:
        (cos, sin), each (tokens, width) float32.
    """
    angles = []
    for position, size in zip((rows, columns), extent, strict=True):
        fade = torch.linspace(0, 1, width // 4, device=position.device)
        frequency = torch.exp(fade * math.log(math.pi / size))
        angles.append(position[:, None].float() * frequency)
    # Channel c and channel c + width/2 form the pair that turns by angle c.
    turn = torch.cat(angles, dim=-1).repeat(1, 2)
    return turn.cos(), turn.sin()


def grid_positions(grid: tuple[int, int], spacing: int = 1) -> tuple[Tensor, Tensor]:
    """Row and column of the centre of every cell of a grid, raster order, in units of tokens.

    Args:
        grid: (height, width) in cells.
        spacing: side of a cell in tokens.
    """
    centre = (spacing - 1) / 2
    rows, columns = (torch.arange(n) * spacing + centre for n in grid)
    return rows.repeat_interleave(grid[1]), columns.repeat(grid[0])


def rotate(x: Tensor, rotation: Rotation | None) -> Tensor:
    """Turn (..., tokens, head_width) by the tables, which are rounded to the type of x first."""
    if rotation is None:
        return x
    cos, sin = (table.to(x.dtype) for table in rotation)
    (first, second), (below, above) = x.chunk(2, dim=-1), sin.chunk(2, dim=-1)
    swapped = torch.cat((second, first), dim=-1)
    return torch.addcmul(x * cos, swapped, torch.cat((-below, above), dim=-1))


def at_positions(x: Tensor, positions: Tensor | None) -> Tensor:
    """(batch, tokens, dim), (batch, count) int64 -> (batch, count, dim); all of x for None."""
    return x if positions is None else x.take_along_dim(positions[..., None], dim=1)


def rotation_at(rotation: Rotation | None, positions: Tensor | None) -> Rotation | None:
    """Tables of some tokens, other ones in every row: each (batch, 1, count, head_width)."""
    if rotation is None or positions is None:
        return rotation
    cos, sin = rotation
    return cos[positions][:, None], sin[positions][:, None]


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """softmax(q k^T / sqrt(width)) v by torch's fused kernels, or by plain products where these are
    several times faster, or right.

    Args:
        q: (batch, heads, queries, width), k and v: (batch, heads, keys, width).
        mask: bool, broadcast to (batch, heads, queries, keys): which queries see which keys.
        dropout: probability with which a weight is left out.
    """
    if _plain(q, k):
        scores = (q * q.shape[-1] ** -0.5) @ k.mT
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        return F.dropout(scores.softmax(dim=-1), dropout) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)


def _plain(q: Tensor, k: Tensor) -> bool:
    """Whether to do without a kernel.

    On a CPU kernels are slow for short bfloat16 sequences. On a GPU they work on blocks of 64
    tokens or more, which a cell's one query and few keys leave empty, and flash attention takes no
    more than 65,535 sequences at once, so many cells as 256 samples of 32x32 tokens have.
    """
    if q.device.type == "cuda":
        return q.shape[-2] * k.shape[-2] <= _FEW
    return q.device.type == "cpu" and q.dtype == torch.bfloat16 and k.shape[-2] <= _SHORT


class Attention(nn.Module):
    """Multi-head attention, within a sequence or across two, through torch's fused kernels.

    Where the config has windows, each of them is a sequence of its own.
    """

    def __init__(
        self,
        cfg: NetConfig,
        level: Level,
        *,
        context_level: Level | None = None,
        shifted: bool = False,
    ) -> None:
        """Args:
        context_level: the level of another sequence, if keys and values come from there;
            queries then have a map of their own.
        shifted: displace the windows, if there are any, by half their side.
        """
        super().__init__()
        self.windows = Windows.of(level, context_level, shifted)
        self.heads, self.dropout = level.num_heads, cfg.attn_dropout
        dim, inner = level.dim, level.num_heads * cfg.head_width
        self.crosses = context_level is not None
        if context_level is not None:
            self.to_q = nn.Linear(dim, inner, bias=False)
            self.to_kv = nn.Linear(context_level.dim, 2 * inner, bias=False)
        else:
            self.to_qkv = nn.Linear(dim, 3 * inner, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=False)

    def _heads(self, x: Tensor) -> tuple[Tensor, ...]:
        """(batch, n, k * inner) -> k tensors (batch, heads, n, head_width)"""
        width = self.to_out.in_features
        parts = x.shape[-1] // width
        return rearrange(x, "b n (k h d) -> k b h n d", k=parts, h=self.heads).unbind()

    def _projected(
        self, x: Tensor, context: Tensor | None, positions: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (batch, heads, n, head_width)."""
        if not self.crosses and positions is None:
            q, k, v = self._heads(self.to_qkv(x))
            return q, k, v
        queries = at_positions(x, positions)
        if self.crosses:
            both = self.to_q(queries), self.to_kv(context)
        else:
            to_q, to_kv = self.to_qkv.weight.tensor_split((self.to_out.in_features,))
            both = F.linear(queries, to_q), F.linear(x, to_kv)
        (q,), (k, v) = map(self._heads, both)
        return q, k, v

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        q_rotation: Rotation | None = None,
        k_rotation: Rotation | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """x: (batch, queries, dim), context: (batch, keys, its dim) if it crosses -> shape of x, or
        (batch, count, dim) of the queries at positions (batch, count) only.
        """
        # Windows need their tokens side by side, so there all queries are computed.
        early, late = (positions, None) if self.windows is None else (None, positions)
        q, k, v = self._projected(x, context, early)
        q, k = rotate(q, rotation_at(q_rotation, early)), rotate(k, k_rotation)
        mask = None
        if self.windows is not None:
            q, k, v, mask = self.windows.split(q, k, v)
        dropout = self.dropout if self.training else 0.0
        attended = attend(q, k, v, mask, dropout)
        if self.windows is not None:
            attended = self.windows.join(attended)
        return self.to_out(at_positions(rearrange(attended, "b h n d -> b n (h d)"), late))


class FeedForward(nn.Module):
    """Two linear maps around a GELU, or around a SiLU gate with `use_glu`."""

    def __init__(self, cfg: NetConfig, level: Level) -> None:
        super().__init__()
        dim = level.dim
        self.gated = cfg.use_glu
        # Two thirds of the width keep the parameters equal when a third matrix comes in.
        hidden = int(dim * cfg.ff_mult * (2 / 3 if self.gated else 1))
        hidden = max(8, hidden // 8 * 8)
        self.up = nn.Linear(dim, hidden * (2 if self.gated else 1))
        self.down = nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(cfg.ff_dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., dim)"""
        if self.gated:
            value, gate = self.up(x).chunk(2, dim=-1)
            return self.down(self.dropout(value * F.silu(gate)))
        return self.down(self.dropout(F.gelu(self.up(x))))


class Layer(nn.Module):
    """Pre-norm attention and feed-forward, each added to the residual stream."""

    def __init__(
        self,
        cfg: NetConfig,
        level: Level,
        *,
        context_level: Level | None = None,
        shifted: bool = False,
    ) -> None:
        """See `Attention`; another sequence is normalised on its own."""
        super().__init__()
        self.attn_norm = make_norm(cfg, level)
        self.attn = Attention(cfg, level, context_level=context_level, shifted=shifted)
        self.context_norm = None if context_level is None else make_norm(cfg, context_level)
        self.ff_norm, self.ff = make_norm(cfg, level), FeedForward(cfg, level)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        q_rotation: Rotation | None = None,
        k_rotation: Rotation | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """x: (batch, queries, dim), context: (batch, keys, its dim) -> shape of x, or
        (batch, count, dim) at positions (batch, count), for which alone the rest is computed.
        """
        if self.context_norm is not None:
            context = self.context_norm(context)
        attended = self.attn(self.attn_norm(x), context, q_rotation, k_rotation, positions)
        x = at_positions(x, positions) + attended
        return x + self.ff(self.ff_norm(x))
