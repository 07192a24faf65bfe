"""The networks that train together, as one module, so that trainer and checkpoint see one."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sundae.codec.vqgan.backbone import VQGAN
from sundae.codec_training.codebook import CodebookCare
from sundae.codec_training.discriminator import PatchDiscriminator
from sundae.codec_training.processes import several


class Reconstruction(NamedTuple):
    """What became of a batch of pictures.

    Attributes:
        pixels: (B, 3, H, W) float32, in [-1, 1] but for overshoot.
        latents: (B, D, h, w) float32, of the encoder.
        vectors: (B, D, h, w) float32, their codes; gradients reach the codebook.
        tokens: (B, h, w) int64.
    """

    pixels: Tensor
    latents: Tensor
    vectors: Tensor
    tokens: Tensor


class CodecTraining(nn.Module):
    """A VQ-GAN, its discriminator and the care of its codebook.

    What wraps a module for several devices sees only `forward`, so that dispatches by name.

    Attributes:
        batches: scalar int64: training batches seen, which decides when things start.
        quantise_start: batches after which latents are quantised. A codebook that begins among
            latents which already tell colours and shapes apart covers them from the start; one that
            begins with the encoder has to wait until the encoder dares to say more than it can.
    """

    batches: Tensor

    def __init__(
        self,
        vqgan: VQGAN,
        discriminator: PatchDiscriminator,
        care: CodebookCare,
        quantise_start: int = 0,
    ) -> None:
        super().__init__()
        self.quantise_start = quantise_start
        self.vqgan = vqgan.to(memory_format=torch.channels_last)
        self.discriminator = discriminator.to(memory_format=torch.channels_last)
        self.care = care
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))
        # The same number on the host, so that no batch has to ask the device; None: not known.
        self._batches: int | None = None
        self.register_load_state_dict_post_hook(_forget_count)

    def forward(self, part: str, *arguments: Any) -> Any:
        """Call the method `part`: "reconstruct", "judge" or "idle"."""
        return getattr(self, part)(*arguments)

    def batches_seen(self) -> int:
        """Training batches so far; asks the device only once after loading."""
        if self._batches is None or not self.training:  # an averaged twin gets buffers copied in
            self._batches = int(self.batches)
        return self._batches

    def quantises(self) -> bool:
        """Whether the decoder gets codes already; asks the device only once after loading."""
        return self.batches_seen() >= self.quantise_start

    def compilable(self) -> list[nn.Module]:
        """What may be compiled: all of the VQ-GAN that is gone back through once a batch.

        The balance of the losses goes back to the decoder's last layer more often.
        """
        return [self.vqgan.encoder, self.vqgan.decoder.mid, *self.vqgan.decoder.up]

    @property
    def last_layer(self) -> Tensor:
        """The decoder's last weight, at which losses are balanced."""
        return self.vqgan.decoder.conv_out.weight

    def reconstruct(self, images: Tensor, generator: torch.Generator) -> Reconstruction:
        """Encode, quantise, decode; in training the codebook is cared for and batches counted.

        Before `quantise_start` the decoder gets the latents themselves, and `vectors` are these.

        images: (B, 3, H, W) in [-1, 1]. generator: on the same device.
        """
        latents = self.vqgan.encode(images).float()
        quantiser, batch = self.vqgan.quantize, self.batches_seen()
        quantises = self.quantises()
        if self.training and quantises:
            self.care.before(quantiser, latents, batch - self.quantise_start, generator)
        tokens = quantiser(latents)
        if self.training:
            if quantises:
                self.care.after(tokens)
            self.batches += 1
            self._batches = batch + 1
        # The codebook takes part in any case: processes wait for the gradient of every weight.
        vectors = quantiser.embed(tokens) if quantises else latents + 0 * quantiser.embed(tokens)
        straight_through = latents + (vectors - latents).detach()
        pixels = self.vqgan.decode(straight_through).float()
        return Reconstruction(pixels, latents, vectors, tokens)

    def score(self, pixels: Tensor) -> Tensor:
        """The discriminator's scores, with gradients to the pixels and none to its weights."""
        frozen = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        scores: Tensor = functional_call(self.discriminator, frozen, (pixels,))
        return scores

    def judge(self, images: Tensor, reconstruction: Tensor) -> tuple[Tensor, Tensor]:
        """The discriminator's scores of pictures and of reconstructions, to train it on."""
        real, fake = self.discriminator(images), self.discriminator(reconstruction)
        return real, fake + _nothing(self.vqgan) if several() else fake

    def idle(self) -> Tensor:
        """0, for a discriminator that does not train yet: its gradients are 0."""
        nothing = _nothing(self.discriminator)
        return nothing + _nothing(self.vqgan) if several() else nothing


def _nothing(module: nn.Module) -> Tensor:
    """Scalar 0 that depends on every weight.

    Processes exchange gradients during the last backward pass of a step, and wait there for the
    gradient of every weight, also of those whose loss was an earlier one.
    """
    return 0 * torch.stack([parameter.sum() for parameter in module.parameters()]).sum()


def _forget_count(module: CodecTraining, _: Any) -> None:
    module._batches = None


def unwrapped(net: nn.Module) -> CodecTraining:
    """The module itself, without what wraps it for several devices."""
    module = getattr(net, "module", net)
    assert isinstance(module, CodecTraining)
    return module
