"""The tensors of one VQ-GAN in a checkpoint, by their canonical names: taming's."""

import re
from collections.abc import Iterable
from pathlib import Path

from sundae.codec.vqgan.families import NAMINGS, REFUSED_TENSORS, TAMING, Naming
from sundae.codec.vqgan.safe_load import Tensors
from sundae.common.errors import UserError

# A tensor of every family, and of nothing else in a combined checkpoint.
_LANDMARK = "encoder.conv_in.weight"

# Part of honest checkpoints and of no use to a codec: losses and discriminators, averages of
# weights, counters of code usage, the vocabulary remap of a particular prior.
_LEFTOVERS = re.compile(
    r"loss\.|model_ema\.|discriminator\.|colorize$|scale_factor$"
    r"|quantize\.(used|codebook_used|embedding\.cluster_size|embedding\.embed_avg)$"
)
_DECODER_LEVEL = re.compile(r"^decoder\.(?:up_blocks|conv_blocks)\.(\d+)")


def strip_prefix(tensors: Tensors, prefix: str | None, checkpoint: Path) -> Tensors:
    """The tensors of one VQ-GAN, whatever larger model it is stored in.

    Args:
        prefix: which one, such as "first_stage_model."; None takes the only one there is, not
            counting one that merely encodes a condition (cond_stage_model).

    Raises:
        UserError: there is none, there are several, or not this one.
    """
    found = [name[: -len(_LANDMARK)] for name in tensors if f".{name}".endswith(f".{_LANDMARK}")]
    candidates = [
        p for p in found if p == prefix or (prefix is None and "cond_stage_model." not in p)
    ]
    if len(candidates) == 1:
        chosen = candidates[0]
        return {n[len(chosen) :]: tensor for n, tensor in tensors.items() if n.startswith(chosen)}
    if candidates:
        raise UserError(
            f"{checkpoint} holds {len(candidates)} VQ-GANs; choose one by prefix: "
            f"{', '.join(map(repr, candidates))}"
        )
    if found:
        under = "" if prefix is None else f" under {prefix!r}"
        raise UserError(
            f"{checkpoint} has no VQ-GAN{under}; it has one under "
            f"{', '.join(map(repr, found))}: choose it by prefix"
        )
    names = ", ".join(list(tensors)[:3])
    raise UserError(f"{checkpoint} is not a VQ-GAN this can read; its tensors are {names}, ...")


def detect_naming(names: Iterable[str], checkpoint: Path) -> Naming:
    """The naming that tensors follow; UserError for networks that look alike and are not."""
    names = list(names)

    def has(pattern: str) -> bool:
        return any(re.match(pattern, name) for name in names)

    naming = next(naming for naming in NAMINGS if has(naming.signature))
    if naming is TAMING:
        for pattern, reason in REFUSED_TENSORS.items():
            if has(pattern):
                raise UserError(f"{checkpoint} is not supported: {reason}")
        if not has(r"quantize\.embed(ding)?\.weight"):
            raise UserError(
                f"{checkpoint} is not supported: it has no codebook (quantize.embedding.weight); "
                "is it a KL autoencoder?"
            )
    return naming


def canonical(tensors: Tensors, naming: Naming) -> Tensors:
    """Brings names to taming's and drops what a codec has no use for.

    Values stay, except that diffusers' attention matrices (C, C) become 1x1 convolutions
    (C, C, 1, 1).
    """
    useful = {name: tensor for name, tensor in tensors.items() if not _LEFTOVERS.match(name)}
    levels = [int(match[1]) for match in map(_DECODER_LEVEL.match, useful) if match]

    def rename(name: str) -> str:
        for pattern, replacement in naming.renames:
            name = re.sub(pattern, replacement, name)
        # Other families count decoder levels from the lowest resolution, taming from the pixels.
        return _DECODER_LEVEL.sub(lambda match: f"decoder.up.{max(levels) - int(match[1])}", name)

    renamed = {rename(name): tensor for name, tensor in useful.items()}
    for name, tensor in renamed.items():
        if tensor.ndim == 2 and re.search(r"\.(q|k|v|proj_out)\.weight$", name):
            renamed[name] = tensor[:, :, None, None]
    return renamed


def with_averaged_weights(tensors: Tensors, checkpoint: Path) -> Tensors:
    """Replaces weights by their moving averages, `model_ema.` plus the name without its dots.

    A file without averages is returned as it is; one with some missing is refused.
    """
    averages = {n[10:]: t for n, t in tensors.items() if n.startswith("model_ema.")}
    if not averages:
        return tensors
    weights = {name: name.replace(".", "") for name in tensors if not _LEFTOVERS.match(name)}
    for name, average in weights.items():
        if average not in averages:
            raise UserError(f"{checkpoint}: the average (model_ema) of {name} is missing")
    return tensors | {name: averages[average] for name, average in weights.items()}


def without_single_attention(tensors: Tensors) -> Tensors:
    """Drops the attention of levels with one block, which openMUSE has and never runs.

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
