"""[net] of a run file, which is the network's configuration: its keys, and what they must meet."""

from __future__ import annotations

import math
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from annotated_types import Ge
from pydantic import AfterValidator, ConfigDict, Field, PlainValidator, Strict, model_validator
from pydantic.dataclasses import dataclass


class ConfigError(ValueError):
    """A key that contradicts another.

    Attributes:
        key: its dotted name, such as net.window.
        reason: what is wrong, and what to change.
    """

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"{key}: {reason}")
        self.key, self.reason = key, reason


def _parse_depth(value: Any) -> tuple[Any, ...]:
    """n or [n] becomes (n,); [pre, valley, post] may nest in its valley."""
    if type(value) is int and value >= 1:
        return (value,)
    if not isinstance(value, (list, tuple)) or len(value) not in (1, 3):
        raise ValueError
    if len(value) == 1:
        return _parse_depth(value[0])
    pre, valley, post = value
    if any(type(side) is not int or side < 0 for side in (pre, post)):
        raise ValueError
    inner = _parse_depth(valley)
    return pre, inner[0] if len(inner) == 1 else inner, post


def _parse_shorten_factor(value: Any) -> int | tuple[int, ...]:
    factors = value if isinstance(value, (list, tuple)) else [value]
    if not factors or any(type(f) is not int or f < 4 or math.isqrt(f) ** 2 != f for f in factors):
        raise ValueError
    return tuple(factors) if isinstance(value, (list, tuple)) else factors[0]


# (pre, valley, post), where the valley is an int or again a Depth; (n,) for a plain transformer.
Depth: TypeAlias = Annotated[tuple[Any, ...], PlainValidator(_parse_depth)]
Widths: TypeAlias = Annotated[tuple[Annotated[int, Ge(1)], ...], Strict(False)]
Sides: TypeAlias = Annotated[tuple[Annotated[int, Ge(0)], ...], Strict(False)]


@plain_dataclass(frozen=True)
class Level:
    """One grid of the network.

    Attributes:
        index: how many times it was shortened, 0 for the outermost.
        grid: (height, width) in tokens.
        cell: side of the square blocks that become one token of the next level; 1 for the last.
        layers: (before, after) the next level.
        dim: width of the residual stream.
        num_heads: attention heads.
        window: (height, width) of the windows of attention; None for full attention.
    """

    index: int
    grid: tuple[int, int]
    cell: int
    layers: tuple[int, int]
    dim: int
    num_heads: int
    window: tuple[int, int] | None


@dataclass(
    frozen=True,
    kw_only=True,
    config=ConfigDict(strict=True, extra="forbid", allow_inf_nan=False),
)
class NetConfig:
    """[net]: an hourglass transformer (arXiv 2110.13711) on a 2-D grid (arXiv 2206.12351)."""

    # A new key is declared here and read by the layer that it is for.

    section: ClassVar[str] = "net"

    dim: int = Field(ge=1, description="width of the residual stream")
    nb_heads: int = Field(ge=1, description="attention heads at that width")
    depth: Depth = Field(
        description="layers before, in and after the shortened part, which may be such a list "
        "again; one integer for 'transformer'",
        json_schema_extra={"expected": "[pre, valley, post], or one integer for 'transformer'"},
    )
    type: Annotated[
        Literal["hourglass", "transformer", "vanilla"],
        AfterValidator(lambda name: "transformer" if name == "vanilla" else name),
    ] = Field(
        default="hourglass",
        description="transformer with or without shortening; vanilla: transformer",
    )
    dims: Widths | None = Field(
        default=None,
        description="width on every grid, outermost first, the last one equal to dim; by default "
        "dim on all; heads are as wide on all of them",
    )
    window: Annotated[int, Ge(0)] | Sides | None = Field(
        default=None,
        description="side in tokens of the windows that attention stays within, moved by half a "
        "side in every second layer: of the outermost grid, or a list for all; 0: full attention",
    )
    dim_head: int | None = Field(
        default=None, ge=1, description="width of a head; by default dim / nb_heads"
    )
    shorten_factor: Annotated[int | tuple[int, ...], PlainValidator(_parse_shorten_factor)] = Field(
        default=4,
        description="tokens merged into one (4: blocks of 2x2), or a list with one for each level, "
        "outermost first",
        json_schema_extra={
            "expected": "a perfect square from 4 up (4 merges 2x2 tokens), or a list of them"
        },
    )
    resampling: Literal["linear", "average"] = Field(
        default="linear",
        description="between grids: a projection of the block, or its mean down and copies up",
    )
    attn_resampling: bool = Field(
        default=True,
        description="refine the result of resampling by attention across the two grids",
    )
    use_rotary: bool = Field(
        default=True, description="2-D rotary positions in every attention; else learned ones"
    )
    conditional: bool = Field(default=False, description="class-conditional training")
    num_classes: int = Field(default=0, ge=0, description="number of classes")
    class_dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="probability of the null class in training; above 0 for guidance",
    )
    ff_mult: float = Field(
        default=4.0, gt=0, description="hidden width of the feed-forward, times dim"
    )
    use_scalenorm: bool = Field(
        default=False, description="ScaleNorm (arXiv 1910.05895) in place of LayerNorm"
    )
    use_glu: bool = Field(
        default=False,
        description="gated feed-forward (SwiGLU, arXiv 2002.05202) of about as many parameters",
    )
    emb_dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout of embeddings")
    attn_dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout of attention weights")
    ff_dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout of the feed-forward")

    @model_validator(mode="after")
    def _check(self) -> NetConfig:
        self._check_depth()
        self._check_heads()
        self._check_classes()
        self._check_dims()
        if self.window is not None and len(self.windows) not in (0, self.num_levels + 1):
            raise ConfigError(
                "net.window",
                f"{len(self.windows)} sides for the {self.num_levels + 1} grids of net.depth; give "
                "one for each, outermost first, or one integer for the outermost alone",
            )
        return self

    def _check_depth(self) -> None:
        entries, words = {
            "hourglass": (3, "[pre, valley, post], for example [2, 10, 2]"),
            "transformer": (1, "one integer, the number of layers"),
        }[self.type]
        if len(self.depth) != entries:
            raise ConfigError(
                "net.depth", f"net.type = '{self.type}' expects {words}, got {list(self.depth)}"
            )
        if self.num_levels and len(self.shorten_factors) != self.num_levels:
            raise ConfigError(
                "net.shorten_factor",
                f"{len(self.shorten_factors)} factors for the {self.num_levels} levels of "
                "net.depth; give one integer, or one for each level",
            )

    def _check_heads(self) -> None:
        if self.dim_head is None and self.dim % self.nb_heads:
            raise ConfigError(
                "net.nb_heads",
                f"{self.nb_heads} does not divide net.dim = {self.dim}; choose a divisor of it or "
                "set net.dim_head",
            )
        if self.use_rotary and self.head_width % 4:
            raise ConfigError(
                "net.dim_head" if self.dim_head else "net.nb_heads",
                f"heads are {self.head_width} wide but net.use_rotary needs a multiple of 4 (pairs "
                "of values for two axes); change one of them",
            )

    def _check_classes(self) -> None:
        if self.conditional and not self.num_classes:
            raise ConfigError(
                "net.num_classes",
                "is missing or 0 but net.conditional is true; say how many classes the data has",
            )
        if self.num_classes and not self.conditional:
            raise ConfigError(
                "net.num_classes",
                f"{self.num_classes} classes but net.conditional is false; set it to true or drop "
                "num_classes",
            )
        if self.class_dropout and not self.conditional:
            raise ConfigError(
                "net.class_dropout",
                "there is no class to hide, net.conditional is false; set it to true or drop "
                "class_dropout",
            )

    def _check_dims(self) -> None:
        if self.dims is None:
            return
        if len(self.dims) != self.num_levels + 1:
            raise ConfigError(
                "net.dims",
                f"{len(self.dims)} widths for the {self.num_levels + 1} grids of net.depth; give "
                "one for each, outermost first",
            )
        if self.dims[-1] != self.dim:
            raise ConfigError(
                "net.dims",
                f"the valley is {self.dims[-1]} wide but net.dim is {self.dim}; make them equal",
            )
        for width in self.dims:
            if self.nb_heads * width % self.dim:
                raise ConfigError(
                    "net.dims",
                    f"a width of {width} has no whole number of heads when net.dim = {self.dim} "
                    f"has net.nb_heads = {self.nb_heads}; choose a multiple of "
                    f"{self.dim // math.gcd(self.dim, self.nb_heads)}",
                )
        if self.resampling == "average" and len(set(self.dims)) > 1:
            raise ConfigError(
                "net.dims",
                "net.resampling = 'average' cannot change the width; use 'linear', or one width "
                "for all grids",
            )

    def check_grid(self, grid: tuple[int, int]) -> None:
        """Check what depends on the (height, width) in tokens.

        Raises:
            ConfigError: blocks or windows that do not divide a grid, or windows that are too small.
        """
        side = 1
        for factor in self.shorten_factors:
            side *= math.isqrt(factor)
            if any(size % side for size in grid):
                raise ConfigError(
                    "net.shorten_factor",
                    f"blocks of {side}x{side} tokens do not divide the {grid[0]}x{grid[1]} grid; "
                    "choose a smaller factor or fewer levels",
                )
        for level, window in zip(self.levels(grid), self.windows):
            if level.window is not None:
                self._check_window(level, level.window, window)

    def _check_window(self, level: Level, shape: tuple[int, int], side: int) -> None:
        if side % 2:
            raise ConfigError(
                "net.window",
                f"expected an even side, got {side}; every second layer moves its windows by half "
                "of it",
            )
        if any(size % part for size, part in zip(level.grid, shape)):
            raise ConfigError(
                "net.window",
                f"windows of {side}x{side} tokens do not divide the {level.grid[0]}x"
                f"{level.grid[1]} grid; choose another side, or 0 for full attention",
            )
        cell = level.cell if self.attn_resampling else 1
        if cell > 1 and (any(part % cell for part in shape) or math.prod(shape) < 4 * cell**2):
            raise ConfigError(
                "net.window",
                f"a window of {side}x{side} tokens must hold at least 2x2 whole blocks of the "
                f"{cell}x{cell} that net.shorten_factor merges; choose a multiple of {cell} from "
                f"{2 * cell} up",
            )

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.dim_head or self.dim // self.nb_heads

    @property
    def null_class(self) -> int | None:
        """Number of the class that stands for a hidden one (arXiv 2207.12598), if it is learned."""
        return self.num_classes if self.class_dropout > 0 else None

    @property
    def layers(self) -> tuple[tuple[int, int], ...]:
        """(before, after) the next grid for every grid, outermost first."""
        found, depth = [], self.depth
        while len(depth) == 3:
            before, valley, after = depth
            found.append((before, after))
            depth = valley if isinstance(valley, tuple) else (valley,)
        return (*found, (depth[0], 0))

    @property
    def num_levels(self) -> int:
        """How many times the grid is shortened."""
        return len(self.layers) - 1

    @property
    def num_layers(self) -> int:
        """Residual layers on the longest path, resampling layers included."""
        return sum(map(sum, self.layers)) + 2 * self.num_levels

    @property
    def shorten_factors(self) -> tuple[int, ...]:
        """One factor for each level of shortening, outermost first; empty for a transformer."""
        if isinstance(self.shorten_factor, tuple) and self.num_levels:
            return self.shorten_factor
        return (self.shorten_factor,) * self.num_levels  # type: ignore[return-value]

    @property
    def windows(self) -> tuple[int, ...]:
        """The side of windows on every grid, outermost first; empty for full attention on all."""
        if isinstance(self.window, int):
            return (self.window, *(0,) * self.num_levels)
        return self.window or ()

    def levels(self, grid: tuple[int, int]) -> tuple[Level, ...]:
        """Every grid of the network, outermost first, for tokens of (height, width)."""
        found: list[Level] = []
        height, width = grid
        for index, (layers, factor) in enumerate(zip(self.layers, (*self.shorten_factors, 1))):
            cell, dim = math.isqrt(factor), self.dims[index] if self.dims else self.dim
            side = self.windows[index] if self.windows else 0
            window = (min(side, height), min(side, width))
            found.append(
                Level(
                    index=index,
                    grid=(height, width),
                    cell=cell,
                    layers=layers,
                    dim=dim,
                    num_heads=self.nb_heads * dim // self.dim,
                    window=window if 0 < side < max(height, width) else None,
                )
            )
            height, width = height // cell, width // cell
        return tuple(found)
