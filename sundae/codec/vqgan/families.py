"""Every family's tensor names, brought to the canonical ones: taming's."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from sundae.codec.vqgan.safe_load import Tensors
from sundae.common.errors import UserError

# Every family of this kind has it, and nothing else in a combined checkpoint does.
_LANDMARK = "encoder.conv_in.weight"

# Present in honest checkpoints and of no use to a codec: losses and discriminators, averages of
# weights, counters of code usage, the vocabulary remap of a particular prior.
_LEFTOVERS = re.compile(
    r"loss\.|model_ema\.|discriminator\.|colorize$|scale_factor$"
    r"|quantize\.(used|codebook_used|embedding\.cluster_size|embedding\.embed_avg)$"
)


def strip_prefix(tensors: Tensors, prefix: str | None, checkpoint: Path) -> Tensors:
    """The tensors of one VQ-GAN, whatever larger model it is stored in.

    prefix: which one, such as "first_stage_model."; None takes the only one there is. A second
        VQ-GAN that merely encodes a condition (cond_stage_model) has to be asked for.

    Raises UserError when there is none, several, or not the one asked for.
    """
    found = [name[: -len(_LANDMARK)] for name in tensors if name.endswith(_LANDMARK)]
    found = [p for p in found if not p or p.endswith(".")]
    if prefix is None:
        candidates = [p for p in found if "cond_stage_model." not in p]
    else:
        candidates = [p for p in found if p == prefix]
    if not candidates:
        _refuse_without_landmark(tensors, prefix, found, checkpoint)
    if len(candidates) > 1:
        raise UserError(
            f"{checkpoint} holds {len(candidates)} VQ-GANs; choose one by prefix: "
            f"{', '.join(repr(p) for p in candidates)}"
        )
    chosen = candidates[0]
    return {n[len(chosen) :]: tensor for n, tensor in tensors.items() if n.startswith(chosen)}


def _refuse_without_landmark(
    tensors: Tensors, prefix: str | None, found: list[str], checkpoint: Path
) -> None:
    if found:
        asked = "" if prefix is None else f" under {prefix!r}"
        raise UserError(
            f"{checkpoint} has no VQ-GAN{asked}; it has one under "
            f"{', '.join(repr(p) for p in found)}: choose it by prefix"
        )
    names = ", ".join(list(tensors)[:3])
    raise UserError(f"{checkpoint} is not a VQ-GAN this can read; its tensors are {names}, ...")


def detect_dialect(names: Iterable[str], checkpoint: Path) -> str:
    """Which naming the tensors follow: taming, diffusers or llamagen.

    Raises UserError for networks that look alike and are not.
    """
    names = set(names)

    def has(pattern: str) -> bool:
        return any(re.match(pattern, name) for name in names)

    def refuse(reason: str) -> UserError:
        return UserError(f"{checkpoint} is not supported: {reason}")

    if has(r"quantizer\.codebooks"):
        raise refuse(
            "an RQ-VAE has several codes a position, (h, w, 4), where a token grid has one"
        )
    if has(r"encoder\.conv_blocks\.\d+\.res\."):
        return "llamagen"
    if has(r"encoder\.down_blocks\.\d+\.resnets\."):
        return "diffusers"
    if has(r"encoder\.mid\.0\."):
        raise refuse("it looks like MaskGIT-VQGAN, whose backbone is a different one")
    if has(r"decoder\.up\.0\.upsample\."):
        raise refuse(
            "its decoder counts levels from the lowest resolution, as JanusVQVAE of transformers "
            "does; use the original LlamaGen-style file"
        )
    if not has(r"quantize\.embed(ding)?\.weight"):
        raise refuse("it has no codebook (quantize.embedding.weight); is it a KL autoencoder?")
    return "taming"


def canonical(tensors: Tensors, dialect: str) -> Tensors:
    """Rename to taming's names and drop what a codec has no use for.

    Values are untouched, except that diffusers' attention matrices (C, C) become 1x1 convolutions
    (C, C, 1, 1).
    """
    kept = {name: tensor for name, tensor in tensors.items() if not _LEFTOVERS.match(name)}
    rename = _renamer(dialect, kept)
    renamed = {rename(name): tensor for name, tensor in kept.items()}
    for name, tensor in renamed.items():
        if tensor.ndim == 2 and re.search(r"\.(q|k|v|proj_out)\.weight$", name):
            renamed[name] = tensor[:, :, None, None]
    return renamed


def _renamer(dialect: str, tensors: Tensors) -> Callable[[str], str]:
    rules = {"taming": _TAMING, "diffusers": _DIFFUSERS, "llamagen": _LLAMAGEN}[dialect]
    decoder_level = re.compile(r"^decoder\.(?:up_blocks|conv_blocks)\.(\d+)")
    levels = {int(match[1]) for match in map(decoder_level.match, tensors) if match}

    def rename(name: str) -> str:
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        # Both families count decoder levels from the lowest resolution, taming from the pixels.
        return decoder_level.sub(lambda match: f"decoder.up.{max(levels) - int(match[1])}", name)

    return rename


_TAMING = ((r"^quantize\.embed\.weight$", "quantize.embedding.weight"),)

_LLAMAGEN = (
    (r"\.mid\.0\.", ".mid.block_1."),
    (r"\.mid\.1\.", ".mid.attn_1."),
    (r"\.mid\.2\.", ".mid.block_2."),
    (r"\.res\.", ".block."),
    (r"^encoder\.conv_blocks\.", "encoder.down."),
)

_DIFFUSERS = (
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"\.mid_block\.attentions\.0\.", ".mid.attn_1."),
    (r"\.resnets\.", ".block."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.attentions\.", ".attn."),
    (r"(\.attn(?:_1|\.\d+)\.)group_norm\.", r"\1norm."),
    (r"(\.attn(?:_1|\.\d+)\.)(?:to_q|query)\.", r"\1q."),
    (r"(\.attn(?:_1|\.\d+)\.)(?:to_k|key)\.", r"\1k."),
    (r"(\.attn(?:_1|\.\d+)\.)(?:to_v|value)\.", r"\1v."),
    (r"(\.attn(?:_1|\.\d+)\.)(?:to_out\.0|proj_attn)\.", r"\1proj_out."),
    (r"\.downsamplers\.0\.", ".downsample."),
    (r"\.upsamplers\.0\.", ".upsample."),
    (r"\.conv_norm_out\.", ".norm_out."),
    (r"^encoder\.down_blocks\.", "encoder.down."),
)


def with_averaged_weights(tensors: Tensors, checkpoint: Path) -> Tensors:
    """Replace weights by their moving averages, `model_ema.` plus the name without its dots.

    A file without averages is returned as it is; one with some missing is refused.
    """
    averages = {n[10:]: t for n, t in tensors.items() if n.startswith("model_ema.")}
    weights = [name for name in tensors if not _LEFTOVERS.match(name)]
    if not averages:
        return tensors
    missing = [name for name in weights if name.replace(".", "") not in averages]
    if missing:
        raise UserError(f"{checkpoint}: the average (model_ema) of {missing[0]} is missing")
    return tensors | {name: averages[name.replace(".", "")] for name in weights}


def without_single_attention(tensors: Tensors) -> Tensors:
    """Drop the attention of levels with one block: openMUSE has it and never runs it.

    Its blocks attend only `if len(self.attn) > 1`, so with num_res_blocks = 1 the encoder skips it.
    """
    multiple = {
        match[1] for match in (re.match(r"(.*\.attn)\.1\.", name) for name in tensors) if match
    }
    return {
        name: tensor
        for name, tensor in tensors.items()
        if not (match := re.match(r"(.*\.attn)\.0\.", name)) or match[1] in multiple
    }
