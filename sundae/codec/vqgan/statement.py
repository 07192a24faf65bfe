"""What a config claims about a checkpoint, and whether the tensors agree."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sundae.codec.vqgan.architecture import Architecture, Stack
from sundae.common.errors import UserError


@dataclass(frozen=True)
class Claim:
    """One statement about the architecture: config key `key` says that `fact` is `value`."""

    key: str
    fact: str
    value: Any


@dataclass(frozen=True)
class Statement:
    """Everything a config says.

    Attributes:
        source: the file, for messages.
        family: key of `FAMILIES`, or None when the config does not name its class.
        claims: to be compared with the tensors.
        distance, tanh_out, groups: what tensors cannot say; distance None: the family's.
        resolution: side in pixels of the training images, if said.
        use_ema: whether to prefer the averaged weights where the file has them.
    """

    source: Path
    family: str | None
    claims: tuple[Claim, ...] = ()
    distance: str | None = None
    tanh_out: bool = False
    groups: int = 32
    resolution: int | None = None
    use_ema: bool = False


@dataclass(frozen=True)
class Family:
    """What all checkpoints of a family share; None where a file of the family may differ."""

    title: str
    distance: str
    input_range: str | None


FAMILIES = {
    "taming": Family("taming VQModel", "l2", "signed"),
    "gumbel": Family("taming GumbelVQ", "gumbel", "signed"),
    "ldm": Family("latent-diffusion VQModel", "l2", "signed"),
    "diffusers": Family("diffusers VQModel", "l2", None),
    "llamagen": Family("LlamaGen VQModel", "cosine", "signed"),
    "ibq": Family("IBQ", "dot", "signed"),
    "openmuse": Family("openMUSE VQGANModel", "l2", "unit"),
}


# How messages call facts whose names would not explain themselves.
_FACT_TITLES = {
    "attention": "levels with attention",
    "decoder_attention": "decoder levels with attention",
    "stem": "channels",
}


def check_claims(statement: Statement, arch: Architecture, checkpoint: Path) -> None:
    """UserError naming both values at the first claim that the tensors contradict."""
    facts = _facts(arch)
    for claim in statement.claims:
        value = list(claim.value) if isinstance(claim.value, tuple) else claim.value
        if value != facts[claim.fact]:
            what = _FACT_TITLES.get(claim.fact, claim.fact)
            raise UserError(
                f"{statement.source}: {claim.key} says {what} {value}, but the tensors of "
                f"{checkpoint} say {facts[claim.fact]}; they do not belong together"
            )


def _facts(arch: Architecture) -> dict[str, Any]:
    facts = {
        "stem": arch.stem,
        "z_channels": arch.z_channels,
        "double_z": arch.encoder_out == 2 * arch.z_channels,
        "embed_dim": arch.embed_dim,
        "codebook_size": arch.codebook_size,
        "gumbel": arch.gumbel,
        "in_channels": arch.in_channels,
        "out_channels": arch.out_channels,
        "mid_attention": arch.encoder.mid_attention and arch.decoder.mid_attention,
        "resample_conv": arch.encoder.resample_conv and arch.decoder.resample_conv,
    }
    facts |= _stack_facts(arch.encoder, arch.stem, extra_blocks=0, prefix="")
    return facts | _stack_facts(arch.decoder, arch.stem, extra_blocks=1, prefix="decoder_")


def _stack_facts(stack: Stack, stem: int, *, extra_blocks: int, prefix: str) -> dict[str, Any]:
    blocks = [number - extra_blocks for number in stack.blocks]
    return {
        f"{prefix}widths": list(stack.widths),
        f"{prefix}ch_mult": [_quotient(width, stem) for width in stack.widths],
        f"{prefix}res_blocks": blocks[0] if len(set(blocks)) == 1 else blocks,
        f"{prefix}attention": [level for level, on in enumerate(stack.attention) if on],
    }


def _quotient(width: int, stem: int) -> float:
    return width // stem if width % stem == 0 else width / stem


def architecture_of(statement: Statement) -> Architecture:
    """The architecture a config describes by itself, for a network that has no tensors yet.

    Raises UserError naming a fact that the config leaves open.
    """
    said = {claim.fact: claim.value for claim in statement.claims}
    needed = ("stem", "ch_mult", "res_blocks", "z_channels", "embed_dim", "codebook_size")
    missing = [fact for fact in needed if fact not in said]
    if missing:
        raise UserError(f"{statement.source} does not say {missing[0]}; cannot build a network")
    widths = tuple(said["stem"] * factor for factor in said["ch_mult"])
    encoder = Stack(
        widths=widths,
        blocks=(said["res_blocks"],) * len(widths),
        attention=tuple(i in said.get("attention", ()) for i in range(len(widths))),
        mid_attention=said.get("mid_attention", True),
        resample_conv=said.get("resample_conv", True),
    )
    decoder_blocks = said.get("decoder_res_blocks", said["res_blocks"])
    if not isinstance(decoder_blocks, list):
        decoder_blocks = [decoder_blocks] * len(widths)
    decoder = replace(
        encoder,
        widths=tuple(said.get("decoder_widths", widths)),
        blocks=tuple(number + 1 for number in decoder_blocks),
    )
    return Architecture(
        encoder=encoder,
        decoder=decoder,
        stem=said["stem"],
        encoder_out=said["z_channels"],
        z_channels=said["z_channels"],
        embed_dim=said["embed_dim"],
        codebook_size=said["codebook_size"],
        gumbel=said.get("gumbel", False),
        groups=statement.groups,
    )
