"""A VQ-GAN as a codec: images in [0, 1] to tokens and back."""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property

import torch
from torch import Tensor

from sundae.codec.vqgan.backbone import VQGAN
from sundae.codec.vqgan.quantise import DISTANCES
from sundae.common.compiling import compile_modules
from sundae.common.errors import UserError
from sundae.common.finite import NonFiniteError
from sundae.common.precision import PRECISIONS, Precision, autocast

INPUT_RANGES = ("signed", "unit")

# How far outside [0, 1] a pixel may lie: resampling filters overshoot by rounding, ranges do not.
_PIXEL_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Rules:
    """What the tensors cannot show.

    Attributes:
        distance: how the codebook is searched: l2, cosine, dot or gumbel.
        input_range: pixels the network was trained on: signed ([-1, 1]) or unit ([0, 1]).
        tanh_out: whether the decoder ends in tanh.
    """

    distance: str
    input_range: str
    tanh_out: bool = False

    def __post_init__(self) -> None:
        for key, known in (("distance", DISTANCES), ("input_range", INPUT_RANGES)):
            if getattr(self, key) not in known:
                raise UserError(
                    f"{key} must be one of {', '.join(known)}, got {getattr(self, key)!r}"
                )


class VQGANCodec:
    """Implements `sundae.codec.interface.Codec` with a pretrained VQ-GAN.

    Attributes:
        model: the network, an ordinary nn.Module in its own pixel range.
        rules: distance, input range, tanh.
        family: where the checkpoint came from, for messages.
        resolution: side in pixels of the images it was trained on, None when no file says.
        codebook_size, factor: see Codec.
    """

    def __init__(
        self,
        model: VQGAN,
        rules: Rules,
        *,
        family: str = "vqgan",
        resolution: int | None = None,
        precision: Precision = "auto",
    ) -> None:
        """precision: fp32, bf16 (autocast), or auto: bf16 where the device computes in it.

        The codebook is searched in fp32 whatever the precision; the latents themselves differ, and
        in bf16 some two tokens in a hundred fall to a neighbouring code. In fp32 convolutions on
        CUDA follow torch.backends.cudnn.allow_tf32.
        """
        if precision not in PRECISIONS:
            raise UserError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        self.model = model.eval().to(memory_format=torch.channels_last)
        self.rules, self.family, self.resolution = rules, family, resolution
        self.precision = precision
        self._compiled, self._most_rows = False, 0
        self.codebook_size, self.factor = model.arch.codebook_size, model.arch.factor

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.quantize.embedding.weight.device

    def to(self, device: torch.device | str) -> "VQGANCodec":
        """Move to a device; returns the codec itself."""
        self.model.to(device)
        return self

    def compile(self, *, quiet: bool = False) -> bool:
        """torch.compile encoder and decoder where they are; see `compile_modules`.

        Batches to encode are then filled up to the largest so far, so that the last one of a folder
        is not compiled for.
        """
        self._compiled = compile_modules(self.model.encoder, self.model.decoder, quiet=quiet)
        return self._compiled

    @cached_property
    def identity(self) -> str:
        """Equal for two codecs exactly when weights and rules are, whatever file they came from.

        Computed once, on first use: train the model only after, or make a new codec of it.
        """
        description = {"architecture": asdict(self.model.arch), "rules": asdict(self.rules)}
        digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy())
        return f"vqgan-{digest.hexdigest()[:32]}"

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """images: (B, 3, H, W) float in [0, 1] -> tokens (B, H/factor, W/factor) int64.

        Raises:
            ValueError: wrong shape, dtype or value range (NaN included).
            UserError: H or W is not a multiple of `factor`, or the latents are not finite.
        """
        self._check_images(images)
        pixels = images.to(self.device, torch.float32, memory_format=torch.channels_last)
        if self.rules.input_range == "signed":
            pixels = pixels * 2 - 1
        with autocast(self.device, self.precision):
            latents = self.model.encode(self._filled_up(pixels))
        try:
            tokens: Tensor = self.model.quantize(latents[: len(pixels)])
        except NonFiniteError as error:
            raise UserError(
                f"{error}; the checkpoint or the image is broken, or the precision is too low: "
                "try precision='fp32'"
            ) from error
        return tokens

    def _filled_up(self, pixels: Tensor) -> Tensor:
        """The last image repeated to the size of a batch that is compiled already."""
        if not self._compiled:
            return pixels
        self._most_rows = max(self._most_rows, len(pixels))
        missing = self._most_rows - len(pixels)
        filled = torch.cat((pixels, pixels[-1:].expand(missing, -1, -1, -1)))
        return filled.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """tokens: (B, h, w) integer in [0, codebook_size) -> (B, 3, H, W) float32 in [0, 1].

        Raises:
            ValueError: wrong shape or dtype.
            UserError: a token outside the codebook.
        """
        self._check_tokens(tokens)
        vectors = self.model.quantize.embed(tokens.to(self.device, torch.int64))
        with autocast(self.device, self.precision):
            pixels = self.model.decode(vectors).float()
        if self.rules.tanh_out:
            pixels = pixels.tanh_()
        if self.rules.input_range == "signed":
            pixels = pixels.add_(1).div_(2)
        return pixels.clamp_(0, 1).contiguous()

    def _check_images(self, images: Tensor) -> None:
        if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
            raise ValueError(f"expected images (B, 3, H, W), got {tuple(images.shape)}")
        if not images.is_floating_point():
            raise ValueError(f"expected float images in [0, 1], got {images.dtype}; divide by 255")
        height, width = images.shape[2:]
        if height % self.factor or width % self.factor:
            raise UserError(
                f"an image of {height}x{width} pixels cannot be cut into patches of "
                f"{self.factor}x{self.factor}; resize, crop or pad it to multiples of {self.factor}"
            )
        low, high = (float(bound) for bound in images.aminmax())
        if not (low >= -_PIXEL_TOLERANCE and high <= 1 + _PIXEL_TOLERANCE):
            raise ValueError(f"expected images in [0, 1], got values from {low:g} to {high:g}")

    def _check_tokens(self, tokens: Tensor) -> None:
        if tokens.ndim != 3 or 0 in tokens.shape:
            raise ValueError(f"expected tokens (B, h, w), got {tuple(tokens.shape)}")
        if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
            raise ValueError(f"expected integer tokens, got {tokens.dtype}")
        low, high = (int(bound) for bound in tokens.to(torch.int64).aminmax())
        if low < 0 or high >= self.codebook_size:
            raise UserError(
                f"tokens run from {low} to {high}, but this codec has the codes 0 to "
                f"{self.codebook_size - 1}; the tokens were made by another codec"
            )
