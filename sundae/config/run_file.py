"""The run file: TOML with the sections of `sundae.config.sections`, read and checked as a whole.

It is read once, by a script, into a frozen `RunConfig`; everything wrong with it is reported before
any work starts. The same checks guard the configuration in a checkpoint.
"""

import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import tomli_w
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from hourglass_transformer.config import ConfigError, NetConfig
from sundae.common.errors import UserError
from sundae.config.sections import (
    STRICT,
    DataConfig,
    ObjectiveConfig,
    SamplingConfig,
    TrainerConfig,
    VQGANConfig,
    WandbConfig,
)
from sundae.config.values import Values, plain

SECTIONS: dict[str, Any] = {
    cls.section: cls
    for cls in (
        TrainerConfig,
        DataConfig,
        VQGANConfig,
        ObjectiveConfig,
        SamplingConfig,
        NetConfig,
        WandbConfig,
    )
}
_REQUIRED = {
    "unroll_steps": "an integer, usually 1 to 3, above the first section",
    "trainer": "a section [trainer]",
    "data": "a section [data]",
    "net": "a section [net]",
}


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RunConfig:
    """Everything that a run file says; sections that agree with each other."""

    unroll_steps: int = Field(
        ge=1, description="Markov unroll steps in training; the paper has 2 or 3"
    )
    trainer: TrainerConfig
    data: DataConfig
    vqgan: VQGANConfig | None
    objective: ObjectiveConfig = Field(default_factory=ObjectiveConfig)
    sampling: SamplingConfig
    net: NetConfig
    wandb: WandbConfig

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._check_metrics()
        self._check_grid()
        for name, value in zip(("guidance", "end_guidance"), self.sampling.guidance_ramp):
            if value != 1 and not self.net.class_dropout:
                raise ConfigError(
                    f"sampling.{name}",
                    f"{value:g} needs a network that also learned to do without the class; train "
                    "one with net.class_dropout = 0.1, or leave it at 1",
                )
        if self.objective.unroll_share < 1 and self.unroll_steps == 1:
            raise ConfigError(
                "objective.unroll_share",
                f"{self.objective.unroll_share:g} of the batch has no step after the first with "
                "unroll_steps = 1; set objective.unroll_share=1, or unroll_steps=2",
            )
        self.net.check_grid(self.grid_shape)
        return self

    def _check_metrics(self) -> None:
        best, direction = self.trainer.metric_best
        for key, names in (("metric_names", self.trainer.metric_names), ("metric_best", (best,))):
            for name in names:
                match = re.fullmatch(r"(?:loss|accuracy)(?:_([1-9]\d*))?", name)
                if not match or int(match[1] or 1) > self.unroll_steps:
                    raise ConfigError(
                        f"trainer.{key}",
                        "expected 'loss' or 'accuracy', or one unroll step's from 'loss_1' to "
                        f"'loss_{self.unroll_steps}', got '{name}'",
                    )
        if direction not in ("asc", "des"):
            raise ConfigError(
                "trainer.metric_best",
                "expected [metric, 'des'] when less is better or [metric, 'asc'] when more is, "
                f"got '{direction}'",
            )

    def _check_grid(self) -> None:
        length = self.data.sequence_length
        shapes = {
            "data.latent_shape": self.data.latent_shape,
            "vqgan.latent_shape": self.vqgan and self.vqgan.latent_shape,
        }
        given = {key: shape for key, shape in shapes.items() if shape}
        for key, (height, width) in given.items():
            if height * width != length:
                raise ConfigError(
                    key,
                    f"[{height}, {width}] makes {height * width} tokens but data.sequence_length "
                    f"is {length}; change one of them",
                )
        if len(set(given.values())) > 1:
            ours, theirs = map(list, given.values())
            raise ConfigError(
                "data.latent_shape",
                f"{ours} contradicts vqgan.latent_shape = {theirs}; keep one of them",
            )
        if not given and math.isqrt(length) ** 2 != length:
            raise ConfigError(
                "data.sequence_length",
                f"{length} tokens make no square grid; say which with data.latent_shape = "
                "[height, width]",
            )

    @property
    def grid_shape(self) -> tuple[int, int]:
        """(height, width) in tokens: [vqgan] or [data] latent_shape, else a square."""
        given = (self.vqgan and self.vqgan.latent_shape) or self.data.latent_shape
        side = math.isqrt(self.data.sequence_length)
        return given or (side, side)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON and TOML, without None: `parse_config` makes it equal again."""
        return plain(self)


def load_config(
    path: Path | str, overrides: Sequence[str] = (), flags: Mapping[str, Any] | None = None
) -> RunConfig:
    """Read a run file.

    Args:
        path: a TOML file.
        overrides: 'section.key=value' each, the value as TOML or a bare word; they win.
        flags: dotted key -> value of the flag named after it, None where it was not given; they
            win over all else.

    Raises:
        UserError: the file is missing or no TOML, or see `parse_config`.
    """
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot read the run file: {error.strerror}") from None
    except ValueError as error:  # a TOMLDecodeError, or bytes that are no UTF-8
        raise UserError(f"{path}: not a valid TOML file: {error}") from None
    return parse_config(values, str(path), overrides, flags)


def parse_config(
    values: Mapping[str, Any],
    source: str,
    overrides: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
) -> RunConfig:
    """Check plain values, from TOML or a checkpoint's JSON, and make them a `RunConfig`.

    Args:
        source: how to name the values in an error.
        overrides, flags: see `load_config`.

    Raises:
        UserError: an unknown, missing or mistyped key, a value out of range, or keys that
            contradict each other. The message names `source` or the override or the flag, and the
            key.
    """
    given = Values.merged(values, source, overrides, flags)
    given.require(_REQUIRED, [*SECTIONS, "unroll_steps"])
    sections = {name: given.section(cls, SECTIONS.values()) for name, cls in SECTIONS.items()
                if name != "vqgan" or name in given.tables}  # fmt: skip
    steps = given.tables["unroll_steps"]
    return given.checked(RunConfig, {"unroll_steps": steps, "vqgan": None} | sections)


def update_config(
    cfg: RunConfig, flags: Mapping[str, Any], source: str = "configuration"
) -> RunConfig:
    """A configuration with other values for some keys, checked anew; see `load_config`."""
    return parse_config(cfg.to_dict(), source, flags=flags)


def dump_toml(cfg: RunConfig) -> str:
    """The configuration as a run file; reading it gives an equal configuration."""
    return tomli_w.dumps(cfg.to_dict())
