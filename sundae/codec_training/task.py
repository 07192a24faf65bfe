"""Training a codec as a task of `sundae.training.trainer`, and images of how it goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sundae.codec.vqgan.backbone import VQGAN
from sundae.codec_training.codebook import CodebookCare, usage_and_perplexity
from sundae.codec_training.config import CodecRunConfig
from sundae.codec_training.dataset import ImageDataset, augment, recolour
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
from sundae.common.files import make_folder
from sundae.common.images import make_grid, save_image
from sundae.common.precision import autocast

if TYPE_CHECKING:
    from sundae.training.trainer import Batch, Losses, Trainer

Metrics = dict[str, Tensor]


def build_training(cfg: CodecRunConfig, accumulate: int = 1) -> CodecTraining:
    """Freshly initialised networks for a run.

    accumulate: mini-batches of an optimiser step on one device, because the run file counts steps
        and the module batches.
    """
    training = cfg.training
    vqgan = VQGAN(cfg.arch, "l2")
    vqgan.set_gradient_checkpointing(training.gradient_checkpointing)
    care = CodebookCare(
        cfg.arch.codebook_size,
        cfg.arch.embed_dim,
        init=training.codebook_init,
        restart_every=training.restart_every * accumulate,
        restart_until=(training.last_restart - training.quantise_start) * accumulate,
    )
    discriminator = PatchDiscriminator(training.disc_width, training.disc_layers)
    return CodecTraining(vqgan, discriminator, care, training.quantise_start * accumulate)


class CodecTask:
    """The losses of a VQ-GAN and, second, of its discriminator, for one optimiser over both.

    Metrics, each a scalar that stays on its device: loss (all that does not depend on the
    discriminator, so that it is one curve from start to end), reconstruction, perceptual, codebook,
    commitment, usage (share of the codebook in the batch), perplexity; alive in training; gan,
    discriminator and, in training, adaptive_weight once the discriminator takes part.
    """

    parts = 2

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
            batch: "images", (B, 3, H, W) in [0, 1], at least as large as the pictures trained on.
            generator: of everything random, on the device of the batch.
        """
        codec, size = unwrapped(net), self.settings.size
        mirror = self.settings.mirror and codec.training
        images = augment(
            batch["images"], size, mirror=mirror, generator=generator if codec.training else None
        )
        colours_vary = codec.training and codec.batches_seen() < self.last_recolouring
        if self.settings.recolour and colours_vary:
            images = recolour(images, self.settings.recolour, generator)
        images = (images * 2 - 1).contiguous(memory_format=torch.channels_last)
        adversarial = codec.batches_seen() >= self.disc_start
        result: Reconstruction = net("reconstruct", images, generator)
        yield self._codec_side(codec, images, result, adversarial)
        if adversarial:
            real, fake = net("judge", images, result.pixels.detach())
            loss = discriminator_hinge(real, fake)
            yield loss, {"discriminator": loss}
        else:
            yield net("idle"), {}

    def _codec_side(
        self, codec: CodecTraining, images: Tensor, result: Reconstruction, adversarial: bool
    ) -> tuple[Tensor, Metrics]:
        """Differentiates by the pixels here, and lets autograd do the rest from there.

        The adaptive weight needs each loss's gradient at the last layer anyway. Taking both only
        down to the pixels saves a second pass back through the perceptual network and the
        discriminator, whose activations are free again before the decoder's turn comes.
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
                pull = torch.autograd.grad(gan, pixels)[0]
                weight = adaptive_weight(result.pixels, codec.last_layer, gradient, pull)
                metrics["adaptive_weight"] = weight
                total = total + settings.disc_weight * weight * gan
                gradient = gradient + settings.disc_weight * weight * pull
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
        usage, perplexity = usage_and_perplexity(tokens, codec.vqgan.arch.codebook_size)
        metrics = {"usage": usage, "perplexity": perplexity}
        return metrics | {"alive": codec.care.alive()} if codec.training else metrics


class ReconstructionPictures:
    """A trainer's hook: held-out pictures above what the codec makes of them, as one picture."""

    def __init__(self, cfg: CodecRunConfig, data: ImageDataset) -> None:
        """data: whose first pictures, at most `training.nb_pictures`, are shown."""
        self.precision = cfg.training.arithmetic
        self.images = data.__getitems__(range(min(cfg.training.nb_pictures, len(data))))["images"]

    @torch.no_grad()
    def __call__(self, trainer: Trainer) -> None:
        """Write RUN/reconstructions/step-NNNNNNN.png."""
        if not trainer.accelerator.is_main_process:
            return
        codec, generator = unwrapped(trainer.eval_net).eval(), torch.Generator(trainer.device)
        made = []
        for images in self.images.split(trainer.mini_batch_size):
            with autocast(trainer.device, self.precision):
                result = codec.reconstruct(images.to(trainer.device) * 2 - 1, generator)
            made.append((result.pixels.cpu() + 1) / 2)
        grid = make_grid(_rows_in_turn(self.images, torch.cat(made)), columns=_COLUMNS)
        if trainer.run is not None:
            folder = make_folder(trainer.run / "reconstructions")
            save_image(grid, folder / f"step-{trainer.step:07d}.png")
        trainer.logbook.log_picture("reconstructions", grid, trainer.step)


_COLUMNS = 8


def _rows_in_turn(originals: Tensor, made: Tensor) -> Tensor:
    """A row of originals, the row of their reconstructions, the next originals: (2 N, 3, H, W).

    A last row that is not full is filled up with white.
    """
    missing = -len(originals) % _COLUMNS
    white = originals.new_ones(missing, *originals.shape[1:])
    rows = [torch.cat((part, white)).unflatten(0, (-1, _COLUMNS)) for part in (originals, made)]
    return torch.stack(rows, 1).flatten(0, 2)
