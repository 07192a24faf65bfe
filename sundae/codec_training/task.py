"""The losses of a codec as a task of `sundae.training.trainer`."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from sundae.codec.vqgan.backbone import VQGAN
from sundae.codec.vqgan.quantise import perplexity
from sundae.codec_training.codebook import CodebookManager, occurrences
from sundae.codec_training.config import CodecRunConfig
from sundae.codec_training.dataset import augment, recolour
from sundae.codec_training.discriminator import PatchDiscriminator
from sundae.codec_training.losses import (
    adaptive_weight,
    discriminator_hinge,
    generator_hinge,
    quantisation_losses,
    reconstruction_loss,
    with_gradient,
)
from sundae.codec_training.module import CodecTraining, Reconstruction, unwrapped
from sundae.codec_training.perceptual import FeatureDistance
from sundae.training.batches import Batch
from sundae.training.trainer import Losses

Metrics = dict[str, Tensor]


def build_training(cfg: CodecRunConfig, accumulate: int = 1) -> CodecTraining:
    """Freshly initialised networks.

    The run file counts optimiser steps, the module mini-batches, `accumulate` to a step.
    """
    training = cfg.training
    vqgan = VQGAN(cfg.arch, "l2")
    vqgan.set_gradient_checkpointing(training.gradient_checkpointing)
    codebook = CodebookManager(
        cfg.arch.codebook_size,
        cfg.arch.embed_dim,
        init=training.codebook_init,
        restart_every=training.restart_every * accumulate,
        restart_until=(training.last_restart - training.quantise_start) * accumulate,
    )
    discriminator = PatchDiscriminator(training.disc_width, training.disc_layers)
    return CodecTraining(vqgan, discriminator, codebook, training.quantise_start * accumulate)


class CodecTask:
    """The losses of a VQ-GAN and, second, of its discriminator, for one optimiser over both.

    Metrics, each a scalar that stays on its device: loss (all that does not depend on the
    discriminator, so that it is one curve from start to end), reconstruction, perceptual, codebook,
    commitment, usage (share of the codebook in the batch), perplexity; alive in training; gan,
    discriminator and, in training, adaptive_weight once the discriminator takes part.
    """

    num_losses = 2
    # The loss as a whole jumps where quantisation begins, and rises as the latents grow.
    watched = "reconstruction"

    def __init__(
        self, cfg: CodecRunConfig, perceptual: FeatureDistance, accumulate: int = 1
    ) -> None:
        """perceptual: on the device of the training. accumulate: see `build_training`."""
        self.settings, self.perceptual = cfg.training, perceptual
        self.disc_start = cfg.training.disc_start * accumulate
        self.last_recolouring = cfg.training.last_recolouring * accumulate

    def losses(self, net: nn.Module, batch: Batch, generator: torch.Generator) -> Losses:
        """Yield (loss, metrics) of the VQ-GAN, then of the discriminator.

        Args:
            net: a `CodecTraining`, perhaps wrapped.
            batch: "images", (B, 3, H, W) in [0, 1], at least training.size large; of a whole image
                in an evaluation with training.full_resolution.
        """
        whole = self.settings.full_resolution and not net.training
        images = batch["images"]
        if not whole:
            images = self._augmented(unwrapped(net), images, generator)
        # Whole images have many sizes, and each would be compiled for.
        with torch.compiler.set_stance("force_eager") if whole else nullcontext():
            yield from self._both_sides(net, images, generator)

    def _augmented(
        self, codec: CodecTraining, images: Tensor, generator: torch.Generator
    ) -> Tensor:
        """What the network sees of a batch: augmented in training, the centre in an evaluation."""
        settings, noise = self.settings, generator if codec.training else None
        images = augment(images, settings.size, mirror=settings.mirror, generator=noise)
        colours_vary = codec.training and codec.batches_seen() < self.last_recolouring
        if settings.recolour and colours_vary:
            images = recolour(images, settings.recolour, generator)
        return images

    def _both_sides(self, net: nn.Module, images: Tensor, generator: torch.Generator) -> Losses:
        """The losses of images (B, 3, H, W) in [0, 1] as they are."""
        codec = unwrapped(net)
        adversarial = codec.batches_seen() >= self.disc_start
        images = (images * 2 - 1).contiguous(memory_format=torch.channels_last)
        result: Reconstruction = net("reconstruct", images, generator)
        yield self._codec_side(codec, images, result, adversarial)
        if adversarial:
            real, fake = net("discriminate", images, result.pixels.detach())
            loss = discriminator_hinge(real, fake)
            yield loss, {"discriminator": loss}
        else:
            yield net("zero_loss"), {}

    def _codec_side(
        self, codec: CodecTraining, images: Tensor, result: Reconstruction, adversarial: bool
    ) -> tuple[Tensor, Metrics]:
        """The loss of the VQ-GAN, differentiated with respect to the pixels here.

        The adaptive weight needs each loss's gradient at the last layer. Computing both only down
        to the pixels saves a second backward pass through the perceptual network and the
        discriminator, whose activations are freed before that of the decoder.
        """
        settings, learning = self.settings, torch.is_grad_enabled()
        pixels = result.pixels.detach().requires_grad_(learning)
        fidelity, metrics = self._fidelity(pixels, images)
        codebook, commitment = quantisation_losses(result.latents, result.vectors)
        quantisation = settings.codebook_weight * codebook + settings.commitment * commitment
        metrics |= {"loss": fidelity + quantisation, "codebook": codebook, "commitment": commitment}
        metrics |= self._codebook_metrics(codec, result.tokens)
        total = fidelity
        gradient = torch.autograd.grad(fidelity, pixels)[0] if learning else None
        if adversarial:
            metrics["gan"] = gan = generator_hinge(codec.score(pixels))
            if gradient is not None:
                gan_gradient = torch.autograd.grad(gan, pixels)[0]
                last_layer = codec.vqgan.decoder.conv_out.weight
                weight = adaptive_weight(result.pixels, last_layer, gradient, gan_gradient)
                metrics["adaptive_weight"] = weight
                total = total + settings.disc_weight * weight * gan
                gradient = gradient + settings.disc_weight * weight * gan_gradient
        if gradient is not None:
            total = with_gradient(total, result.pixels, gradient)
        return total + quantisation, {name: value.detach() for name, value in metrics.items()}

    def _fidelity(self, pixels: Tensor, images: Tensor) -> tuple[Tensor, Metrics]:
        """Reconstruction and perceptual loss, weighted, and each by itself."""
        reconstruction = reconstruction_loss(pixels, images, self.settings.reconstruction)
        perceptual = self.perceptual(pixels, images)
        total = reconstruction + self.settings.perceptual_weight * perceptual
        return total, {"reconstruction": reconstruction, "perceptual": perceptual}

    def _codebook_metrics(self, codec: CodecTraining, tokens: Tensor) -> Metrics:
        counts = occurrences(tokens, codec.vqgan.arch.codebook_size)
        metrics = {"usage": (counts > 0).float().mean(), "perplexity": perplexity(counts)}
        return metrics | {"alive": codec.care.alive()} if codec.training else metrics
