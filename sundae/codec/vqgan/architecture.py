"""The structure of a VQ-GAN, read off the shapes of its tensors."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Size, Tensor

from sundae.common.errors import UserError

# Tensors that every canonical (taming-structured) checkpoint has, and how many axes they have.
_LANDMARKS = {
    "encoder.conv_in.weight": 4,
    "encoder.conv_out.weight": 4,
    "decoder.conv_in.weight": 4,
    "decoder.conv_out.weight": 4,
    "quant_conv.weight": 4,
    "post_quant_conv.weight": 4,
    "quantize.embedding.weight": 2,
}


@dataclass(frozen=True)
class Stack:
    """One half of the network, level 0 being the level of the pixels.

    Attributes:
        widths: channels of each level.
        blocks: residual blocks per level.
        attention: per level, whether an attention block follows each residual block.
        mid_attention: whether the middle has an attention block.
        resample_conv: whether up- and down-sampling use a convolution.
    """

    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    attention: tuple[bool, ...]
    mid_attention: bool = True
    resample_conv: bool = True


@dataclass(frozen=True)
class Architecture:
    """All that the network is built from; `stem` is the encoder's width before level 0."""

    encoder: Stack
    decoder: Stack
    stem: int
    encoder_out: int
    z_channels: int
    embed_dim: int
    codebook_size: int
    gumbel: bool = False
    in_channels: int = 3
    out_channels: int = 3
    groups: int = 32

    @property
    def factor(self) -> int:
        """Pixels per token along each side."""
        return 2 ** (len(self.encoder.widths) - 1)

    @property
    def has_attention(self) -> bool:
        """Whether a block attends to all positions, whose number grows with the image."""
        stacks = (self.encoder, self.decoder)
        return any(stack.mid_attention or any(stack.attention) for stack in stacks)

    def facts(self) -> dict[str, Any]:
        """All that a config may declare about the network, by name; see `families`."""
        return {
            "stem": self.stem,
            "z_channels": self.z_channels,
            "double_z": self.encoder_out == 2 * self.z_channels,
            "embed_dim": self.embed_dim,
            "codebook_size": self.codebook_size,
            "gumbel": self.gumbel,
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "mid_attention": self.encoder.mid_attention and self.decoder.mid_attention,
            "resample_conv": self.encoder.resample_conv and self.decoder.resample_conv,
            **_stack_facts(self.encoder, self.stem, extra_blocks=0, prefix=""),
            **_stack_facts(self.decoder, self.stem, extra_blocks=1, prefix="decoder_"),
        }


def _stack_facts(stack: Stack, stem: int, *, extra_blocks: int, prefix: str) -> dict[str, Any]:
    blocks = [number - extra_blocks for number in stack.blocks]
    factors = [width / stem if width % stem else width // stem for width in stack.widths]
    return {
        f"{prefix}widths": list(stack.widths),
        f"{prefix}ch_mult": factors,
        f"{prefix}res_blocks": blocks[0] if len(set(blocks)) == 1 else blocks,
        f"{prefix}attention": [level for level, on in enumerate(stack.attention) if on],
    }


def infer_architecture(tensors: Mapping[str, Tensor], *, groups: int = 32) -> Architecture:
    """Reads the architecture off the tensors' names and shapes.

    Args:
        tensors: by their canonical names, see `tensors.canonical`.
        groups: of GroupNorm, which leave no trace in the shapes.

    Raises:
        UserError: the tensors are not those of a VQ-GAN this package can build.
    """
    shape = {name: _shape(tensors, name, axes) for name, axes in _LANDMARKS.items()}
    codebook_size, embed_dim = shape["quantize.embedding.weight"]
    architecture = Architecture(
        encoder=_infer_stack(tensors, "encoder.down.", "downsample"),
        decoder=_infer_stack(tensors, "decoder.up.", "upsample"),
        stem=shape["encoder.conv_in.weight"][0],
        encoder_out=shape["encoder.conv_out.weight"][0],
        z_channels=shape["decoder.conv_in.weight"][1],
        embed_dim=embed_dim,
        codebook_size=codebook_size,
        gumbel="quantize.proj.weight" in tensors,
        in_channels=shape["encoder.conv_in.weight"][1],
        out_channels=shape["decoder.conv_out.weight"][0],
        groups=groups,
    )
    _refuse_unbuildable(architecture, quant_channels=shape["quant_conv.weight"][1])
    return architecture


def _shape(tensors: Mapping[str, Tensor], name: str, axes: int) -> Size:
    if name not in tensors:
        raise UserError(f"not a VQ-GAN this can read: the tensor {name} is missing")
    if tensors[name].ndim != axes:
        raise UserError(f"{name} has {tensors[name].ndim} axes, expected {axes}")
    return tensors[name].shape


def _infer_stack(tensors: Mapping[str, Tensor], root: str, resample: str) -> Stack:
    """root: what the names of the levels begin with; resample: the name of the resampling."""
    depth = max(1, _count(tensors, root))
    levels = [f"{root}{level}." for level in range(depth)]
    return Stack(
        widths=tuple(_shape(tensors, f"{level}block.0.conv1.weight", 4)[0] for level in levels),
        blocks=tuple(_count(tensors, f"{level}block.") for level in levels),
        attention=tuple(f"{level}attn.0.norm.weight" in tensors for level in levels),
        mid_attention=f"{root.split('.')[0]}.mid.attn_1.norm.weight" in tensors,
        resample_conv=depth == 1
        or any(n.startswith(root) and f".{resample}." in n for n in tensors),
    )


def _count(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """How many consecutive numbers, from 0, follow `prefix` among the names."""
    numbers = {name[len(prefix) :].split(".")[0] for name in tensors if name.startswith(prefix)}
    return next(number for number in itertools.count() if str(number) not in numbers)


def _refuse_unbuildable(arch: Architecture, quant_channels: int) -> None:
    if arch.in_channels != 3 or arch.out_channels != 3:
        raise UserError(
            f"the network maps {arch.in_channels} to {arch.out_channels} channels; only RGB "
            "networks (3 to 3) turn images into tokens"
        )
    if len(arch.encoder.widths) != len(arch.decoder.widths):
        raise UserError(
            f"the encoder has {len(arch.encoder.widths)} levels and the decoder "
            f"{len(arch.decoder.widths)}; they must agree"
        )
    if arch.encoder_out != quant_channels:
        raise UserError(
            f"encoder.conv_out gives {arch.encoder_out} channels and quant_conv takes "
            f"{quant_channels}; a VQ-GAN with double_z cannot run"
        )
    for width in {*arch.encoder.widths, *arch.decoder.widths, arch.stem}:
        if width % arch.groups:
            raise UserError(f"{width} channels cannot be split into {arch.groups} GroupNorm groups")
