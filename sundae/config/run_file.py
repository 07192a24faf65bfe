"""Read a run file: TOML with the sections of `sundae.config.sections`, checked as a whole.

It is read once, by a script, into a frozen `RunConfig`; everything wrong with it is reported before
any work starts. The same checks guard the configuration kept in a checkpoint.
"""

import argparse
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import tomli_w

from sundae.common.errors import UserError
from sundae.config.schema import Origin, Rule, build, check, suggestion
from sundae.config.sections import (
    DataConfig,
    Depth,
    NetConfig,
    RunConfig,
    SamplingConfig,
    TrainerConfig,
    VQGANConfig,
    WandbConfig,
)
from sundae.config.validation import check_agreement

__all__ = [
    "DataConfig",
    "Depth",
    "NetConfig",
    "RunConfig",
    "SamplingConfig",
    "TrainerConfig",
    "VQGANConfig",
    "WandbConfig",
    "dump_toml",
    "load_config",
    "parse_config",
    "sampling_flags",
    "update_config",
]

_SECTIONS: dict[str, type] = {
    "trainer": TrainerConfig,
    "data": DataConfig,
    "vqgan": VQGANConfig,
    "sampling": SamplingConfig,
    "net": NetConfig,
    "wandb": WandbConfig,
}
_REQUIRED = {
    "unroll_steps": "an integer, usually 2 or 3, above the first section",
    "trainer": "a section [trainer]",
    "data": "a section [data]",
    "net": "a section [net]",
}


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run file.

    Args:
        path: a TOML file.
        overrides: 'section.key=value' each, the value as TOML or a bare word; they win.

    Raises:
        UserError: the file is missing or no TOML, or see `parse_config`.
    """
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot read the run file: {error.strerror}") from None
    except ValueError as error:  # a TOMLDecodeError, or bytes that are no UTF-8
        raise UserError(f"{path}: not a valid TOML file: {error}") from None
    return parse_config(values, str(path), overrides)


def parse_config(
    values: Mapping[str, Any], source: str, overrides: Sequence[str] = ()
) -> RunConfig:
    """Check plain values, from TOML or a checkpoint's JSON, and make them a `RunConfig`.

    Raises:
        UserError: an unknown, missing or mistyped key, a value out of range, or keys that
            contradict each other. The message names `source` or the override, and the key.
    """
    changes = dict(parse_override(text) for text in overrides)
    flags = {dotted: f"--set {dotted}" for dotted in changes}
    # A section that only an override mentions is the override's mistake, not the file's.
    new = {dotted.split(".")[0]: flag for dotted, flag in flags.items()}
    flags |= {name: flag for name, flag in new.items() if name not in values}
    origin = Origin(source, flags)
    return _build_run(with_changes(values, changes, origin), origin)


def update_config(
    cfg: RunConfig, flags: Mapping[str, Any], source: str = "configuration"
) -> RunConfig:
    """Let command-line flags win over a configuration.

    Args:
        flags: dotted key -> value of the flag named after it ('sampling.nb_samples' belongs to
            --nb-samples). None means the flag was not given; 0 and False are values.
        source: how to name `cfg` in an error.

    Raises:
        UserError: as `parse_config`, naming the flag.
    """
    changes = {dotted: value for dotted, value in flags.items() if value is not None}
    names = {dotted: "--" + dotted.split(".")[-1].replace("_", "-") for dotted in changes}
    origin = Origin(source, names)
    return _build_run(with_changes(cfg.to_dict(), changes, origin), origin)


def sampling_flags(args: argparse.Namespace) -> dict[str, Any]:
    """What a script's sampling flags (`utils.add_sampling_flags`) change, for `update_config`.

    Args:
        args: parsed flags; one that it lacks counts as not given. A script's own --nb-samples is
            one of them.
    """
    names = {field.name for field in fields(SamplingConfig)} - {"early_stop"}
    flags: dict[str, Any] = {f"sampling.{name}": getattr(args, name, None) for name in names}
    flags["sampling.early_stop"] = False if getattr(args, "no_early_stop", False) else None
    return flags


def dump_toml(cfg: RunConfig) -> str:
    """The configuration as a run file; reading it gives an equal configuration."""
    return tomli_w.dumps(cfg.to_dict())


def parse_override(text: str) -> tuple[str, Any]:
    """'net.dim=512', as --set takes it -> ('net.dim', 512); UserError for anything else."""
    dotted, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not dotted:
        raise UserError(f"--set {text}: expected key=value, for example --set net.dim=512")
    try:
        parsed = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        return dotted, value
    return dotted, parsed["value"] if len(parsed) == 1 else value


def with_changes(
    values: Mapping[str, Any], changes: Mapping[str, Any], origin: Origin
) -> dict[str, Any]:
    """A copy of nested `values` in which dotted keys have new values."""
    merged = _copy(values)
    for dotted, value in changes.items():
        *sections, last = dotted.split(".")
        table = merged
        for depth, section in enumerate(sections):
            table = table.setdefault(section, {})
            if not isinstance(table, dict):
                inner = ".".join(sections[: depth + 1])
                raise UserError(f"{origin.at(dotted)}: {inner} is no section")
        table[last] = value
    return merged


def _copy(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _copy(v) if isinstance(v, Mapping) else v for k, v in values.items()}


def _build_run(values: dict[str, Any], origin: Origin) -> RunConfig:
    known = [*_SECTIONS, "unroll_steps"]
    for unknown in sorted(values.keys() - set(known)):
        raise UserError(f"{origin.at(unknown)}: no such section or key{suggestion(unknown, known)}")
    for missing, expected in _REQUIRED.items():
        if missing not in values:
            raise UserError(f"{origin.file}: {missing} is missing; expected {expected}")
    rule = Rule(at_least=1)
    steps = check(values["unroll_steps"], int, rule, origin.at("unroll_steps"))
    sections = {name: _build_section(name, values, origin) for name in _SECTIONS}
    cfg = RunConfig(unroll_steps=steps, **sections)
    check_agreement(cfg, origin)
    return cfg


def _build_section(name: str, values: Mapping[str, Any], origin: Origin) -> Any:
    if name == "vqgan" and name not in values:
        return None
    table = values.get(name, {})
    cls = _SECTIONS[name]
    section: Any = build(cls, table, name, origin, _SECTIONS)
    # Old run files know no weight decay, and only AdamW had one of its own.
    if isinstance(section, TrainerConfig) and "weight_decay" not in table:
        decay = section.weight_decay if section.optimizer_name == "adamw" else 0.0
        return replace(section, weight_decay=decay)
    return section
