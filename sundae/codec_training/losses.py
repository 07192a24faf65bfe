"""The losses of a VQ-GAN as pure functions of tensors (arXiv 2012.09841, eq. 4 to 7)."""

import torch
import torch.nn.functional as F
from torch import Tensor

# The adaptive weight explodes where the discriminator is flat; taming-transformers clamps it here.
_LARGEST_WEIGHT = 1e4
_TINY_NORM = 1e-4


def reconstruction_loss(reconstruction: Tensor, images: Tensor, kind: str) -> Tensor:
    """Mean absolute ("l1") or squared ("l2") difference, both of any one shape -> scalar."""
    return F.l1_loss(reconstruction, images) if kind == "l1" else F.mse_loss(reconstruction, images)


def quantisation_losses(latents: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Distance of latents from their codes, once with gradients for each side.

    VQ-VAE, arXiv 1711.00937, eq. 3: the second term there carries beta, usually 0.25.
    (taming-transformers' first quantiser put beta on the first term; a codebook weight of 0.25 and
    a commitment of 1 give its loss.)

    Args:
        latents, vectors: (B, D, h, w) encoder outputs, and their codes.

    Returns:
        (codebook, commitment): equal scalars, of which the first moves only the codes and the
        second only the encoder.
    """
    return F.mse_loss(vectors, latents.detach()), F.mse_loss(latents, vectors.detach())


def generator_hinge(fake: Tensor) -> Tensor:
    """Scores of reconstructions, any shape -> scalar, lower where they pass for real."""
    return -fake.mean()


def discriminator_hinge(real: Tensor, fake: Tensor) -> Tensor:
    """Scores of images and reconstructions -> scalar, 0 when they are 1 and -1 or beyond."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def adaptive_weight(
    pixels: Tensor, last_layer: Tensor, fidelity_gradient: Tensor, gan_gradient: Tensor
) -> Tensor:
    """The factor that gives both losses equal gradients at the decoder's last layer (eq. 7).

    Args:
        pixels: (B, 3, H, W) reconstruction, whose graph reaches `last_layer` and is kept.
        last_layer: the decoder's last weight.
        fidelity_gradient, gan_gradient: of the two losses with respect to `pixels`.

    Returns:
        scalar |d fidelity / d last_layer| / |d GAN / d last_layer|, in [0, 1e4], no gradient.
    """
    fidelity, gan = (
        torch.autograd.grad(pixels, last_layer, gradient, retain_graph=True)[0].norm()
        for gradient in (fidelity_gradient, gan_gradient)
    )
    return (fidelity / (gan + _TINY_NORM)).clamp(0, _LARGEST_WEIGHT)


def with_gradient(value: Tensor, pixels: Tensor, gradient: Tensor) -> Tensor:
    """A scalar that equals `value` and has `gradient` with respect to `pixels`.

    A loss whose derivative down to the pixels is already known need not be differentiated again on
    its way to the weights.
    """
    inner = (pixels * gradient).sum()
    return value.detach() + inner - inner.detach()
