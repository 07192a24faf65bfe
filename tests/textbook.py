"""The method as on a blackboard: slow and plain, the reference for the fast one.

The same maths on the same parameters as `hourglass_transformer` and `sundae`, from scratch:
float32, attention with its whole softmax matrix, whole logits, `torch.distributions.Categorical`,
random masks drawn on the CPU and copied, all unroll steps in one graph, AdamW one tensor after the
other. `Textbook.around(net)` shares a network's parameters; `load_state_dict` takes its state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Categorical

from hourglass_transformer import HourglassTransformer, NetConfig
from hourglass_transformer.config import Level
from sundae.config.keys import keys_of

# logits (batch, length, vocab) -> tokens (batch, length)
Draw = Callable[[Tensor], Tensor]

_TAUGHT = set(
    "dim nb_heads depth type shorten_factor dim_head conditional num_classes class_dropout "
    "use_rotary resampling attn_resampling use_scalenorm use_glu ff_mult attn_dropout ff_dropout "
    "emb_dropout".split()
)


# -- the network ----------------------------------------------------------------------------------


class ScaleNorm(nn.Module):
    """A vector's direction times one learned length (arXiv 1910.05895)."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        length = x.pow(2).sum(-1, keepdim=True).sqrt()
        return x / length.clamp(min=1e-6) * self.scale


class LayerNorm(nn.Module):
    """Mean 0 and variance 1 over the channels, then a learned scale and shift of each."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        deviation = (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
        return centred / deviation * self.weight + self.bias


def norm_of(cfg: NetConfig) -> nn.Module:
    """The normalisation of a config."""
    return ScaleNorm() if cfg.use_scalenorm else LayerNorm(cfg.dim)


def turning_angles(rows: Tensor, columns: Tensor, cfg: NetConfig, level: Level) -> Tensor:
    """By how many radians each pair of channels turns (arXiv 2104.09864), in two dimensions.

    A quarter of the channels' pairs turn with the row, a quarter with the column; from one radian a
    token to half a turn over the whole grid of the level.

    Args:
        rows, columns: (...) positions in tokens of the level's grid.

    Returns:
        (..., head_width / 2)
    """
    count = cfg.head_width // 4
    angles = []
    for position, extent in zip((rows, columns), level.grid):
        steps = torch.arange(count, device="cpu") / max(1, count - 1)
        angles.append(position[..., None] * (math.pi / extent) ** steps)
    return torch.cat(angles, dim=-1)


def turn(x: Tensor, angles: Tensor | None) -> Tensor:
    """Channel c and channel c + width/2 are a point in the plane; turn it by angle c.

    x: (..., heads, n, width), angles: (..., n, width / 2)
    """
    if angles is None:
        return x
    first, second = x.chunk(2, dim=-1)
    cos, sin = angles[..., None, :, :].cos(), angles[..., None, :, :].sin()
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Attention(nn.Module):
    """softmax(q k / sqrt(width)) v for every head, the matrix of all weights written out."""

    def __init__(self, cfg: NetConfig, crosses: bool) -> None:
        super().__init__()
        self.heads, self.width, self.crosses = cfg.nb_heads, cfg.head_width, crosses
        inner = cfg.nb_heads * cfg.head_width
        if crosses:
            self.to_q = nn.Linear(cfg.dim, inner, bias=False)
            self.to_kv = nn.Linear(cfg.dim, 2 * inner, bias=False)
        else:
            self.to_qkv = nn.Linear(cfg.dim, 3 * inner, bias=False)
        self.dropout = nn.Dropout(cfg.attn_dropout)
        self.to_out = nn.Linear(inner, cfg.dim, bias=False)

    def split(self, x: Tensor) -> Tensor:
        """(..., n, heads * width) -> (..., heads, n, width)"""
        return x.unflatten(-1, (self.heads, self.width)).transpose(-2, -3)

    def forward(
        self, x: Tensor, context: Tensor, x_angles: Tensor | None, context_angles: Tensor | None
    ) -> Tensor:
        """x: (..., queries, dim), context: (..., keys, dim) -> shape of x."""
        if self.crosses:
            q, (k, v) = self.to_q(x), self.to_kv(context).chunk(2, dim=-1)
        else:
            q, k, v = self.to_qkv(x).chunk(3, dim=-1)
        q, k, v = turn(self.split(q), x_angles), turn(self.split(k), context_angles), self.split(v)
        scores = torch.einsum("...id,...jd->...ij", q, k) / math.sqrt(self.width)
        weights = self.dropout(scores.softmax(dim=-1))
        mixed = torch.einsum("...ij,...jd->...id", weights, v)
        return self.to_out(mixed.transpose(-2, -3).flatten(-2))


class FeedForward(nn.Module):
    """Up, GELU, down; or up twice, one of them as a gate (arXiv 2002.05202), down."""

    def __init__(self, cfg: NetConfig) -> None:
        super().__init__()
        self.gated = cfg.use_glu
        target = int(cfg.dim * cfg.ff_mult * (2 / 3 if cfg.use_glu else 1))
        hidden = max(8, target - target % 8)
        self.up = nn.Linear(cfg.dim, 2 * hidden if cfg.use_glu else hidden)
        self.down = nn.Linear(hidden, cfg.dim)
        self.dropout = nn.Dropout(cfg.ff_dropout)

    def forward(self, x: Tensor) -> Tensor:
        if self.gated:
            value, gate = self.up(x).chunk(2, dim=-1)
            hidden = value * gate * torch.sigmoid(gate)
        else:
            hidden = nn.functional.gelu(self.up(x))
        return self.down(self.dropout(hidden))


class Layer(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, cfg: NetConfig, crosses: bool = False) -> None:
        super().__init__()
        self.attn_norm, self.attn = norm_of(cfg), Attention(cfg, crosses)
        self.context_norm = norm_of(cfg) if crosses else None
        self.ff_norm, self.ff = norm_of(cfg), FeedForward(cfg)

    def forward(
        self,
        x: Tensor,
        x_angles: Tensor | None,
        context: Tensor | None = None,
        context_angles: Tensor | None = None,
    ) -> Tensor:
        normed = self.attn_norm(x)
        if self.context_norm is not None:
            x = x + self.attn(normed, self.context_norm(context), x_angles, context_angles)
        else:
            x = x + self.attn(normed, normed, x_angles, x_angles)
        return x + self.ff(self.ff_norm(x))


class Resampling(nn.Module):
    """What both directions have: cells of side x side tokens, and maybe a layer across levels."""

    def __init__(self, cfg: NetConfig, level: Level, ends: tuple[int, int]) -> None:
        super().__init__()
        self.grid, self.side = level.grid, level.cell
        linear = cfg.resampling == "linear"
        self.project = nn.Linear(*(cfg.dim * end for end in ends)) if linear else None
        self.layer = Layer(cfg, crosses=True) if cfg.attn_resampling else None

    def to_cells(self, x: Tensor) -> Tensor:
        """(..., h*w, n) -> (..., cells, side*side, n)"""
        height, width = (extent // self.side for extent in self.grid)
        x = x.unflatten(-2, (height, self.side, width, self.side))
        return x.transpose(-3, -4).flatten(-3, -2).flatten(-4, -3)

    def from_cells(self, cells: Tensor) -> Tensor:
        """(..., cells, side*side, n) -> (..., h*w, n)"""
        height, width = (extent // self.side for extent in self.grid)
        cells = cells.unflatten(-3, (height, width)).unflatten(-2, (self.side, self.side))
        return cells.transpose(-3, -4).flatten(-5, -2)


class Downsample(Resampling):
    """One token a cell: a linear map or the mean of its tokens; then it looks at those tokens."""

    def __init__(self, cfg: NetConfig, level: Level) -> None:
        super().__init__(cfg, level, (level.cell**2, 1))

    def forward(self, fine: Tensor, angles: Tensor | None, coarse_angles: Tensor | None) -> Tensor:
        cells = self.to_cells(fine)
        coarse = cells.mean(-2) if self.project is None else self.project(cells.flatten(-2))
        if self.layer is None:
            return coarse
        if angles is not None and coarse_angles is not None:
            angles, coarse_angles = self.to_cells(angles), coarse_angles[:, None]
        return self.layer(coarse[..., None, :], coarse_angles, cells, angles).squeeze(-2)


class Upsample(Resampling):
    """Each token of a cell from the cell's one; then all look at the whole coarse grid."""

    def __init__(self, cfg: NetConfig, level: Level) -> None:
        super().__init__(cfg, level, (1, level.cell**2))

    def forward(
        self, coarse: Tensor, skip: Tensor, angles: Tensor | None, coarse_angles: Tensor | None
    ) -> Tensor:
        count = self.side**2
        if self.project is None:
            cells = coarse[..., None, :].expand(*coarse.shape[:-1], count, -1)
        else:
            cells = self.project(coarse).unflatten(-1, (count, -1))
        fine = skip + self.from_cells(cells)
        return fine if self.layer is None else self.layer(fine, angles, coarse, coarse_angles)


class Stage(nn.Module):
    """Layers, a shorter stage between them, layers (arXiv 2110.13711); or layers only."""

    def __init__(self, cfg: NetConfig, level: Level, *coarser: Level) -> None:
        super().__init__()
        before, after = level.layers
        self.before = nn.ModuleList(Layer(cfg) for _ in range(before))
        self.after = nn.ModuleList(Layer(cfg) for _ in range(after))
        self.down: Downsample | None = None
        if coarser:
            self.down, self.up = Downsample(cfg, level), Upsample(cfg, level)
            self.valley = Stage(cfg, *coarser)
        self.register_buffer("angles", self.angles_of(cfg, level, 1), persistent=False)
        self.register_buffer(
            "coarse_angles", self.angles_of(cfg, level, level.cell), persistent=False
        )

    @staticmethod
    def angles_of(cfg: NetConfig, level: Level, side: int) -> Tensor | None:
        """(cells, head_width / 2): of the centres of all cells of a side, in raster order."""
        if not cfg.use_rotary:
            return None
        height, width = (extent // side for extent in level.grid)
        centre = (side - 1) / 2
        rows = torch.arange(height, device="cpu")[:, None] * side + centre
        columns = torch.arange(width, device="cpu")[None, :] * side + centre
        rows, columns = torch.broadcast_tensors(rows, columns)
        return turning_angles(rows.flatten(), columns.flatten(), cfg, level)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, h*w, dim) -> (batch, h*w, dim)"""
        for layer in self.before:
            x = layer(x, self.angles)
        if self.down is not None:
            coarse = self.valley(self.down(x, self.angles, self.coarse_angles))
            x = self.up(coarse, x, self.angles, self.coarse_angles)
        for layer in self.after:
            x = layer(x, self.angles)
        return x


class Textbook(nn.Module):
    """Tokens (and classes) to logits; its state is that of an HourglassTransformer of the config.

    Raises:
        ValueError: the config has a setting that this does not teach.
    """

    def __init__(self, cfg: NetConfig, *, vocab_size: int, grid: tuple[int, int]) -> None:
        super().__init__()
        check_taught(cfg)
        self.cfg = cfg
        classes = cfg.num_classes + (cfg.null_class is not None)
        self.token_embedding = nn.Embedding(vocab_size, cfg.dim)
        self.class_embedding = nn.Embedding(classes, cfg.dim) if cfg.num_classes else None
        length = grid[0] * grid[1]
        self.position = None if cfg.use_rotary else nn.Parameter(torch.zeros(length, cfg.dim))
        self.dropout = nn.Dropout(cfg.emb_dropout)
        self.stage = Stage(cfg, *cfg.levels(grid))
        self.norm = norm_of(cfg)
        self.to_logits = nn.Linear(cfg.dim, vocab_size)

    @classmethod
    def around(cls, net: HourglassTransformer) -> Textbook:
        """The textbook with a network's own parameters, not copies."""
        with torch.device("meta"):
            textbook = cls(net.cfg, vocab_size=net.vocab_size, grid=net.grid)
        textbook.load_state_dict(net.state_dict(keep_vars=True), assign=True)
        return textbook.to(net.to_logits.weight.device).train(net.training)

    def forward(self, tokens: Tensor, classes: Tensor | None = None) -> Tensor:
        """tokens: (batch, length) int64, classes: (batch,) int64 -> (batch, length, vocab)"""
        x = self.token_embedding(tokens)
        if self.class_embedding is not None:
            x = x + self.class_embedding(classes)[:, None]
        if self.position is not None:
            x = x + self.position
        return self.to_logits(self.norm(self.stage(self.dropout(x))))


def check_taught(cfg: NetConfig) -> None:
    """Raises ValueError for a config with a setting that is newer than the textbook."""
    for name, key in keys_of(NetConfig).items():
        value = getattr(cfg, name)
        if name not in _TAUGHT and value != key.default:
            raise ValueError(f"the textbook has no {name} = {value!r}")


# -- the objective --------------------------------------------------------------------------------


def categorical(logits: Tensor) -> Tensor:
    """One token a position."""
    return Categorical(logits=logits).sample()


def corrupted(tokens: Tensor, vocab_size: int) -> Tensor:
    """Replace a share of each sample's tokens by uniform ones; shares spread evenly over [0, 1]."""
    batch = len(tokens)
    rates = (torch.randperm(batch) + torch.rand(batch)) / batch
    chosen = torch.rand(tokens.shape) < rates[:, None]
    noise = torch.randint(vocab_size, tokens.shape)
    return torch.where(chosen.to(tokens.device), noise.to(tokens.device), tokens)


def unrolled_loss(
    net: nn.Module,
    clean: Tensor,
    noisy: Tensor,
    classes: Tensor | None,
    unroll_steps: int,
    draw: Draw = categorical,
) -> Tensor:
    """Mean cross-entropy of all unroll steps (arXiv 2112.06749), one graph for all of them.

    Args:
        clean, noisy: (batch, length) int64.
    """
    losses = []
    for _ in range(unroll_steps):
        logits = net(noisy, classes)
        losses.append(nn.functional.cross_entropy(logits.flatten(0, 1), clean.flatten()))
        with torch.no_grad():
            noisy = draw(logits)
    return torch.stack(losses).mean()


def adamw(
    net: nn.Module, learning_rate: float, betas: tuple[float, float], decay: float
) -> torch.optim.AdamW:
    """AdamW, tensor by tensor; matrices decay, embeddings and vectors do not."""
    embeddings = {m.weight for m in net.modules() if isinstance(m, nn.Embedding)}
    matrices = [p for p in net.parameters() if p.ndim >= 2 and p not in embeddings]
    others = [p for p in net.parameters() if p.ndim < 2 or p in embeddings]
    groups = [
        {"params": matrices, "weight_decay": decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, foreach=False, fused=False)


def training_step(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    tokens: Tensor,
    classes: Tensor | None,
    *,
    vocab_size: int,
    unroll_steps: int,
    clip: float | None,
) -> Tensor:
    """Corrupt, unroll, go backward once, clip, update; returns the loss."""
    noisy = corrupted(tokens, vocab_size)
    loss = unrolled_loss(net, tokens, noisy, classes, unroll_steps)
    loss.backward()
    if clip is not None:
        nn.utils.clip_grad_norm_(net.parameters(), clip, foreach=False)
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


# -- sampling -------------------------------------------------------------------------------------


class Chance:
    """What sampling leaves to chance. Tests replace it by noise of their own."""

    def start(self, batch: int, length: int, vocab_size: int) -> Tensor:
        """(batch, length) int64, uniform."""
        return torch.randint(vocab_size, (batch, length))

    def priorities(self, step: int, batch: int, length: int) -> Tensor:
        """(batch, length) float: the lowest ones are updated."""
        return torch.rand(batch, length)

    def draw(self, step: int, logits: Tensor) -> Tensor:
        """(batch, length, vocab) -> (batch, length)"""
        return categorical(logits)


@torch.no_grad()
def sample(
    net: nn.Module,
    batch: int,
    classes: Tensor | None,
    *,
    length: int,
    vocab_size: int,
    temperatures: Sequence[float],
    proportions: Sequence[float],
    chance: Chance | None = None,
) -> Tensor:
    """Refine noise (arXiv 2206.12351), one step for each temperature and proportion.

    In a step every token gets a fresh draw, and a random share of the tokens takes it.

    Returns:
        (batch, length) int64
    """
    chance = chance or Chance()
    device = next(net.parameters()).device
    tokens = chance.start(batch, length, vocab_size).to(device)
    for step, (temperature, proportion) in enumerate(zip(temperatures, proportions, strict=True)):
        drawn = chance.draw(step, net(tokens, classes) / temperature)
        chosen = lowest(chance.priorities(step, batch, length), proportion).to(device)
        tokens = torch.where(chosen, drawn, tokens)
    return tokens


def lowest(priorities: Tensor, proportion: float) -> Tensor:
    """(batch, length) bool: a share of each row, the lowest; at least one unless the share is 0."""
    length = priorities.shape[1]
    count = max(1, round(proportion * length)) if proportion else 0
    places = priorities.argsort(dim=1, stable=True)[:, :count]
    return torch.zeros_like(priorities, dtype=torch.bool).scatter_(1, places, True)
