"""Read a VQ-GAN's own config file, in any family's dialect; nothing in it is ever executed."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from sundae.codec.vqgan.statement import Claim, Statement
from sundae.common.errors import UserError

# Endings of `target` and `class_path`, most specific first; packages get vendored under any root.
_TARGETS = {
    "ldm.models.autoencoder.VQModelInterface": "ldm",
    "ldm.models.autoencoder.VQModel": "ldm",
    "taming.models.vqgan.GumbelVQ": "gumbel",
    "taming.models.vqgan.EMAVQ": "taming",
    "taming.models.vqgan.VQModel": "taming",
    "models.ibqgan.IBQ": "ibq",
}

# What openMUSE can set apart for the decoder.
_OPENMUSE_HALVES = ("hidden_channels", "channel_mult")

_REFUSED_CLASSES = {
    "MaskGitVQGAN": "its backbone is a different one (average pooling, no attention, no biases)",
    "AutoencoderKL": "it is continuous and has no tokens",
    "MOVQ": "its decoder is conditioned on the latents (spatial normalisation)",
    "PaellaVQModel": "its backbone is a different one",
    "JanusVQVAE": "its decoder levels are in another order; use the original LlamaGen-style file",
}


def read_config(path: Path, stage: str = "first_stage_config") -> Statement:
    """Read a YAML or JSON config.

    stage: which part of a combined config (a prior over a VQ-GAN) is meant.

    Raises UserError when the file cannot be read, holds Python objects, or describes something that
    this package cannot load.
    """
    content = _parse(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a config: expected a mapping, got {type(content).__name__}")
    _refuse_other_kinds(content, path)
    try:
        if "_class_name" in content:
            return _read_hub(content, path)
        if "encoder_ch_mult" in content or "codebook_embed_dim" in content:
            return _read_llamagen(content, path)
        return read_training(content, path, stage)
    # The file is foreign and nested; a value of a wrong type may surface anywhere below.
    except (TypeError, AttributeError) as error:
        raise UserError(f"{path} holds a value of a wrong type: {error}") from error


def _parse(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the config {path}: {error}") from error
    try:
        return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except yaml.constructor.ConstructorError as error:
        raise UserError(
            f"{path} holds objects beyond plain values, refused: {error.problem}"
        ) from error
    except (yaml.YAMLError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not valid: {' '.join(str(error).split())}") from error


def _refuse_other_kinds(content: Mapping[str, Any], path: Path) -> None:
    kind = str(content.get("model_type", ""))
    if "janus" in kind:
        raise UserError(f"{path}: JanusVQVAE is not supported: {_REFUSED_CLASSES['JanusVQVAE']}")
    arch = content.get("arch")
    if isinstance(arch, dict) and "rq" in str(arch.get("type", "")):
        raise UserError(
            f"{path}: RQ-VAE is not supported: it has several codes a position, (h, w, 4), where a "
            "token grid has one"
        )


def _read_hub(content: Mapping[str, Any], path: Path) -> Statement:
    """config.json with `_class_name`: diffusers or openMUSE."""
    name = content["_class_name"]
    if name == "VQModel":
        return _read_diffusers(content, path)
    if name == "VQGANModel":
        return _read_openmuse(content, path)
    reason = _REFUSED_CLASSES.get(name, "expected VQModel (diffusers) or VQGANModel (openMUSE)")
    raise UserError(f"{path}: _class_name {name} is not supported: {reason}")


def _read_diffusers(content: Mapping[str, Any], path: Path) -> Statement:
    if "ch" in content:  # the first releases kept taming's names
        claims = _ddconfig_claims(content, "", path) + _codebook_claims(content, "")
        return Statement(path, "diffusers", claims)
    _demand(content, path, "norm_type", ("group",))
    _demand(content, path, "act_fn", ("silu", "swish"))
    widths = content.get("block_out_channels")
    layers = content.get("layers_per_block")
    down, up = content.get("down_block_types"), content.get("up_block_types")
    embed_dim = content.get("vq_embed_dim") or content.get("latent_channels")
    claims = _claims(
        ("block_out_channels", ("widths", "decoder_widths"), widths),
        ("layers_per_block", ("res_blocks", "decoder_res_blocks"), layers),
        ("latent_channels", ("z_channels",), content.get("latent_channels")),
        ("vq_embed_dim", ("embed_dim",), embed_dim),
        ("num_vq_embeddings", ("codebook_size",), content.get("num_vq_embeddings")),
        ("down_block_types", ("attention",), _attention_of(down)),
        ("up_block_types", ("decoder_attention",), _attention_of(reversed(up) if up else None)),
        ("mid_block_add_attention", ("mid_attention",), content.get("mid_block_add_attention")),
    )
    return Statement(path, "diffusers", claims, groups=content.get("norm_num_groups") or 32)


def _attention_of(block_types: Iterable[str] | None) -> list[int] | None:
    """Levels whose block type is an attention one."""
    if block_types is None:
        return None
    return [level for level, name in enumerate(block_types) if str(name).startswith("Attn")]


def _read_openmuse(content: Mapping[str, Any], path: Path) -> Statement:
    half = {key: content.get(f"decoder_{key}") or content.get(key) for key in _OPENMUSE_HALVES}
    no_attention = content.get("no_attn_mid_block")
    attends = None if no_attention is None else not no_attention
    levels = _levels(content, content.get("channel_mult"), path)
    claims = _claims(
        ("hidden_channels", ("stem",), content.get("hidden_channels")),
        ("channel_mult", ("ch_mult",), content.get("channel_mult")),
        ("num_res_blocks", ("res_blocks",), content.get("num_res_blocks")),
        ("decoder_channel_mult", ("decoder_widths",), _products(**half)),
        ("decoder_res_blocks", ("decoder_res_blocks",), _decoder_blocks(content)),
        ("attn_resolutions", ("attention", "decoder_attention"), levels),
        ("no_attn_mid_block", ("mid_attention",), attends),
        ("z_channels", ("z_channels",), content.get("z_channels")),
        ("num_embeddings", ("codebook_size",), content.get("num_embeddings")),
        ("quantized_embed_dim", ("embed_dim",), content.get("quantized_embed_dim")),
        ("resample_with_conv", ("resample_conv",), content.get("resample_with_conv")),
    )
    return Statement(path, "openmuse", claims, resolution=content.get("resolution"))


def _products(hidden_channels: Any, channel_mult: Any) -> list[int] | None:
    """Widths of the levels; None when the config does not say."""
    if hidden_channels is None or channel_mult is None:
        return None
    return [hidden_channels * factor for factor in channel_mult]


def _decoder_blocks(content: Mapping[str, Any]) -> Any:
    """One number for all levels, or a list with one for each; the encoder's unless said."""
    blocks = content.get("decoder_res_blocks")
    if blocks is None:
        return content.get("num_res_blocks")
    return blocks[0] if isinstance(blocks, list) and len(set(blocks)) == 1 else blocks


def _read_llamagen(content: Mapping[str, Any], path: Path) -> Statement:
    claims = _claims(
        ("encoder_ch_mult", ("ch_mult",), content.get("encoder_ch_mult")),
        ("decoder_ch_mult", ("decoder_ch_mult",), content.get("decoder_ch_mult")),
        ("z_channels", ("z_channels",), content.get("z_channels")),
        ("codebook_size", ("codebook_size",), content.get("codebook_size")),
        ("codebook_embed_dim", ("embed_dim",), content.get("codebook_embed_dim")),
    )
    distance = "l2" if content.get("codebook_l2_norm") is False else None
    return Statement(path, "llamagen", claims, distance=distance)


def read_training(content: Mapping[str, Any], path: Path, stage: str) -> Statement:
    """A training run's YAML: `target` and `params`, or Lightning's `class_path`, `init_args`."""
    node = content.get("model", content)
    where = "model." if "model" in content else ""
    node, where = _descend(node, where, path, stage)
    named = "class_path" if "class_path" in node else "target"
    inside = "init_args" if named == "class_path" else "params"
    family = _family_of(node.get(named), f"{where}{named}", path)
    params = node.get(inside)
    if not isinstance(params, dict) or not isinstance(params.get("ddconfig"), dict):
        raise UserError(f"{path}: {where}{inside}.ddconfig is missing; expected a VQ-GAN's config")
    _refuse_variants(params, f"{where}{inside}.", path)
    # taming's and IBQ's networks swallow LDM's keywords without a word: there they mean nothing.
    swallowed = ("attn_type", "tanh_out") if family in ("taming", "gumbel", "ibq") else ()
    dd = {key: value for key, value in params["ddconfig"].items() if key not in swallowed}
    claims = _codebook_claims(params, f"{where}{inside}.")
    claims += _ddconfig_claims(dd, f"{where}{inside}.ddconfig.", path)
    if family is not None:
        claims += (Claim(f"{where}{named}", "gumbel", family == "gumbel"),)
    return Statement(
        path,
        family,
        claims,
        tanh_out=bool(dd.get("tanh_out")),
        groups=_groups(dd, f"{where}{inside}.ddconfig.", path),
        resolution=dd.get("resolution"),
        use_ema=family == "ibq" and params.get("use_ema") is not False,
    )


def _groups(dd: Mapping[str, Any], where: str, path: Path) -> int:
    """GroupNorm's groups: a key of ours. Taming and its descendants always have 32."""
    groups = dd.get("num_groups", 32)
    if not isinstance(groups, int) or groups < 1:
        raise UserError(f"{path}: {where}num_groups is {groups!r}, expected a whole number above 0")
    return groups


def _descend(node: Any, where: str, path: Path, stage: str) -> tuple[Mapping[str, Any], str]:
    """Into the VQ-GAN inside a combined config, if it is one."""
    params = node.get("params") if isinstance(node, dict) else None
    if isinstance(params, dict) and isinstance(params.get(stage), dict):
        return params[stage], f"{where}params.{stage}."
    if not isinstance(node, dict):
        raise UserError(f"{path}: {where.rstrip('.')} is not a mapping; expected a VQ-GAN's config")
    return node, where


def _family_of(target: Any, key: str, path: Path) -> str | None:
    """Compare the name of the class; it is never imported."""
    if target is None:
        return None
    for ending, family in _TARGETS.items():
        if target == ending or str(target).endswith("." + ending):
            return family
    reason = _REFUSED_CLASSES.get(str(target).rpartition(".")[2], "")
    known = f"known are {', '.join(_TARGETS)}"
    raise UserError(f"{path}: {key} {target} is not supported: {reason or known}")


def _refuse_variants(params: Mapping[str, Any], where: str, path: Path) -> None:
    for key in ("l2_normalize", "cosine_similarity"):
        if params.get(key):
            raise UserError(f"{path}: {where}{key} is {params[key]}; this variant is not supported")


def _demand(
    content: Mapping[str, Any], path: Path, key: str, known: tuple[str, ...], where: str = ""
) -> None:
    value = content.get(key, known[0])
    if value not in known:
        raise UserError(f"{path}: {where}{key} {value!r} is not supported: {' or '.join(known)} is")


def _codebook_claims(params: Mapping[str, Any], where: str) -> tuple[Claim, ...]:
    return _claims(
        (f"{where}n_embed", ("codebook_size",), params.get("n_embed")),
        (f"{where}embed_dim", ("embed_dim",), params.get("embed_dim")),
    )


def _ddconfig_claims(dd: Mapping[str, Any], where: str, path: Path) -> tuple[Claim, ...]:
    _demand(dd, path, "attn_type", ("vanilla", "none"), where)
    attends = dd.get("attn_type", "vanilla") != "none"
    levels = _levels(dd, dd.get("ch_mult"), path) if attends else []
    return _claims(
        (f"{where}ch", ("stem",), dd.get("ch")),
        (f"{where}ch_mult", ("ch_mult", "decoder_ch_mult"), dd.get("ch_mult")),
        (f"{where}num_res_blocks", ("res_blocks", "decoder_res_blocks"), dd.get("num_res_blocks")),
        (f"{where}attn_resolutions", ("attention", "decoder_attention"), levels),
        (f"{where}attn_type", ("mid_attention",), attends),
        (f"{where}z_channels", ("z_channels",), dd.get("z_channels")),
        (f"{where}double_z", ("double_z",), dd.get("double_z")),
        (f"{where}in_channels", ("in_channels",), dd.get("in_channels")),
        (f"{where}out_ch", ("out_channels",), dd.get("out_ch")),
        (f"{where}resamp_with_conv", ("resample_conv",), dd.get("resamp_with_conv")),
    )


def _levels(content: Mapping[str, Any], ch_mult: Any, path: Path) -> list[int] | None:
    """Levels with attention: those whose side, from the nominal resolution, is listed."""
    sides, resolution = content.get("attn_resolutions"), content.get("resolution")
    if sides is None or ch_mult is None:
        return None
    sides = sides if isinstance(sides, list) else [sides]
    if sides and not isinstance(resolution, int):
        raise UserError(f"{path}: attn_resolutions {sides} need an integer resolution beside them")
    return [i for i in range(len(ch_mult)) if sides and resolution // 2**i in sides]


def _claims(*rows: tuple[str, tuple[str, ...], Any]) -> tuple[Claim, ...]:
    return tuple(
        Claim(key, fact, value) for key, facts, value in rows if value is not None for fact in facts
    )
