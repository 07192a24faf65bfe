"""The networks that train together, as one module, so that trainer and checkpoint see one."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sundae.codec.vqgan.backbone import VQGAN
from sundae.codec_training.codebook import CodebookManager
from sundae.codec_training.discriminator import PatchDiscriminator
from sundae.training.processes import is_distributed


class Reconstruction(NamedTuple):
    """A batch of images, encoded, quantised and decoded.

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
    """A VQ-GAN, its discriminator and the manager of its codebook.

    Wrappers for several devices see only `forward`, so `forward` dispatches by name.

    Attributes:
        care: the codebook manager, under its name in checkpoints.
        batches: scalar int64, training batches seen; quantisation, discriminator and augmentation
            start and end by it.
        quantise_start: batches after which latents are quantised. A codebook that is initialised
            among latents which already separate colours and shapes covers them from the start; one
            that is initialised with the encoder holds the encoder back to what it covers.
    """

    batches: Tensor

    def __init__(
        self,
        vqgan: VQGAN,
        discriminator: PatchDiscriminator,
        codebook: CodebookManager,
        quantise_start: int = 0,
    ) -> None:
        super().__init__()
        self.quantise_start = quantise_start
        self.vqgan = vqgan.to(memory_format=torch.channels_last)
        self.discriminator = discriminator.to(memory_format=torch.channels_last)
        self.care = codebook
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))
        # The same number on the host, so that no batch waits for the device; None: not known.
        self._batches: int | None = None
        self.register_load_state_dict_post_hook(_forget_count)

    def forward(self, part: str, *arguments: Any) -> Any:
        """Call the method `part`: "reconstruct", "discriminate" or "zero_loss"."""
        return getattr(self, part)(*arguments)

    def batches_seen(self) -> int:
        """Training batches so far; waits for the device only once after loading."""
        if self._batches is None or not self.training:  # an average's buffers are copied
            self._batches = int(self.batches)
        return self._batches

    def compilable(self) -> list[nn.Module]:
        """The modules that have one backward pass a batch, as compiled modules must.

        The decoder's last layer has more of them: the losses are balanced there.
        """
        return [self.vqgan.encoder, self.vqgan.decoder.mid, *self.vqgan.decoder.up]

    def reconstruct(self, images: Tensor, generator: torch.Generator) -> Reconstruction:
        """Encode, quantise, decode; in training also update the codebook and count the batch.

        Before `quantise_start` the decoder gets the latents themselves, which are `vectors`, too.
        images: (B, 3, H, W) in [-1, 1].
        """
        latents = self.vqgan.encode(images).float()
        quantiser, batch = self.vqgan.quantize, self.batches_seen()
        quantises = batch >= self.quantise_start
        if self.training and quantises:
            self.care.reinit_dead(quantiser, latents, batch - self.quantise_start, generator)
        tokens = quantiser(latents)
        if self.training:
            if quantises:
                self.care.update_usage(tokens)
            self.batches += 1
            self._batches = batch + 1
        # The codebook always takes part: processes wait for the gradient of every weight.
        vectors = quantiser.embed(tokens) if quantises else latents + 0 * quantiser.embed(tokens)
        straight_through = latents + (vectors - latents).detach()
        pixels = self.vqgan.decode(straight_through).float()
        return Reconstruction(pixels, latents, vectors, tokens)

    def score(self, pixels: Tensor) -> Tensor:
        """The discriminator's scores, with gradients to the pixels and none to its weights."""
        frozen = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        scores: Tensor = functional_call(self.discriminator, frozen, (pixels,))
        return scores

    def discriminate(self, images: Tensor, reconstruction: Tensor) -> tuple[Tensor, Tensor]:
        """The discriminator's scores of images and of reconstructions, with all gradients."""
        real, fake = self.discriminator(images), self.discriminator(reconstruction)
        return real, fake + _zero_of(self.vqgan) if is_distributed() else fake

    def zero_loss(self) -> Tensor:
        """0, the loss of a discriminator that does not train yet: its gradients are 0."""
        zero = _zero_of(self.discriminator)
        return zero + _zero_of(self.vqgan) if is_distributed() else zero


def _zero_of(module: nn.Module) -> Tensor:
    """Scalar 0 that depends on every weight.

    Processes exchange gradients during the last backward pass of a step, and wait there for the
    gradient of every weight, also of those that an earlier loss depends on.
    """
    return 0 * torch.stack([parameter.sum() for parameter in module.parameters()]).sum()


def _forget_count(module: CodecTraining, _: Any) -> None:
    module._batches = None


def unwrapped(net: nn.Module) -> CodecTraining:
    """The module itself, without the wrapper for several devices."""
    module = getattr(net, "module", net)
    assert isinstance(module, CodecTraining)
    return module
