"""The taming-structured convolutional encoder and decoder (VQ-GAN, arXiv 2012.09841).

Parameter names follow taming-transformers, so its checkpoints load without renaming.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sundae.codec.vqgan.architecture import Architecture
from sundae.codec.vqgan.quantise import Quantiser


def _silu(x: Tensor) -> Tensor:
    # Every caller passes a fresh GroupNorm output, so overwriting it is safe without autograd.
    return F.silu(x, inplace=not torch.is_grad_enabled())


def _add(x: Tensor, residual: Tensor) -> Tensor:
    """x + residual; x is always a fresh convolution output, reused when nothing needs it."""
    return x + residual if torch.is_grad_enabled() else x.add_(residual)


def _norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    """norm, SiLU, conv, norm, SiLU, conv, plus the input: (B, C_in, H, W) -> (B, C_out, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = _norm(in_channels, groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = _norm(out_channels, groups)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(_silu(self.norm1(x)))
        hidden = self.conv2(_silu(self.norm2(hidden)))
        return _add(hidden, self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    """Single-head self-attention over all positions of a (B, C, H, W) map, plus the input."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = _norm(channels, groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        q, k, v = (_as_sequence(layer(normed)) for layer in (self.q, self.k, self.v))
        attended = F.scaled_dot_product_attention(q, k, v)[:, 0]
        attended = attended.transpose(1, 2).unflatten(2, x.shape[2:])
        return _add(self.proj_out(attended), x)


def _as_sequence(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, 1, H*W, C), contiguous.

    SDPA refuses its memory-efficient kernels when the last stride is not 1. For channels_last
    input this is a view; for anything else the copy makes memory linear in H*W.
    """
    return x.flatten(2).transpose(1, 2).contiguous()[:, None]


class Downsample(nn.Module):
    """Halve height and width; the convolution is padded at the right and the bottom only."""

    def __init__(self, channels: int, with_conv: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2) if with_conv else None

    def forward(self, x: Tensor) -> Tensor:
        if self.conv is None:
            return F.avg_pool2d(x, 2)
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double height and width by repeating pixels, then convolve."""

    def __init__(self, channels: int, with_conv: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if with_conv else None

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return x if self.conv is None else self.conv(x)


class Level(nn.Module):
    """The residual (and attention) blocks of one resolution, then an optional resampling."""

    def __init__(self, before: int, after: int, blocks: int, attention: bool, groups: int) -> None:
        super().__init__()
        inputs = [before] + [after] * (blocks - 1)
        self.block = nn.ModuleList(ResnetBlock(width, after, groups) for width in inputs)
        self.attn = nn.ModuleList(AttnBlock(after, groups) for _ in range(blocks * attention))
        self.downsample: nn.Module | None = None
        self.upsample: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[index](x)
        resample = self.downsample or self.upsample
        return x if resample is None else resample(x)


class Middle(nn.Module):
    """Residual, attention (unless left out), residual, at the lowest resolution."""

    def __init__(self, width: int, attention: bool, groups: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(width, width, groups)
        self.attn_1 = AttnBlock(width, groups) if attention else None
        self.block_2 = ResnetBlock(width, width, groups)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block_1(x)
        x = x if self.attn_1 is None else self.attn_1(x)
        return self.block_2(x)


class _Half(nn.Module):
    """Base of encoder and decoder: the switch that trades compute for activation memory."""

    gradient_checkpointing = False

    def _run(self, part: nn.Module, x: Tensor) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(part, x, use_reentrant=False)
        return part(x)


class Encoder(_Half):
    """Pixels (B, 3, H, W) to features (B, encoder_out, H/factor, W/factor)."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        stack = arch.encoder
        self.conv_in = nn.Conv2d(arch.in_channels, arch.stem, 3, padding=1)
        inputs = (arch.stem, *stack.widths[:-1])
        parts = zip(inputs, stack.widths, stack.blocks, stack.attention, strict=True)
        self.down = nn.ModuleList(Level(*part, arch.groups) for part in parts)
        for level, width in zip(list(self.down)[:-1], stack.widths, strict=False):
            level.downsample = Downsample(width, stack.resample_conv)
        self.mid = Middle(stack.widths[-1], stack.mid_attention, arch.groups)
        self.norm_out = _norm(stack.widths[-1], arch.groups)
        self.conv_out = nn.Conv2d(stack.widths[-1], arch.encoder_out, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv_in(images)
        for level in self.down:
            x = self._run(level, x)
        x = self._run(self.mid, x)
        return self.conv_out(_silu(self.norm_out(x)))


class Decoder(_Half):
    """Features (B, z_channels, h, w) to pixels (B, 3, h*factor, w*factor)."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        stack = arch.decoder
        inputs = (*stack.widths[1:], stack.widths[-1])
        self.conv_in = nn.Conv2d(arch.z_channels, stack.widths[-1], 3, padding=1)
        self.mid = Middle(stack.widths[-1], stack.mid_attention, arch.groups)
        parts = zip(inputs, stack.widths, stack.blocks, stack.attention, strict=True)
        self.up = nn.ModuleList(Level(*part, arch.groups) for part in parts)
        for level, width in zip(list(self.up)[1:], stack.widths[1:], strict=True):
            level.upsample = Upsample(width, stack.resample_conv)
        self.norm_out = _norm(stack.widths[0], arch.groups)
        self.conv_out = nn.Conv2d(stack.widths[0], arch.out_channels, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        x = self._run(self.mid, self.conv_in(features))
        for level in reversed(self.up):
            x = self._run(level, x)
        return self.conv_out(_silu(self.norm_out(x)))


class VQGAN(nn.Module):
    """Encoder, codebook and decoder as one ordinary, trainable module.

    Works in the network's own pixel range; `VQGANCodec` is what speaks [0, 1] and tokens.
    """

    def __init__(self, arch: Architecture, distance: str) -> None:
        """distance: how the codebook is searched, see `Quantiser`."""
        super().__init__()
        self.arch = arch
        self.encoder = Encoder(arch)
        self.decoder = Decoder(arch)
        self.quantize = Quantiser(arch.codebook_size, arch.embed_dim, distance)
        self.quant_conv = nn.Conv2d(arch.encoder_out, arch.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(arch.embed_dim, arch.z_channels, 1)

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Recomputes each level in the backward pass, which frees the memory of its activations."""
        self.encoder.gradient_checkpointing = enabled
        self.decoder.gradient_checkpointing = enabled

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in the network's range -> (B, embed_dim, h, w), not yet quantised."""
        return self.quant_conv(self.encoder(pixels))

    def decode(self, quantised: Tensor) -> Tensor:
        """(B, embed_dim, h, w) codebook vectors -> (B, 3, H, W) in the network's range."""
        return self.decoder(self.post_quant_conv(quantised))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """-> (reconstruction (B, 3, H, W), tokens (B, h, w)); gradients pass straight through."""
        latents = self.encode(pixels)
        tokens = self.quantize(latents)
        vectors = self.quantize.embed(tokens)
        return self.decode(latents + (vectors - latents).detach()), tokens
