"""The sections of a run file as frozen dataclasses: every key, its type, limits and default."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sundae.common.precision import Precision
from sundae.config.schema import key, plain

Depth = tuple["int | Depth", ...]
OptimizerName = Literal["adam", "adamw", "adamax", "sgd", "rmsprop"]
ScheduleName = Literal[
    "constant",
    "constant_with_warmup",
    "linear",
    "linear_with_warmup",
    "cosine",
    "cosine_with_warmup",
    "cosine_with_restarts_with_warmup",
    "polynomial",
    "polynomial_with_warmup",
]
StrategyName = Literal["random", "confidence", "halton", "argmax", "renoise"]
StrategyChoice = Literal["auto", StrategyName]
CurveName = Literal["linear", "cosine", "constant"]

# Steps up to which the strategy 'auto' is 'renoise'. On the digits that is best with 4, 8 and 16
# steps and within the spread of the best with 12; docs/sampling.md has the table.
FEW_STEPS = 16


def interpolate(curve: CurveName, start: float, end: float, progress: float) -> float:
    """A value on its way from `start` to `end`.

    Args:
        curve: 'linear'; 'cosine', half a wave, slow at both ends; or 'constant', the start whatever
            the end.
        progress: in [0, 1].
    """
    if curve == "constant":
        return start
    share = progress if curve == "linear" else (1 - math.cos(math.pi * progress)) / 2
    return start + (end - start) * share


def _parse_latent_shape(value: Any) -> tuple[int, int]:
    """[h, w], or [1, h, w] as older files write it."""
    sides = tuple(value) if isinstance(value, (list, tuple)) else ()
    if len(sides) == 3 and sides[0] == 1:
        sides = sides[1:]
    if len(sides) != 2 or any(type(side) is not int or side < 1 for side in sides):
        raise ValueError(value)
    return sides[0], sides[1]


def _parse_depth(value: Any) -> Depth:
    """n or [n] becomes (n,); [pre, valley, post] may nest in its valley."""
    if type(value) is int and value >= 1:
        return (value,)
    if not isinstance(value, (list, tuple)):
        raise ValueError(value)
    if len(value) == 1:
        return _parse_depth(value[0])
    pre, valley, post = value
    if any(type(side) is not int or side < 0 for side in (pre, post)):
        raise ValueError(value)
    inner = _parse_depth(valley)
    return pre, inner[0] if len(inner) == 1 else inner, post


def _parse_shorten_factor(value: Any) -> int | tuple[int, ...]:
    """A perfect square, or a list of them: how many cells of a square block become one."""
    factors = value if isinstance(value, (list, tuple)) else [value]
    if not factors or any(type(f) is not int or f < 4 or math.isqrt(f) ** 2 != f for f in factors):
        raise ValueError(value)
    return tuple(factors) if isinstance(value, (list, tuple)) else factors[0]


_SHAPE: dict[str, Any] = {
    "parse": _parse_latent_shape,
    "expected": "[height, width] in tokens, two integers at least 1",
}


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """[trainer]: ptpt's vocabulary for the training loop, plus what ptpt leaves out.

    `nb_batches` is (training batches between evaluations, batches of an evaluation), 0 = all there
    are. `metric_best` names a metric and whether less ('des') or more ('asc') of it is better.
    """

    exp_name: str = key("exp")
    exp_dir: Path = key(Path("exp"))
    batch_size: int = key(at_least=1)
    mini_batch_size: int | None = key(None, at_least=1)  # None: the whole batch at once
    nb_batches: tuple[int, int] = key((0, 0), at_least=0)
    max_steps: int = key(0, at_least=0)  # optimiser steps; 0: until stopped
    learning_rate: float = key(1e-4, above=0)
    lr_scheduler_name: ScheduleName = key("constant")
    lr_scheduler_kwargs: dict[str, Any] = key(dict)
    optimizer_name: OptimizerName = key("adamw", aliases={"rms": "rmsprop"})
    weight_decay: float = key(0.01, at_least=0)  # in a file: 0 unless the optimiser is adamw
    betas: tuple[float, float] = key((0.9, 0.999), at_least=0, below=1)
    grad_none: bool = key(True)
    clip_grad: bool = key(False)
    clip_grad_value: float = key(5.0, above=0)
    ema_decay: float = key(0.999, at_least=0, below=1)  # 0: no average
    nb_workers: int = key(0, at_least=0)
    use_cuda: bool = key(True)
    precision: Precision = key("auto")
    use_amp: bool = key(True)  # false: precision is "fp32", as older files say it
    gradient_checkpointing: bool = key(False)  # recompute in the backward pass: less memory, slower
    # torch.compile the networks in training, where the first step then takes long; None: on CUDA
    compile: bool | None = key(None)
    save_outputs: bool = key(True)
    checkpoint_frequency: int = key(5000, at_least=0)  # optimiser steps; 0: only the best
    checkpoint_best: bool = key(True)
    keep_checkpoints: int = key(3, at_least=0)  # periodic ones kept; 0: all
    metric_names: tuple[str, ...] = key(())
    metric_best: tuple[str, str] = key(("loss", "des"))

    @property
    def arithmetic(self) -> Precision:
        """The precision of training, `use_amp` included."""
        return self.precision if self.use_amp else "fp32"


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """[data]: token data on disk, either one folder to split or two folders already split.

    `split_sizes` is (train, eval) as two fractions or two counts. `latent_shape` is needed only for
    grids that are not square and have no [vqgan] section.
    """

    vocab_size: int = key(at_least=2)
    sequence_length: int = key(at_least=1)
    root: Path | None = key(None)
    split_sizes: tuple[int, int] | tuple[float, float] | None = key(
        None, above=0, expected="[train, eval], two fractions or two counts above 0"
    )
    train_root: Path | None = key(None)
    eval_root: Path | None = key(None)
    latent_shape: tuple[int, int] | None = key(None, **_SHAPE)


@dataclass(frozen=True, kw_only=True)
class VQGANConfig:
    """[vqgan]: the codec of the latents. Without this section tokens are grey levels of pixels.

    `input_range` and `distance` tell the codec's loader what some checkpoints do not say.
    """

    checkpoint: Path = key()
    config: Path | None = key(None)
    latent_shape: tuple[int, int] | None = key(None, **_SHAPE)
    input_range: str | None = key(None)
    distance: str | None = key(None)


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """[sampling]: defaults of sample.py and of the pictures made during training.

    An `end_` that is not given equals the start. `guidance` other than 1 needs a network that was
    trained with net.class_dropout above 0.
    """

    steps: int = key(100, at_least=1)
    nb_samples: int = key(16, at_least=1)
    temperature: float = key(1.0, at_least=0)
    end_temperature: float | None = key(None, at_least=0)
    temperature_curve: CurveName = key("linear")
    sample_proportion: float = key(0.5, at_least=0, at_most=1)
    end_sample_proportion: float | None = key(None, at_least=0, at_most=1)
    proportion_curve: CurveName = key("linear")
    min_steps: int = key(10, at_least=0)
    early_stop: bool = key(True)
    strategy: StrategyChoice = key("auto")  # see resolved_strategy
    choice_temperature: float = key(1.0, at_least=0)  # of the strategy 'confidence'
    guidance: float = key(1.0, at_least=0)  # 1: the network's own prediction
    end_guidance: float | None = key(None, at_least=0)
    guidance_curve: CurveName = key("linear")
    top_k: int = key(0, at_least=0)  # 0: all codes
    top_p: float = key(1.0, above=0, at_most=1)  # 1: all codes
    compile: bool | None = key(None)  # torch.compile the steps; on CUDA where it pays unless given

    @property
    def temperature_ramp(self) -> tuple[float, float]:
        """Temperature of the first and the last step."""
        end = self.end_temperature
        return self.temperature, self.temperature if end is None else end

    @property
    def proportion_ramp(self) -> tuple[float, float]:
        """Proportion of tokens that take a new value in the first and the last step."""
        end = self.end_sample_proportion
        return self.sample_proportion, self.sample_proportion if end is None else end

    @property
    def guidance_ramp(self) -> tuple[float, float]:
        """Guidance of the first and the last step."""
        return self.guidance, self.guidance if self.end_guidance is None else self.end_guidance

    @property
    def is_guided(self) -> bool:
        """Whether any step has guidance, and so two forward passes."""
        return self.guidance_ramp != (1, 1)

    def temperature_at(self, step: int) -> float:
        """Temperature of step 0 .. steps-1."""
        return interpolate(self.temperature_curve, *self.temperature_ramp, self._progress(step))

    def proportion_at(self, step: int) -> float:
        """Proportion of tokens that take a new value in step 0 .. steps-1."""
        return interpolate(self.proportion_curve, *self.proportion_ramp, self._progress(step))

    def guidance_at(self, step: int) -> float:
        """Guidance of step 0 .. steps-1."""
        return interpolate(self.guidance_curve, *self.guidance_ramp, self._progress(step))

    def choice_temperature_at(self, step: int) -> float:
        """Choice temperature of step 0 .. steps-1; it would be 0 one step later."""
        return self.choice_temperature * (1 - step / self.steps)

    def _progress(self, step: int) -> float:
        """0 in the first step, 1 in the last."""
        return step / max(1, self.steps - 1)

    @property
    def resolved_strategy(self) -> StrategyName:
        """The strategy by its name, also where the key is 'auto'.

        'auto' is 'renoise' up to FEW_STEPS steps and 'random', the paper's, above. It is 'random'
        also where the proportion falls to 0: the last step, which renews everything in 'renoise',
        would then do nothing.
        """
        if self.strategy != "auto":
            return self.strategy
        few = self.steps <= FEW_STEPS and self.proportion_ramp[1] > 0
        return "renoise" if few else "random"


@dataclass(frozen=True, kw_only=True)
class NetConfig:
    """[net]: the network.

    `depth` is (pre, valley, post), where the valley may nest, or (n,) for type 'transformer'.
    `shorten_factor` counts the tokens merged into one, so 4 means blocks of 2x2; a tuple gives one
    factor for each level of nesting, outermost first.

    `dims` gives the residual stream a width of its own on every grid, outermost first; the valley's
    comes last and is `dim`, which every grid has unless `dims` is given. Heads are as wide on all
    of them, so there are nb_heads * width / dim of them.

    `window` is the side in tokens of the windows that attention stays within: one integer for the
    outermost grid alone, or a list for every grid, outermost first, 0 for full attention. Every
    second layer moves its windows by half a side.
    """

    dim: int = key(at_least=1)
    nb_heads: int = key(at_least=1)
    depth: Depth = key(
        parse=_parse_depth, expected="[pre, valley, post], or one integer for 'transformer'"
    )
    type: Literal["hourglass", "transformer"] = key("hourglass", aliases={"vanilla": "transformer"})
    dims: tuple[int, ...] | None = key(None, at_least=1)
    window: int | tuple[int, ...] | None = key(None, at_least=0)
    dim_head: int | None = key(None, at_least=1)
    shorten_factor: int | tuple[int, ...] = key(
        4,
        parse=_parse_shorten_factor,
        expected="a perfect square from 4 up (4 merges 2x2 tokens), or a list of them",
    )
    resampling: Literal["linear", "average"] = key("linear")
    attn_resampling: bool = key(True)
    use_rotary: bool = key(True)
    conditional: bool = key(False)
    num_classes: int = key(0, at_least=0)
    class_dropout: float = key(0.0, at_least=0, below=1)  # chance to hide it; above 0 for guidance
    ff_mult: float = key(4.0, above=0)  # hidden width of the feed-forward, times dim
    use_scalenorm: bool = key(False)
    use_glu: bool = key(False)
    emb_dropout: float = key(0.0, at_least=0, below=1)
    attn_dropout: float = key(0.0, at_least=0, below=1)
    ff_dropout: float = key(0.0, at_least=0, below=1)

    @property
    def shorten_factors(self) -> tuple[int, ...]:
        """One factor for each level of the hourglass, outermost first; empty for a transformer."""
        if isinstance(self.shorten_factor, tuple):
            return self.shorten_factor
        return (self.shorten_factor,) * self.nb_levels

    @property
    def windows(self) -> tuple[int, ...]:
        """The side of windows on every grid, outermost first; empty for full attention on all."""
        if isinstance(self.window, int):
            return (self.window, *(0,) * self.nb_levels)
        return self.window or ()

    @property
    def nb_levels(self) -> int:
        """How many times the grid is shortened."""
        levels, depth = 0, self.depth
        while len(depth) == 3:
            levels += 1
            valley = depth[1]
            depth = valley if isinstance(valley, tuple) else (valley,)
        return levels


@dataclass(frozen=True, kw_only=True)
class WandbConfig:
    """[wandb]: where `--wandb` logs to."""

    project: str | None = key(None)
    entity: str | None = key(None)
    name: str | None = key(None)
    mode: Literal["online", "offline"] = key("online")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything a run file says. Made by `sundae.config.run_file`, which checks it."""

    unroll_steps: int
    trainer: TrainerConfig
    data: DataConfig
    vqgan: VQGANConfig | None
    sampling: SamplingConfig
    net: NetConfig
    wandb: WandbConfig

    @property
    def grid_shape(self) -> tuple[int, int]:
        """(height, width) in tokens: [vqgan] or [data] latent_shape, else a square."""
        given = (self.vqgan and self.vqgan.latent_shape) or self.data.latent_shape
        side = math.isqrt(self.data.sequence_length)
        return given or (side, side)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON and TOML, without None: `parse_config` makes it equal again."""
        values: dict[str, Any] = plain(self)
        return values
