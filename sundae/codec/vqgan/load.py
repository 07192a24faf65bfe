"""From a checkpoint of any supported family to a ready codec."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

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
_RANGE_NAMES = {"[-1,1]": "signed", "-1..1": "signed", "[0,1]": "unit", "0..1": "unit"}


@dataclass(frozen=True)
class Overrides:
    """What the caller states where no file does; None leaves it to the file or the family."""

    input_range: str | None = None
    distance: str | None = None
    tanh_out: bool | None = None

    def agreed(self, key: str, known: Any, title: str) -> Any:
        """The value of a key, stated or known; UserError when the two differ."""
        stated = getattr(self, key)
        if None not in (stated, known) and stated != known:
            raise UserError(f"{key} was stated as {stated}, but {title} has {known}; leave it out")
        return known if stated is None else stated


def load_vqgan(
    checkpoint: Path | str,
    config: Path | str | None = None,
    *,
    input_range: str | None = None,
    distance: str | None = None,
    tanh_out: bool | None = None,
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
        tanh_out: whether the decoder ends in tanh; false unless the config says so.
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
    overrides = Overrides(input_range, distance, tanh_out)
    if config_path is not None and _is_native(config_path):
        return _load_native(weights, config_path, overrides, precision)
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
    rules = _rules(family, declaration, overrides, weights)
    return VQGANCodec(
        build(arch, rules, tensors, weights),
        rules,
        family=family or "unknown",
        resolution=declaration.get("resolution"),
        precision=precision,
    )


def new_vqgan(config: Path | str, *, precision: Precision = "auto") -> VQGANCodec:
    """An untrained VQ-GAN with the architecture and rules of a config, randomly initialised.

    Args:
        config: YAML of taming, LDM or IBQ, or config.json of openMUSE, whose rules the family
            gives.
        precision: see `VQGANCodec`.

    Raises:
        UserError: the config leaves something open.
    """
    declaration = read_config(Path(config))
    rules = _rules(declaration.family, declaration, Overrides(), declaration.source)
    return VQGANCodec(
        VQGAN(architecture_of(declaration), rules.distance),
        rules,
        family=declaration.family or "unknown",
        resolution=declaration.get("resolution"),
        precision=precision,
    )


def build(arch: Architecture, rules: Rules, tensors: Tensors, source: Path) -> VQGAN:
    """A VQGAN holding `tensors` (canonical names) as float32; no weight is initialised first.

    Raises UserError naming a tensor that is missing, extra, of another shape or not finite.
    """
    with torch.device("meta"):
        model = VQGAN(arch, rules.distance)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name in sorted(expected.keys() ^ tensors.keys()):
        problem = "is missing" if name in expected else "has no place in this network"
        raise UserError(f"{source}: the tensor {name} {problem}")
    for name, shape in expected.items():
        if tuple(tensors[name].shape) != shape:
            found = tuple(tensors[name].shape)
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
    if config is None and _is_native(converted):
        config = converted
    elif config is None and checkpoint.name in _WEIGHT_NAMES and hub.is_file():
        config = hub
    return checkpoint, config


def _family(
    naming: Naming, declaration: Declaration, tensors: Tensors, weights: Path
) -> str | None:
    """The family by config and by tensors; None when only the caller can say.

    Raises UserError when the two disagree.
    """
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


def _rules(
    family: str | None, declaration: Declaration, overrides: Overrides, weights: Path
) -> Rules:
    known = FAMILIES[family] if family else None
    title = known.title if known else "this checkpoint"
    distance = declaration.get("distance", known.distance if known else None)
    distance = overrides.agreed("distance", distance, title)
    input_range = overrides.agreed("input_range", known.input_range if known else None, title)
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
    tanh_out = declaration.get("tanh_out", False if declaration.fields else None)
    tanh_out = overrides.agreed("tanh_out", tanh_out, title)
    return Rules(distance, input_range, bool(tanh_out))


def _is_native(path: Path) -> bool:
    if path.suffix != ".json":
        return False
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("format") == NATIVE_FORMAT


def _load_native(
    weights: Path, description: Path, overrides: Overrides, precision: Precision
) -> VQGANCodec:
    """A converted checkpoint: everything is stated, and the identity proves that both files fit."""
    content = json.loads(description.read_text(encoding="utf-8"))
    if content.get("version") != NATIVE_VERSION:
        raise UserError(
            f"{description} has version {content.get('version')}, expected {NATIVE_VERSION}; "
            "convert the original checkpoint again"
        )
    try:
        arch = Architecture.from_dict(content["architecture"])
        rules = Rules(**content["rules"])
        family, identity = str(content["family"]), str(content["identity"])
        resolution = content["resolution"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{description} is damaged ({error}); convert again") from error
    for key in ("distance", "input_range", "tanh_out"):
        overrides.agreed(key, getattr(rules, key), "the converted file")
    model = build(arch, rules, read_tensors(weights), weights)
    codec = VQGANCodec(model, rules, family=family, resolution=resolution, precision=precision)
    if codec.identity != identity:
        raise UserError(f"{weights} and {description} do not belong together; convert again")
    return codec
