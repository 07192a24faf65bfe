"""What a VQ-GAN's own config declares, in any family's dialect, and whether the tensors agree."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sundae.codec.vqgan.architecture import Architecture, Stack
from sundae.codec.vqgan.families import FAMILIES, REFUSED_CLASSES, Config
from sundae.common.errors import UserError
from sundae.config.yaml_file import read_yaml

# Facts that tensors cannot contradict.
_RULES = frozenset({"distance", "groups", "resolution", "tanh_out", "use_ema"})

# How messages call facts whose names would not explain themselves.
_FACT_TITLES = {
    "attention": "levels with attention",
    "decoder_attention": "decoder levels with attention",
    "stem": "channels",
}


@dataclass(frozen=True)
class ExpectedField:
    """A key of a config and a fact that it declares: `fact` is `value`."""

    key: str
    fact: str
    value: Any


@dataclass(frozen=True)
class Declaration:
    """All that a config declares.

    Attributes:
        source: the file, for messages.
        family: key of `FAMILIES`, or None when the config does not name its class.
        fields: facts about the network (see `Architecture.facts`), and what tensors cannot show:
            distance, groups, resolution (side in pixels of the training images), tanh_out, use_ema.
    """

    source: Path
    family: str | None
    fields: tuple[ExpectedField, ...]

    def get(self, fact: str, default: Any = None) -> Any:
        """The declared value of a fact."""
        return next((field.value for field in self.fields if field.fact == fact), default)


def read_config(path: Path, stage: str = "first_stage_config") -> Declaration:
    """Reads a YAML or JSON config. No name in it is imported.

    Args:
        path: the file.
        stage: which part of a combined config (a prior over a VQ-GAN) is meant.

    Raises:
        UserError: the file cannot be read, holds Python objects, or describes something that this
            package cannot load.
    """
    if path.suffix != ".json":
        return parse_config(read_yaml(path), path, stage)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the config {path}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a config: expected a mapping, got {type(content).__name__}")
    return parse_config(content, path, stage)


def parse_config(content: Config, path: Path, stage: str = "first_stage_config") -> Declaration:
    """As `read_config`, of a config that is read already; `path` is for messages."""
    _refuse_other_kinds(content, path)
    name = content.get("_class_name")
    for key, family in FAMILIES.items():
        if (name and name == family.hub_class) or any(k in content for k in family.hub_keys):
            return _declare(path, key, content)
    if name is not None:
        reason = REFUSED_CLASSES.get(name, "expected VQModel (diffusers) or VQGANModel (openMUSE)")
        raise UserError(f"{path}: _class_name {name} is not supported: {reason}")
    return _parse_training(content, path, stage)


def _refuse_other_kinds(content: Config, path: Path) -> None:
    if "janus" in str(content.get("model_type", "")):
        raise UserError(f"{path}: JanusVQVAE is not supported: {REFUSED_CLASSES['JanusVQVAE']}")
    arch = content.get("arch")
    if isinstance(arch, dict) and "rq" in str(arch.get("type", "")):
        raise UserError(
            f"{path}: RQ-VAE is not supported: it has several codes a position, (h, w, 4), where a "
            "token grid has one"
        )


def _parse_training(content: Config, path: Path, stage: str) -> Declaration:
    """A training run's YAML: `target` and `params`, or Lightning's `class_path`, `init_args`."""
    node, where = content.get("model", content), "model." if "model" in content else ""
    params = node.get("params") if isinstance(node, dict) else None
    if isinstance(params, dict) and isinstance(params.get(stage), dict):  # a prior over a VQ-GAN
        node, where = params[stage], f"{where}params.{stage}."
    if not isinstance(node, dict):
        raise UserError(f"{path}: {where.rstrip('.')} is not a mapping; expected a VQ-GAN's config")
    class_key, inside = "target", f"{where}params."
    if "class_path" in node:
        class_key, inside = "class_path", f"{where}init_args."
    family = _family_of(node.get(class_key), f"{where}{class_key}", path)
    params = node.get(inside.split(".")[-2])
    if not isinstance(params, dict) or not isinstance(params.get("ddconfig"), dict):
        raise UserError(f"{path}: {inside}ddconfig is missing; expected a VQ-GAN's config")
    names = {key: f"{inside}{key}" for key in params}
    names |= {key: f"{inside}ddconfig.{key}" for key in params["ddconfig"]}
    declaration = _declare(path, family, params | params["ddconfig"], names)
    if family is None:
        return declaration
    gumbel = ExpectedField(f"{where}{class_key}", "gumbel", family == "gumbel")
    return replace(declaration, fields=(*declaration.fields, gumbel))


def _family_of(target: Any, key: str, path: Path) -> str | None:
    if target is None:
        return None
    known = {ending: name for name, family in FAMILIES.items() for ending in family.targets}
    for ending, name in known.items():
        if f".{target}".endswith(f".{ending}"):
            return name
    reason = REFUSED_CLASSES.get(str(target).rpartition(".")[2], f"known are {', '.join(known)}")
    raise UserError(f"{path}: {key} {target} is not supported: {reason}")


def _declare(
    path: Path, name: str | None, config: Config, names: Mapping[str, str] | None = None
) -> Declaration:
    """names: how messages call the keys."""
    family, names = FAMILIES[name or "ldm"], names or {}  # LDM's keys are a superset of taming's
    config = {key: value for key, value in config.items() if key not in family.ignored}
    for key, supported in family.supported.items():
        if (value := config.get(key)) is not None and value not in supported:
            expected = " or ".join(map(str, supported))
            raise UserError(
                f"{path}: {names.get(key, key)} {value!r} is not supported: {expected} is"
            )
    try:
        fields = tuple(_expected_fields(name or "ldm", config, names))
    # The file is foreign; a value of a wrong type may surface anywhere.
    except (TypeError, AttributeError) as error:
        raise UserError(f"{path} holds a value of a wrong type: {error}") from error
    declaration = Declaration(path, name, fields)
    groups = declaration.get("groups", 32)
    if not isinstance(groups, int) or groups < 1:
        raise UserError(f"{path}: num_groups is {groups!r}, expected a whole number above 0")
    return declaration


def _expected_fields(
    family: str, config: Config, names: Mapping[str, str]
) -> Iterator[ExpectedField]:
    for key, facts, *compute in FAMILIES[family].rows:
        value = compute[0](config) if compute else config.get(key)
        if value is not None:
            for fact in facts.split():
                yield ExpectedField(names.get(key, key), fact, value)


def check_declared(declaration: Declaration, arch: Architecture, checkpoint: Path) -> None:
    """Raises UserError naming both values at the first fact that the tensors contradict."""
    facts = arch.facts()
    for field in declaration.fields:
        if field.fact in _RULES or field.value == facts[field.fact]:
            continue
        title = _FACT_TITLES.get(field.fact, field.fact)
        raise UserError(
            f"{declaration.source}: {field.key} says {title} {field.value}, but the tensors of "
            f"{checkpoint} say {facts[field.fact]}; they do not belong together"
        )


def architecture_of(declaration: Declaration) -> Architecture:
    """The architecture that a config describes by itself, for a network that has no tensors yet.

    Raises:
        UserError: the config leaves a fact open, or holds a value of a wrong type.
    """
    declared, source = declaration.get, declaration.source
    for fact in ("stem", "ch_mult", "res_blocks", "z_channels", "embed_dim", "codebook_size"):
        if declared(fact) is None:
            raise UserError(f"{source} does not say {fact}; cannot build a network")
    try:
        widths = tuple(declared("stem") * factor for factor in declared("ch_mult"))
        decoder_blocks = declared("decoder_res_blocks", declared("res_blocks"))
        if not isinstance(decoder_blocks, list):
            decoder_blocks = [decoder_blocks] * len(widths)
        encoder = Stack(
            widths=widths,
            blocks=(declared("res_blocks"),) * len(widths),
            attention=tuple(level in declared("attention", ()) for level in range(len(widths))),
            mid_attention=declared("mid_attention", True),
            resample_conv=declared("resample_conv", True),
        )
        decoder = replace(
            encoder,
            widths=tuple(declared("decoder_widths", widths)),
            blocks=tuple(number + 1 for number in decoder_blocks),
        )
    except TypeError as error:
        raise UserError(f"{source} holds a value of a wrong type: {error}") from error
    return Architecture(
        encoder=encoder,
        decoder=decoder,
        stem=declared("stem"),
        encoder_out=declared("z_channels"),
        z_channels=declared("z_channels"),
        embed_dim=declared("embed_dim"),
        codebook_size=declared("codebook_size"),
        gumbel=declared("gumbel", False),
        groups=declared("groups", 32),
    )
