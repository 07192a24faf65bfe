"""The run file of train-vqgan.py: taming's `model:` section, and a `training:` section beside it.

The file is also an ordinary VQ-GAN config: whatever loads the trained checkpoint can read it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import yaml
from pydantic import Field, Strict, model_validator
from pydantic.dataclasses import dataclass

from hourglass_transformer.config import ConfigError
from sundae.codec.vqgan.architecture import Architecture
from sundae.codec.vqgan.configs import architecture_of, parse_config
from sundae.common.errors import UserError
from sundae.config.sections import STRICT, Betas, Optimizer, Text, TrainerConfig, WandbConfig
from sundae.config.values import Values, plain
from sundae.config.yaml_file import read_yaml

_TAMING, _LDM = "taming.models.vqgan.VQModel", "ldm.models.autoencoder.VQModel"
# Facts of every network that is trained here.
_TRAINED = (("double_z", False), ("in_channels", 3), ("out_channels", 3), ("tanh_out", False))


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainingConfig(TrainerConfig):
    """training: what [trainer] has, with a GAN's defaults, and what a codec needs.

    Numbers of steps are optimiser steps. The weights multiply losses whose pixels are in [-1, 1].
    """

    section: ClassVar[str] = "training"

    exp_name: Text = Field(default="vqgan", description="name of the run's folder, before its time")
    optimizer_name: Optimizer = Field(default="adam", description="optimiser; rms: rmsprop")
    betas: Betas = Field(default=(0.5, 0.9), description="decay rates of Adam's moving averages")
    weight_decay: float = Field(default=0.0, ge=0, description="weight decay")
    # The loss does not see what the discriminator improves.
    checkpoint_best: bool = Field(default=False, description="save the best checkpoint as well")
    metric_names: Annotated[tuple[str, ...], Strict(False)] = Field(
        default=("reconstruction", "perceptual", "perplexity"), description="metrics to record"
    )

    size: int = Field(ge=1, description="side of the training images in pixels")
    full_resolution: bool = Field(
        default=False,
        description="train on random crops of unscaled images, and evaluate whole images",
    )
    crops: int = Field(
        default=1,
        ge=1,
        description="random crops of an image each time it is read, with full_resolution",
    )
    eval_size: int | None = Field(
        default=None,
        ge=1,
        description="side in pixels that held-out images are scaled to, with full_resolution; by "
        "default they are not scaled",
    )
    random_crop: float = Field(
        default=1.0,
        ge=1,
        description="factor of the size that images are scaled to before a random crop",
    )
    mirror: bool = Field(default=True, description="mirror half of the images")
    cache: bool = Field(default=False, description="hold decoded images in memory")
    eval_fraction: float = Field(
        default=0.1, gt=0, lt=1, description="share of images that is held out, by their names"
    )
    nb_pictures: int = Field(default=16, ge=1, description="images shown at each evaluation")

    reconstruction: Literal["l1", "l2"] = Field(default="l1", description="loss of the pixels")
    perceptual: Literal["lpips", "efficientnet-lite0", "none"] = Field(
        default="lpips", description="network of the perceptual loss"
    )
    perceptual_weight: float = Field(default=1.0, ge=0, description="weight of the perceptual loss")
    codebook_weight: float = Field(default=1.0, ge=0, description="weight of the codebook loss")
    commitment: float = Field(
        default=0.25, ge=0, description="weight of the encoder's part of the codebook loss"
    )
    quantise_start: int = Field(
        default=0,
        ge=0,
        description="step at which quantisation begins; a plain autoencoder until then",
    )
    recolour: float = Field(
        default=0.0, ge=0, le=1, description="share of images with shuffled channels"
    )
    recolour_until: float = Field(
        default=0.5, ge=0, le=1, description="share of max_steps in which images are recoloured"
    )
    codebook_init: Literal["kmeans", "data", "uniform"] = Field(
        default="kmeans", description="origin of the first codes"
    )
    restart_every: int = Field(
        default=100, ge=0, description="steps after which an unused code is moved; 0: never"
    )
    restart_until: float = Field(
        default=0.8, ge=0, le=1, description="share of max_steps in which codes are moved"
    )
    disc_start: int = Field(
        default=10000, ge=0, description="step at which the discriminator begins"
    )
    disc_weight: float = Field(default=0.8, ge=0, description="weight of the discriminator's loss")
    disc_width: int = Field(
        default=64, ge=1, description="channels of the discriminator's first layer"
    )
    disc_layers: int = Field(default=3, ge=1, description="layers of the discriminator")

    @model_validator(mode="after")
    def _check_start(self) -> Self:
        if self.max_steps and self.quantise_start >= self.max_steps:
            raise ConfigError(
                "training.quantise_start",
                f"{self.quantise_start} is not below training.max_steps = {self.max_steps}, so the "
                "codebook would never be used",
            )
        return self

    @model_validator(mode="after")
    def _check_resolution(self) -> Self:
        if self.full_resolution and self.random_crop != 1:
            raise ConfigError(
                "training.random_crop",
                f"{self.random_crop} scales images, which contradicts training.full_resolution; "
                "drop one of them",
            )
        for key, given in (("crops", self.crops > 1), ("eval_size", self.eval_size is not None)):
            if given and not self.full_resolution:
                raise ConfigError(
                    f"training.{key}",
                    "has no meaning for scaled images; set training.full_resolution to true or "
                    f"drop {key}",
                )
        return self

    @property
    def load_size(self) -> int:
        """Side in pixels to which training images are scaled before a window is cut."""
        return round(self.size * self.random_crop)

    @property
    def last_recolouring(self) -> float:
        """Step from which on images keep their colours."""
        return self.recolour_until * self.max_steps if self.max_steps else math.inf

    @property
    def last_restart(self) -> float:
        """Step from which on the codebook is left alone, so that averages can settle."""
        return self.restart_until * self.max_steps if self.max_steps else math.inf


@plain_dataclass(frozen=True, kw_only=True)
class CodecRunConfig:
    """Everything that a codec's run file says.

    Attributes:
        model: taming's section as it stands in the file.
        family: "taming" or "ldm", whose code can load what is trained.
        arch: the network that it describes.
    """

    model: dict[str, Any]
    family: str
    arch: Architecture
    training: TrainingConfig
    wandb: WandbConfig

    @property
    def trainer(self) -> TrainerConfig:
        """The part that the training loop reads."""
        return self.training

    def to_dict(self) -> dict[str, Any]:
        """Plain values for YAML and JSON, without None: `parse_codec_config` makes it equal."""
        sections = {"training": plain(self.training), "wandb": plain(self.wandb)}
        return {"model": self.model} | sections


def load_codec_config(
    path: Path | str, overrides: Sequence[str] = (), flags: Mapping[str, Any] | None = None
) -> CodecRunConfig:
    """Read a codec's run file, YAML; see `parse_codec_config`."""
    return parse_codec_config(read_yaml(path), str(path), overrides, flags)


def parse_codec_config(
    values: Mapping[str, Any],
    source: str,
    overrides: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
) -> CodecRunConfig:
    """As `sundae.config.run_file.parse_config`, for a `CodecRunConfig`.

    Raises:
        UserError: an unknown, missing or mistyped key, a value out of range, a network that cannot
            be built or trained, or a size that it cannot cut into patches.
    """
    given = Values.merged(values, source, overrides, flags)
    required = {name: f"a section {name}" for name in ("model", "training")}
    given.require(required, [*required, "wandb"])
    sections = (TrainingConfig, WandbConfig)
    training = given.section(TrainingConfig, sections)
    wandb = given.section(WandbConfig, sections)
    family, arch = _architecture(given.tables["model"], source)
    for key, side in (("size", training.size), ("eval_size", training.eval_size or 0)):
        if side % arch.factor:
            raise UserError(
                f"{given.at(f'training.{key}')}: {side} pixels cannot be cut into patches of "
                f"{arch.factor}x{arch.factor}; use a multiple of {arch.factor}"
            )
    if training.full_resolution and arch.has_attention:
        raise UserError(
            f"{given.at('training.full_resolution')}: attention learned among the positions of a "
            "crop meets many more in a whole image; set attn_resolutions: [] and attn_type: none, "
            f"which {_LDM} has"
        )
    return CodecRunConfig(
        model=given.tables["model"], family=family, arch=arch, training=training, wandb=wandb
    )


def dump_yaml(cfg: CodecRunConfig) -> str:
    """The configuration as a run file; reading it gives an equal configuration."""
    text: str = yaml.safe_dump(cfg.to_dict(), sort_keys=False)
    return text


def _architecture(model: Any, source: str) -> tuple[str, Architecture]:
    """Family and network of the `model:` section."""
    declaration = parse_config({"model": model}, Path(source))
    if declaration.family not in ("taming", "ldm"):
        raise UserError(
            f"{source}: model.target must be {_TAMING} or {_LDM}, which are what is trained"
        )
    for fact, expected in _TRAINED:
        found = declaration.get(fact, expected)
        if found != expected:
            raise UserError(f"{source}: model has {fact} {found}, expected {expected}")
    arch = architecture_of(declaration)
    for width in arch.encoder.widths:
        if width % arch.groups:
            raise UserError(
                f"{source}: a level has {width} channels (ch times ch_mult), expected a multiple "
                f"of {arch.groups}, the groups of its normalisation"
            )
    return declaration.family, arch
