"""The run file of train-vqgan.py: taming's `model:` section, and a `training:` section beside it.

The file is also an ordinary VQ-GAN config: whatever loads the trained checkpoint can read it.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from sundae.codec.vqgan.architecture import Architecture
from sundae.codec.vqgan.configs import architecture_of, parse_config
from sundae.common.errors import UserError
from sundae.config.run_file import WandbConfig, parse_override, with_changes
from sundae.config.schema import Origin, build, key, plain, suggestion
from sundae.config.sections import OptimizerName, TrainerConfig
from sundae.config.validation import check_batches, check_precision, check_schedule


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(TrainerConfig):
    """training: what `TrainerConfig` has, with a GAN's defaults, and what a codec needs.

    Numbers of steps are optimiser steps. The weights multiply losses whose pixels are in [-1, 1].
    """

    exp_name: str = key("vqgan")
    optimizer_name: OptimizerName = key("adam", aliases={"rms": "rmsprop"})
    betas: tuple[float, float] = key((0.5, 0.9), at_least=0, below=1)
    weight_decay: float = key(0.0, at_least=0)
    checkpoint_best: bool = key(False)  # the loss does not see what the discriminator improves
    metric_names: tuple[str, ...] = key(("reconstruction", "perceptual", "perplexity"))

    size: int = key(at_least=1)  # side of the pictures in pixels
    random_crop: float = key(1.0, at_least=1)  # pictures are scaled to this times size, then cut
    mirror: bool = key(True)
    cache: bool = key(False)  # keep scaled pictures in memory
    eval_fraction: float = key(0.1, above=0, below=1)  # of the pictures, held out by their names
    nb_pictures: int = key(16, at_least=1)  # shown at each evaluation

    reconstruction: Literal["l1", "l2"] = key("l1")
    perceptual: Literal["lpips", "efficientnet-lite0", "none"] = key("lpips")
    perceptual_weight: float = key(1.0, at_least=0)
    codebook_weight: float = key(1.0, at_least=0)
    commitment: float = key(0.25, at_least=0)
    quantise_start: int = key(0, at_least=0)  # until then an autoencoder; the codebook begins there
    recolour: float = key(0.0, at_least=0, at_most=1)  # share of pictures with shuffled channels
    recolour_until: float = key(0.5, at_least=0, at_most=1)  # share of max_steps
    codebook_init: Literal["kmeans", "data", "uniform"] = key("kmeans")
    restart_every: int = key(100, at_least=0)  # a code unused for so many steps is moved; 0: never
    restart_until: float = key(0.8, at_least=0, at_most=1)  # share of max_steps
    disc_start: int = key(10000, at_least=0)
    disc_weight: float = key(0.8, at_least=0)
    disc_width: int = key(64, at_least=1)
    disc_layers: int = key(3, at_least=1)

    @property
    def load_size(self) -> int:
        """Side in pixels to which training pictures are scaled before a window is cut."""
        return round(self.size * self.random_crop)

    @property
    def last_recolouring(self) -> float:
        """Step from which on pictures keep their colours."""
        return self.recolour_until * self.max_steps if self.max_steps else math.inf

    @property
    def last_restart(self) -> float:
        """Step from which on the codebook is left alone, so that averages can settle."""
        return self.restart_until * self.max_steps if self.max_steps else math.inf


_SECTIONS: dict[str, type] = {"training": TrainingConfig, "wandb": WandbConfig}


@dataclass(frozen=True, kw_only=True)
class CodecRunConfig:
    """Everything a codec's run file says.

    Attributes:
        model: taming's section as it stands in the file.
        arch: the network that it describes.
    """

    model: dict[str, Any]
    arch: Architecture
    training: TrainingConfig
    wandb: WandbConfig

    @property
    def trainer(self) -> TrainerConfig:
        """The part that the training loop reads."""
        return self.training

    def to_dict(self) -> dict[str, Any]:
        """Plain values for YAML and JSON, without None: `parse_codec_config` makes it equal."""
        sections: dict[str, Any] = {name: plain(getattr(self, name)) for name in _SECTIONS}
        return {"model": self.model, **sections}


def load_codec_config(
    path: Path | str, overrides: Sequence[str] = (), flags: Mapping[str, Any] | None = None
) -> CodecRunConfig:
    """Read a codec's run file.

    Args:
        path: a YAML file.
        overrides, flags: see `parse_codec_config`.

    Raises:
        UserError: the file is missing or no YAML, or see `parse_codec_config`.
    """
    try:
        values = _with_numbers(yaml.safe_load(Path(path).read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"{path}: cannot read the run file: {error.strerror}") from None
    except (ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not a valid YAML file: {reason}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected the sections model and training")
    return parse_codec_config(values, str(path), overrides, flags)


def parse_codec_config(
    values: Mapping[str, Any],
    source: str,
    overrides: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
) -> CodecRunConfig:
    """Check plain values, from YAML or a checkpoint's JSON, and make them a `CodecRunConfig`.

    Args:
        source: how to name the values in an error.
        overrides: 'training.key=value' each, as --set takes them.
        flags: dotted key -> value of the flag named after it, None where it was not given.

    Raises:
        UserError: an unknown, missing or mistyped key, a value out of range, a network that cannot
            be built or trained, or a size that it cannot cut into patches.
    """
    changes = dict(parse_override(text) for text in overrides)
    names = {dotted: f"--set {dotted}" for dotted in changes}
    given = {dotted: value for dotted, value in (flags or {}).items() if value is not None}
    names |= {dotted: "--" + dotted.split(".")[-1].replace("_", "-") for dotted in given}
    origin = Origin(source, names)
    merged = with_changes(values, changes | given, origin)
    known = ["model", *_SECTIONS]
    for unknown in sorted(merged.keys() - set(known)):
        raise UserError(f"{origin.at(unknown)}: no such section{suggestion(unknown, known)}")
    for missing in ("model", "training"):
        if missing not in merged:
            raise UserError(f"{source}: the section {missing} is missing")
    sections: dict[str, Any] = {
        name: build(cls, merged.get(name, {}), name, origin, _SECTIONS)
        for name, cls in _SECTIONS.items()
    }
    cfg = CodecRunConfig(model=merged["model"], arch=_architecture(merged, source), **sections)
    _check_agreement(cfg, origin)
    return cfg


def dump_yaml(cfg: CodecRunConfig) -> str:
    """The configuration as a run file; reading it gives an equal configuration."""
    text: str = yaml.safe_dump(cfg.to_dict(), sort_keys=False)
    return text


def _with_numbers(values: Any) -> Any:
    """YAML 1.1 takes 1e-4, without a point, for text; nobody who writes it means that."""
    if isinstance(values, dict):
        return {name: _with_numbers(value) for name, value in values.items()}
    exponential = isinstance(values, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", values)
    return float(values) if exponential else values


def _architecture(values: Mapping[str, Any], source: str) -> Architecture:
    """The network of the `model:` section."""
    declaration = parse_config({"model": values["model"]}, Path(source))
    if declaration.family != "taming":
        raise UserError(
            f"{source}: model.target must be taming.models.vqgan.VQModel, which is what is trained"
        )
    for fact, expected in (("double_z", False), ("in_channels", 3), ("out_channels", 3)):
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
    return arch


def _check_agreement(cfg: CodecRunConfig, origin: Origin) -> None:
    training, factor = cfg.training, cfg.arch.factor
    if training.size % factor:
        raise UserError(
            f"{origin.at('training.size')}: {training.size} pixels cannot be cut into patches of "
            f"{factor}x{factor}; use a multiple of {factor}"
        )
    if training.max_steps and training.quantise_start >= training.max_steps:
        raise UserError(
            f"{origin.at('training.quantise_start')}: {training.quantise_start} is not below "
            f"training.max_steps = {training.max_steps}, so the codebook would never be used"
        )
    try:
        check_batches(training, origin)
        check_schedule(training, origin)
        check_precision(training, origin)
    except UserError as error:  # token run files, for which that was written, say [trainer]
        raise UserError(str(error).replace("trainer.", "training.")) from None
