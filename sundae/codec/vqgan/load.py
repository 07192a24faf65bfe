"""From a checkpoint of any supported family to a ready codec."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from sundae.codec.vqgan.architecture import Architecture, infer_architecture
from sundae.codec.vqgan.backbone import VQGAN
from sundae.codec.vqgan.codec import Rules, VQGANCodec
from sundae.codec.vqgan.configs import Declaration, architecture_of, check_declared, read_config
from sundae.codec.vqgan.families import DIFFUSERS, FAMILIES, LLAMAGEN, Naming
from sundae.codec.vqgan.safe_load import Tensors, read_tensors
from sundae.codec.vqgan.tensors import (
    canonical,
    detect_naming,
    strip_prefix,
    with_averaged_weights,
    without_single_attention,
)
from sundae.common.errors import UserError
from sundae.common.finite import first_non_finite
from sundae.common.precision import Precision

NATIVE_FORMAT = "sundae-vqgan"
NATIVE_VERSION = 1

# What a folder may call its weights, in order of preference.
_WEIGHT_NAMES = (
    "vqgan.safetensors",
    "diffusion_pytorch_model.safetensors",
    "model.safetensors",
    "diffusion_pytorch_model.bin",
    "pytorch_model.bin",
)
# What the caller states about the rules; None leaves a rule to the file or the family.
Stated = Mapping[str, Any]

_RANGE_NAMES = {"[-1,1]": "signed", "-1..1": "signed", "[0,1]": "unit", "0..1": "unit"}


def load_vqgan(
    checkpoint: Path | str,
    config: Path | str | None = None,
    *,
    input_range: str | None = None,
    distance: str | None = None,
    prefix: str | None = None,
    precision: Precision = "auto",
) -> VQGANCodec:
    """Loads a pretrained VQ-GAN of any supported family onto the CPU.

    Args:
        checkpoint: a file (.ckpt, .pt, .bin, .safetensors) or a folder with config.json and
            weights.
        config: the YAML or JSON it was trained with; found beside the weights in a folder, and not
            needed for LlamaGen, GumbelVQ and converted checkpoints.
        input_range: signed ([-1, 1]) or unit ([0, 1]), where the file does not say: diffusers'
            VQModel.
        distance: l2, cosine, dot or gumbel; with input_range it replaces a missing config.
        prefix: which VQ-GAN of a combined checkpoint; default the one that makes the tokens.
        precision: fp32, bf16 or auto, see `VQGANCodec`.

    Raises:
        UserError: before anything is built, when the file is unsafe, damaged or of another kind,
            when config and tensors contradict each other, or when a rule is neither known nor
            stated; and when a weight is NaN or infinite.
    """
    weights, config_path = _locate(Path(checkpoint), None if config is None else Path(config))
    if input_range is not None:
        input_range = _RANGE_NAMES.get(input_range.replace(" ", ""), input_range)
    stated = {"distance": distance, "input_range": input_range}
    if config_path is not None and (description := _native_description(config_path)):
        return _load_native(weights, config_path, description, stated, precision)
    tensors = strip_prefix(read_tensors(weights), prefix, weights)
    stage = "cond_stage_config" if "cond_stage" in (prefix or "") else "first_stage_config"
    declaration = (
        Declaration(weights, None, ()) if config_path is None else read_config(config_path, stage)
    )
    naming = detect_naming(tensors, weights)
    if naming is DIFFUSERS and config_path is None:
        raise UserError(f"{weights}: the config.json that diffusers writes beside it is missing")
    family = _family(naming, declaration, tensors, weights)
    if declaration.get("use_ema"):
        tensors = with_averaged_weights(tensors, weights)
    tensors = canonical(tensors, naming)
    arch = infer_architecture(tensors, groups=declaration.get("groups", 32))
    check_declared(declaration, arch, weights)
    if family == "openmuse":
        tensors = without_single_attention(tensors)
        arch = infer_architecture(tensors, groups=arch.groups)
    rules = _rules(family, declaration, stated, weights)
    return VQGANCodec(
        build(arch, rules, tensors, weights),
        rules,
        family=family or "unknown",
        resolution=declaration.get("resolution"),
        precision=precision,
    )


def new_vqgan(config: Path | str, *, precision: Precision = "auto") -> VQGANCodec:
    """An untrained VQ-GAN with the architecture and rules of a config, randomly initialised.

    Raises:
        UserError: the config leaves something open; only taming's, LDM's, IBQ's and openMUSE's say
            all of it.
    """
    declaration = read_config(Path(config))
    rules = _rules(declaration.family, declaration, {}, declaration.source)
    return VQGANCodec(
        VQGAN(architecture_of(declaration), rules.distance),
        rules,
        family=declaration.family or "unknown",
        resolution=declaration.get("resolution"),
        precision=precision,
    )


def build(arch: Architecture, rules: Rules, tensors: Tensors, source: Path) -> VQGAN:
    """A VQGAN holding `tensors` (canonical names) as float32; no weight is initialised first.

    Raises:
        UserError: naming a tensor that is missing, extra, of another shape or not finite.
    """
    with torch.device("meta"):
        model = VQGAN(arch, rules.distance)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name in sorted(expected.keys() ^ tensors.keys()):
        problem = "is missing" if name in expected else "has no place in this network"
        raise UserError(f"{source}: the tensor {name} {problem}")
    for name, shape in expected.items():
        if (found := tuple(tensors[name].shape)) != shape:
            raise UserError(f"{source}: {name} has shape {found}, the network needs {shape}")
        if not tensors[name].is_floating_point():
            raise UserError(f"{source}: {name} has dtype {tensors[name].dtype}, expected floats")
    # Copies: the file stays memory-mapped otherwise, and whoever overwrites it changes the codec.
    own = {name: tensor.to(torch.float32, copy=True) for name, tensor in tensors.items()}
    broken = first_non_finite(own)
    if broken is not None:
        raise UserError(f"{source}: {broken} holds NaN or infinite values; use another checkpoint")
    model.load_state_dict(own, assign=True)
    return model


def _locate(checkpoint: Path, config: Path | None) -> tuple[Path, Path | None]:
    """The weights file, and the config given or lying beside it."""
    if config is not None and not config.is_file():
        raise UserError(f"config {config} does not exist")
    if checkpoint.is_dir():
        weights = [checkpoint / n for n in _WEIGHT_NAMES if (checkpoint / n).is_file()]
        if not weights:
            names = ", ".join(_WEIGHT_NAMES)
            raise UserError(f"the folder {checkpoint} holds no weights; expected one of {names}")
        checkpoint = weights[0]
    converted, hub = checkpoint.with_suffix(".json"), checkpoint.with_name("config.json")
    if config is None and _native_description(converted):
        config = converted
    elif config is None and checkpoint.name in _WEIGHT_NAMES and hub.is_file():
        config = hub
    return checkpoint, config


def _family(
    naming: Naming, declaration: Declaration, tensors: Tensors, weights: Path
) -> str | None:
    """The family by config and by tensors, which have to agree; None when only the caller knows."""
    declared = declaration.family
    if declared is None and naming is LLAMAGEN:
        return "llamagen"
    if declared is None:
        return "gumbel" if "quantize.proj.weight" in tensors else None
    if naming not in FAMILIES[declared].namings:
        raise UserError(
            f"{declaration.source} describes {FAMILIES[declared].title}, but the tensors of "
            f"{weights} are named as in {naming.title}; they do not belong together"
        )
    return declared


def _agreed(key: str, stated: Stated, known: Any, title: str) -> Any:
    """The value of a rule, stated or known; UserError when the two differ."""
    value = stated.get(key)
    if None not in (value, known) and value != known:
        raise UserError(f"{key} was stated as {value}, but {title} has {known}; leave it out")
    return known if value is None else value


def _rules(family: str | None, declaration: Declaration, stated: Stated, weights: Path) -> Rules:
    known = FAMILIES[family] if family else None
    title = known.title if known else "this checkpoint"
    distance = declaration.get("distance", known.distance if known else None)
    distance = _agreed("distance", stated, distance, title)
    input_range = _agreed("input_range", stated, known.input_range if known else None, title)
    if distance is None:
        raise UserError(
            f"{weights}: taming, LDM, IBQ and openMUSE name their tensors alike and differ in "
            "their rules; give the config it was trained with, or state distance and input_range"
        )
    if input_range is None:
        raise UserError(
            f"{weights}: {title} does not say its pixel range; state input_range: signed for "
            "[-1, 1] (ports of LDM), unit for [0, 1] (aMUSEd)"
        )
    return Rules(distance, input_range, bool(declaration.get("tanh_out")))


def _native_description(path: Path) -> dict[str, Any] | None:
    """The content of the JSON beside a converted checkpoint; None when it is anything else."""
    if path.suffix != ".json":
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and content.get("format") == NATIVE_FORMAT else None


def _load_native(
    weights: Path, path: Path, description: dict[str, Any], stated: Stated, precision: Precision
) -> VQGANCodec:
    """A converted checkpoint: everything is stated, and the identity proves that both files fit."""
    if description.get("version") != NATIVE_VERSION:
        raise UserError(
            f"{path} has version {description.get('version')}, expected {NATIVE_VERSION}; "
            "convert the original checkpoint again"
        )
    try:
        arch = TypeAdapter(Architecture).validate_python(description["architecture"])
        rules = Rules(**description["rules"])
        family, resolution = description["family"], description["resolution"]
        identity = description["identity"]
    except (KeyError, TypeError, ValidationError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is damaged ({reason}); convert again") from error
    for key in stated:
        _agreed(key, stated, getattr(rules, key), "the converted file")
    model = build(arch, rules, read_tensors(weights), weights)
    codec = VQGANCodec(model, rules, family=family, resolution=resolution, precision=precision)
    if codec.identity != identity:
        raise UserError(f"{weights} and {path} do not belong together; convert again")
    return codec
