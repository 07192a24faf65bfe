"""From a checkpoint of any supported family to a ready codec."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sundae.codec.vqgan.architecture import Architecture, infer_architecture
from sundae.codec.vqgan.backbone import VQGAN
from sundae.codec.vqgan.codec import Rules, VQGANCodec
from sundae.codec.vqgan.configs import read_config
from sundae.codec.vqgan.families import (
    canonical,
    detect_dialect,
    strip_prefix,
    with_averaged_weights,
    without_single_attention,
)
from sundae.codec.vqgan.safe_load import Tensors, read_tensors
from sundae.codec.vqgan.statement import FAMILIES, Statement, architecture_of, check_claims
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

# Families whose tensors are named as taming's; the first releases of diffusers were, too.
_TAMING_NAMED = frozenset({"taming", "gumbel", "ldm", "ibq", "openmuse", "diffusers"})

_RANGE_NAMES = {
    "[-1,1]": "signed",
    "-1..1": "signed",
    "[0,1]": "unit",
    "0..1": "unit",
}


@dataclass(frozen=True)
class Explicit:
    """What the caller states because no file does; None leaves it to the file or the family."""

    input_range: str | None = None
    distance: str | None = None
    tanh_out: bool | None = None


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
    """Load a pretrained VQ-GAN of any supported family onto the CPU.

    checkpoint: a file (.ckpt, .pt, .bin, .safetensors) or a folder with config.json and weights.
    config: the YAML or JSON it was trained with; found beside the weights in a folder, and not
        needed for LlamaGen, GumbelVQ and converted checkpoints.
    input_range: signed ([-1, 1]) or unit ([0, 1]), where the file cannot say: diffusers' VQModel.
    distance: l2, cosine, dot or gumbel; with input_range it replaces a missing config.
    tanh_out: whether the decoder ends in tanh; false unless the config says so.
    prefix: which VQ-GAN of a combined checkpoint; default the one that makes the tokens.
    precision: fp32, bf16 or auto, see `VQGANCodec`.

    Raises UserError, before anything is built, when the file is unsafe, damaged or of another kind,
    when config and tensors contradict each other, or when a rule is neither known nor stated; and
    when a weight is NaN or infinite.
    """
    weights, config_path = _locate(Path(checkpoint), None if config is None else Path(config))
    explicit = Explicit(_range_name(input_range), distance, tanh_out)
    if config_path is not None and _is_native(config_path):
        return _load_native(weights, config_path, explicit, precision)
    tensors = strip_prefix(read_tensors(weights), prefix, weights)
    statement = None
    if config_path is not None:
        stage = "cond_stage_config" if "cond_stage" in (prefix or "") else "first_stage_config"
        statement = read_config(config_path, stage)
    dialect = detect_dialect(tensors, weights)
    family = _family(dialect, statement, tensors, weights)
    if statement is not None and statement.use_ema:
        tensors = with_averaged_weights(tensors, weights)
    tensors = canonical(tensors, dialect)
    arch = infer_architecture(tensors, groups=statement.groups if statement else 32)
    if statement is not None:
        check_claims(statement, arch, weights)
    if family == "openmuse":
        tensors = without_single_attention(tensors)
        arch = infer_architecture(tensors, groups=arch.groups)
    rules = _rules(family, statement, explicit, weights)
    model = build(arch, rules, tensors, weights)
    return VQGANCodec(
        model,
        rules,
        family=family or "unknown",
        resolution=statement.resolution if statement else None,
        precision=precision,
    )


def new_vqgan(config: Path | str, *, precision: Precision = "auto") -> VQGANCodec:
    """An untrained VQ-GAN with the architecture and rules of a config, randomly initialised.

    config: YAML of taming, LDM or IBQ, or config.json of openMUSE, whose rules the family gives.

    Raises UserError when the config leaves something open.
    """
    statement = read_config(Path(config))
    rules = _rules(statement.family, statement, Explicit(), statement.source)
    model = VQGAN(architecture_of(statement), rules.distance)
    family = statement.family or "unknown"
    return VQGANCodec(
        model, rules, family=family, resolution=statement.resolution, precision=precision
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
            raise UserError(
                f"the folder {checkpoint} holds no weights; expected one of "
                f"{', '.join(_WEIGHT_NAMES)}"
            )
        checkpoint = weights[0]
    if config is None:
        config = _config_beside(checkpoint)
    return checkpoint, config


def _config_beside(checkpoint: Path) -> Path | None:
    """The JSON of a converted file, or the config.json of a folder from a model hub."""
    converted, hub = checkpoint.with_suffix(".json"), checkpoint.with_name("config.json")
    if _is_native(converted):
        return converted
    return hub if checkpoint.name in _WEIGHT_NAMES and hub.is_file() else None


def _range_name(input_range: str | None) -> str | None:
    if input_range is None:
        return None
    return _RANGE_NAMES.get(input_range.replace(" ", ""), input_range)


def _family(
    dialect: str, statement: Statement | None, tensors: dict[str, Tensor], weights: Path
) -> str | None:
    """The family by config and by tensors; None when only the caller can say.

    Raises UserError when the two disagree.
    """
    said = statement.family if statement else None
    fitting = _TAMING_NAMED if dialect == "taming" else {dialect}
    if statement is not None and said is not None and said not in fitting:
        raise UserError(
            f"{statement.source} describes {FAMILIES[said].title}, but the tensors of {weights} "
            f"are named as in {FAMILIES[dialect].title}; they do not belong together"
        )
    if dialect == "diffusers" and statement is None:
        raise UserError(f"{weights}: the config.json that diffusers writes beside it is missing")
    if said is not None or dialect != "taming":
        return said or dialect
    return "gumbel" if "quantize.proj.weight" in tensors else None


def _rules(
    family: str | None, statement: Statement | None, explicit: Explicit, weights: Path
) -> Rules:
    known = FAMILIES[family] if family else None
    distance = statement.distance if statement and statement.distance else None
    distance = distance or (known.distance if known else None)
    title = known.title if known else "this checkpoint"
    distance = _agree("distance", explicit.distance, distance, title)
    input_range = _agree(
        "input_range", explicit.input_range, known.input_range if known else None, title
    )
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
    stated = statement.tanh_out if statement else None
    tanh_out = _agree("tanh_out", explicit.tanh_out, stated, title)
    return Rules(distance, input_range, bool(tanh_out))


def _agree(key: str, explicit: Any, known: Any, title: str) -> Any:
    if explicit is not None and known is not None and explicit != known:
        raise UserError(f"{key} was stated as {explicit}, but {title} has {known}; leave it out")
    return known if explicit is None else explicit


def _is_native(path: Path) -> bool:
    if path.suffix != ".json":
        return False
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("format") == NATIVE_FORMAT


def _load_native(
    weights: Path, description: Path, explicit: Explicit, precision: Precision
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
        rules = Rules.from_dict(content["rules"])
        family, identity = str(content["family"]), str(content["identity"])
        resolution = content["resolution"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{description} is damaged ({error}); convert again") from error
    for key in ("distance", "input_range", "tanh_out"):
        _agree(key, getattr(explicit, key), getattr(rules, key), "the converted file")
    model = build(arch, rules, read_tensors(weights), weights)
    codec = VQGANCodec(model, rules, family=family, resolution=resolution, precision=precision)
    if codec.identity != identity:
        raise UserError(f"{weights} and {description} do not belong together; convert again")
    return codec
