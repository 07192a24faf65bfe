"""The sections of a run file: every key once, with its type, limits, default and meaning.

[net] is declared with the network, in `hourglass_transformer.config`.
"""

import math
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from annotated_types import Ge, Gt, Lt
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    Strict,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic.dataclasses import dataclass

from hourglass_transformer.config import ConfigError
from sundae.common.errors import shown, suggestion
from sundae.common.precision import Precision
from sundae.config.keys import describe

OptimizerName = Literal["adam", "adamw", "adamax", "sgd", "rmsprop", "rms"]
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
StrategyName = Literal["random", "confidence", "halton", "argmax", "renoise", "posterior"]
StrategyChoice = Literal["auto", StrategyName]
CurveName = Literal["linear", "cosine", "constant"]

# Values have exactly the declared type: no bool is a number, no text is, and no float an integer.
STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

# Steps up to which the strategy 'auto' is 'renoise'. On the digits that is best with 4, 8 and 12
# steps and within the spread of the best with 16; docs/sampling.md has the table.
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


def _not_blank(value: Any) -> Any:
    if not str(value).strip():
        raise ValueError
    return value


def _parse_latent_shape(value: Any) -> tuple[int, int]:
    """[h, w], or [1, h, w] as older files write it."""
    sides = tuple(value) if isinstance(value, (list, tuple)) else ()
    if len(sides) == 3 and sides[0] == 1:
        sides = sides[1:]
    if len(sides) != 2 or any(type(side) is not int or side < 1 for side in sides):
        raise ValueError
    return sides[0], sides[1]


Text: TypeAlias = Annotated[str, AfterValidator(_not_blank)]
FilePath: TypeAlias = Annotated[Path, BeforeValidator(_not_blank), Strict(False)]
Count: TypeAlias = Annotated[int, Ge(0)]
Betas: TypeAlias = Annotated[
    tuple[Annotated[float, Ge(0), Lt(1)], Annotated[float, Ge(0), Lt(1)]], Strict(False)
]
_rms_is_rmsprop = AfterValidator(lambda name: "rmsprop" if name == "rms" else name)
Optimizer: TypeAlias = Annotated[OptimizerName, _rms_is_rmsprop]
PriorOptimizer: TypeAlias = Annotated[Literal["muon", OptimizerName], _rms_is_rmsprop]
LatentShape: TypeAlias = Annotated[tuple[int, int], PlainValidator(_parse_latent_shape)]
_SHAPE: dict[str, Any] = {"expected": "[height, width] in tokens, two integers at least 1"}
_Two = Annotated[tuple[Annotated[int, Gt(0)], Annotated[int, Gt(0)]], Strict(False)]
_TwoFractions = Annotated[tuple[Annotated[float, Gt(0)], Annotated[float, Gt(0)]], Strict(False)]

# Parameters of ptpt's learning-rate schedules. A new one is also read in
# `sundae.training.schedules`, which computes them.
_SCHEDULE_KEYS: dict[str, Any] = {
    "nb_warmup_steps": Count,
    "nb_training_steps": Annotated[int, Ge(1)],
    "nb_cycles": Annotated[float, Gt(0)],
    "lr_end": Annotated[float, Ge(0)],
    "power": Annotated[float, Gt(0)],
}
_SCHEDULE_EXTRAS = {"cosine": {"nb_cycles"}, "polynomial": {"lr_end", "power"}}


def schedule_keys(name: str) -> tuple[set[str], set[str]]:
    """(required, optional) keys of lr_scheduler_kwargs for a schedule of that name."""
    required = {"nb_warmup_steps"} if name.endswith("with_warmup") else set()
    if not name.startswith("constant"):
        required.add("nb_training_steps")
    return required, _SCHEDULE_EXTRAS.get(name.split("_")[0], set())


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainerConfig:
    """[trainer]: ptpt's vocabulary for the training loop, plus what ptpt leaves out."""

    section: ClassVar[str] = "trainer"

    exp_name: Text = Field(default="exp", description="name of the run's folder, before its time")
    exp_dir: FilePath = Field(default=Path("exp"), description="folder of run folders")
    batch_size: int = Field(
        ge=1, description="samples of an optimiser step, all processes together"
    )
    mini_batch_size: int | None = Field(
        default=None,
        ge=1,
        description="samples of a forward pass, a divisor of batch_size; by default all at once",
    )
    nb_batches: Annotated[tuple[Count, Count], Strict(False)] = Field(
        default=(0, 0),
        description="training batches between evaluations, batches of an evaluation; 0: all",
    )
    max_steps: int = Field(default=0, ge=0, description="optimiser steps; 0: until stopped")
    learning_rate: float = Field(default=1e-4, gt=0, description="highest learning rate")
    lr_scheduler_name: ScheduleName = Field(
        default="constant", description="schedule of the learning rate"
    )
    lr_scheduler_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="parameters of the schedule: " + ", ".join(_SCHEDULE_KEYS),
    )
    optimizer_name: PriorOptimizer = Field(
        default="adamw",
        description="optimiser; rms: rmsprop; muon: Muon for the hidden matrices, AdamW for the "
        "rest, both at learning_rate",
    )
    weight_decay: float = Field(
        # Older run files have no such key, and of their optimisers AdamW alone had a decay.
        default_factory=lambda keys: 0.01 if keys.get("optimizer_name") == "adamw" else 0.0,
        ge=0,
        description="weight decay; by default 0.01 for adamw, else 0",
    )
    betas: Betas = Field(default=(0.9, 0.999), description="decay rates of Adam's moving averages")
    grad_none: bool = Field(default=True, description="free gradients between steps")
    clip_grad: bool = Field(default=False, description="clip the norm of the gradient")
    clip_grad_value: float = Field(default=5.0, gt=0, description="largest norm of the gradient")
    ema_decay: float = Field(
        default=0.999, ge=0, lt=1, description="decay of the moving average of the weights; 0: none"
    )
    nb_workers: int = Field(default=0, ge=0, description="processes that read data")
    use_cuda: bool = Field(default=True, description="train on the GPU where there is one")
    precision: Precision = Field(
        default="auto", description="bf16, fp32, or auto: bf16 where the hardware has it"
    )
    use_amp: bool = Field(default=True, description="older spelling: false is precision = 'fp32'")
    gradient_checkpointing: bool = Field(
        default=False, description="recompute in the backward pass: less memory, slower"
    )
    compile: bool | None = Field(
        default=None,
        description="torch.compile the networks, whose first step then takes long; by default on "
        "CUDA, where priors with shifted windows (net.window) are not compiled",
    )
    save_outputs: bool = Field(default=True, description="write checkpoints, curves and images")
    checkpoint_frequency: int = Field(
        default=5000, ge=0, description="optimiser steps between checkpoints; 0: only the best"
    )
    checkpoint_best: bool = Field(default=True, description="save the best checkpoint as well")
    keep_checkpoints: int = Field(
        default=3, ge=0, description="number of periodic checkpoints that stay; 0: all"
    )
    metric_names: Annotated[tuple[str, ...], Strict(False)] = Field(
        default=(), description="metrics to record: loss, accuracy, or one unroll step's: loss_2"
    )
    metric_best: Annotated[tuple[str, str], Strict(False)] = Field(
        default=("loss", "des"),
        description="metric of the best checkpoint, and 'des' if less is better, 'asc' if more is",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.mini_batch_size and self.batch_size % self.mini_batch_size:
            raise ConfigError(
                f"{self.section}.mini_batch_size",
                f"{self.mini_batch_size} does not divide {self.section}.batch_size = "
                f"{self.batch_size}; choose a divisor of it",
            )
        if self.precision == "bf16" and not self.use_amp:
            raise ConfigError(
                f"{self.section}.precision",
                f"'bf16' contradicts {self.section}.use_amp = false; drop use_amp",
            )
        self._check_schedule()
        return self

    def _check_schedule(self) -> None:
        where = f"{self.section}.lr_scheduler_kwargs"
        name, given = self.lr_scheduler_name, self.lr_scheduler_kwargs
        required, optional = schedule_keys(name)
        for key, value in given.items():
            if key not in required | optional:
                hint = suggestion(key, required | optional) or "; it takes none"
                raise ConfigError(f"{where}.{key}", f"not a key of the schedule '{name}'{hint}")
            try:
                TypeAdapter(_SCHEDULE_KEYS[key], config=STRICT).validate_python(value)
            except ValidationError:
                expected = describe(_SCHEDULE_KEYS[key])
                reason = f"expected {expected}, got {shown(value)}"
                raise ConfigError(f"{where}.{key}", reason) from None
        for key in sorted(required - given.keys()):
            raise ConfigError(where, f"the schedule '{name}' needs {key}")
        warmup, total = given.get("nb_warmup_steps", 0), given.get("nb_training_steps", math.inf)
        if warmup >= total:
            raise ConfigError(
                where, f"nb_warmup_steps = {warmup} must be below nb_training_steps = {total}"
            )

    @property
    def arithmetic(self) -> Precision:
        """The precision of training, `use_amp` included."""
        return self.precision if self.use_amp else "fp32"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DataConfig:
    """[data]: token data on disk, either one folder to split or two folders already split."""

    section: ClassVar[str] = "data"

    vocab_size: int = Field(ge=2, description="number of different tokens")
    sequence_length: int = Field(ge=1, description="tokens of an image")
    root: FilePath | None = Field(default=None, description="folder to split; needs split_sizes")
    split_sizes: _Two | _TwoFractions | None = Field(
        default=None,
        description="[train, eval] of root: two fractions or two counts",
        json_schema_extra={"expected": "[train, eval], two fractions or two counts above 0"},
    )
    train_root: FilePath | None = Field(default=None, description="training folder")
    eval_root: FilePath | None = Field(default=None, description="evaluation folder")
    latent_shape: LatentShape | None = Field(
        default=None,
        description="[height, width] in tokens, of grids that are not square without [vqgan]",
        json_schema_extra=_SHAPE,
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        styles = [("root", "split_sizes"), ("train_root", "eval_root")]
        given = [[k for k in style if getattr(self, k) is not None] for style in styles]
        if all(given):
            raise ConfigError(
                f"data.{given[0][0]}",
                f"contradicts data.{given[1][0]}; give either root and split_sizes, or train_root "
                "and eval_root",
            )
        for style, present in zip(styles, given):
            if len(present) == 1:
                (absent,) = set(style) - set(present)
                raise ConfigError(f"data.{absent}", f"is missing; data.{present[0]} needs it")
        if not any(given):
            raise ConfigError(
                "data.root",
                "is missing; expected root and split_sizes, or train_root and eval_root",
            )
        sizes = self.split_sizes
        # The tolerance lets 0.9 + 0.1 through, whichever way its sum rounds.
        if sizes and isinstance(sizes[0], float) and sum(sizes) > 1 + 1e-9:
            raise ConfigError(
                "data.split_sizes",
                f"the fractions {list(sizes)} add up to more than 1; give fractions, or counts "
                "without a decimal point",
            )
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class VQGANConfig:
    """[vqgan]: the codec of the latents. Without this section tokens are grey levels of pixels."""

    section: ClassVar[str] = "vqgan"

    checkpoint: FilePath = Field(description="weights of the VQ-GAN")
    config: FilePath | None = Field(default=None, description="YAML or JSON of the VQ-GAN")
    latent_shape: LatentShape | None = Field(
        default=None,
        description="[height, width] in tokens; by default a square",
        json_schema_extra=_SHAPE,
    )
    input_range: Text | None = Field(
        default=None, description="signed ([-1, 1]) or unit ([0, 1]) pixels, where no file says"
    )
    distance: Text | None = Field(
        default=None,
        description="distance of the codebook search, where no file says: l2, cosine, dot, gumbel",
    )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SamplingConfig:
    """[sampling]: how images are sampled, by every script and in training.

    An `end_` that is not given equals the start.
    """

    section: ClassVar[str] = "sampling"

    # "slider": how far a control of the page reaches, and its step.
    steps: int = Field(
        default=100,
        ge=1,
        description="largest number of refinement steps",
        json_schema_extra={"slider": [200, 1]},
    )
    nb_samples: int = Field(
        default=16, ge=1, description="number of images", json_schema_extra={"slider": [64, 1]}
    )
    temperature: float = Field(
        default=1.0,
        ge=0,
        description="temperature of the draws in the first step; 0 is argmax",
        json_schema_extra={"slider": [2, 0.05]},
    )
    end_temperature: float | None = Field(
        default=None, ge=0, description="temperature in the last step; by default that of the first"
    )
    temperature_curve: CurveName = Field(
        default="linear", description="course of the temperature from first to last step"
    )
    sample_proportion: float = Field(
        default=0.5, ge=0, le=1, description="share of tokens resampled in the first step"
    )
    end_sample_proportion: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="share of tokens resampled in the last step; by default that of the first",
    )
    proportion_curve: CurveName = Field(
        default="linear", description="course of the share from first to last step"
    )
    min_steps: int = Field(
        default=10,
        ge=0,
        description="number of steps before a sample may stop early",
        json_schema_extra={"slider": [100, 1]},
    )
    early_stop: bool = Field(
        default=True,
        description="a sample is done when none of its tokens changes any more",
        json_schema_extra={"flag": "run all steps, even if no token changes any more"},
    )
    strategy: StrategyChoice = Field(
        default="auto",
        description="choice of the tokens that take a new value in a step; auto is renoise for up "
        f"to {FEW_STEPS} steps, else random",
    )
    choice_temperature: float = Field(
        default=1.0,
        ge=0,
        description="randomness of the strategy confidence in the first step; falls to 0",
        json_schema_extra={"slider": [20, 0.5]},
    )
    churn: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="chance with which the strategy posterior draws a token anew and corrupts it "
        "again, while 5% to 60% of the tokens are noise; corrects earlier steps",
        json_schema_extra={"slider": [1, 0.05]},
    )
    guidance: float = Field(
        default=1.0,
        ge=0,
        description="guidance weight of the class in the first step; 1 is the network's own "
        "prediction, other values need net.class_dropout in training",
        json_schema_extra={"slider": [10, 0.1]},
    )
    end_guidance: float | None = Field(
        default=None,
        ge=0,
        description="guidance weight in the last step; by default that of the first",
    )
    guidance_curve: CurveName = Field(
        default="linear", description="course of the guidance weight from first to last step"
    )
    top_k: int = Field(
        default=0,
        ge=0,
        description="number of most likely codes to draw from; 0: all",
        json_schema_extra={"slider": [256, 1]},
    )
    top_p: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="total probability of the most likely codes to draw from; 1: all",
    )
    compile: bool | None = Field(
        default=None,
        description="torch.compile the steps, with CUDA graphs on a GPU; the first takes a minute; "
        "by default where that pays",
    )

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


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ObjectiveConfig:
    """[objective]: what a prior learns from, beyond unroll_steps. The defaults are the paper's.

    Evaluation always has the defaults, so that losses of runs with different values compare.
    """

    section: ClassVar[str] = "objective"

    unroll_share: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="share of the batch, its first samples, in the unroll steps after the first",
    )
    hole_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of the batch, its first samples, corrupted only inside a random "
        "rectangle, or only outside of it, as holes are in inpainting",
    )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class WandbConfig:
    """[wandb]: where --wandb logs to."""

    section: ClassVar[str] = "wandb"

    project: Text | None = Field(default=None, description="project on Weights & Biases")
    entity: Text | None = Field(default=None, description="user or team on Weights & Biases")
    name: Text | None = Field(
        default=None, description="name of the run; its folder's unless given"
    )
    mode: Literal["online", "offline"] = Field(
        default="online", description="offline leaves the log on disk"
    )
