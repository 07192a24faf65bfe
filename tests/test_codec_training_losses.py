import pytest
import torch
from taming.modules.discriminator.model import NLayerDiscriminator
from taming.modules.losses.vqperceptual import hinge_d_loss
from taming.modules.vqvae.quantize import VectorQuantizer
from torch import nn

from sundae.codec_training.discriminator import PatchDiscriminator
from sundae.codec_training.losses import (
    adaptive_weight,
    discriminator_hinge,
    generator_hinge,
    quantisation_losses,
    reconstruction_loss,
    with_gradient,
)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_reconstruction_is_the_mean_absolute_or_squared_difference() -> None:
    a, b = randn(2, 3, 4, 4), randn(2, 3, 4, 4, seed=1)
    torch.testing.assert_close(reconstruction_loss(a, b, "l1"), (a - b).abs().mean())
    torch.testing.assert_close(reconstruction_loss(a, b, "l2"), (a - b).square().mean())


def test_quantisation_losses_weighted_as_tamings_give_its_loss_and_gradients() -> None:
    reference = VectorQuantizer(8, 4, beta=0.25)
    reference.embedding.weight.data.copy_(randn(8, 4))
    ours = reference.embedding.weight.detach().clone().requires_grad_()
    latents = randn(2, 4, 3, 3, seed=1).requires_grad_()
    _, expected, (_, _, tokens) = reference(latents)
    wanted = torch.autograd.grad(expected, [latents, reference.embedding.weight])

    vectors = ours[tokens.view(2, 3, 3)].permute(0, 3, 1, 2)
    codebook, commitment = quantisation_losses(latents, vectors)
    loss = 0.25 * codebook + 1.0 * commitment  # that quantiser has beta on the codebook's term
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, [latents, ours]), wanted)


def test_each_quantisation_loss_moves_one_side_only() -> None:
    latents, vectors = (
        randn(1, 2, 2, 2).requires_grad_(),
        randn(1, 2, 2, 2, seed=1).requires_grad_(),
    )
    codebook, commitment = quantisation_losses(latents, vectors)
    moved = [
        [g is not None for g in torch.autograd.grad(loss, [latents, vectors], allow_unused=True)]
        for loss in (codebook, commitment)
    ]
    assert moved == [[False, True], [True, False]]


def test_hinge_losses() -> None:
    real, fake = randn(2, 1, 5, 5), randn(2, 1, 5, 5, seed=1)
    torch.testing.assert_close(discriminator_hinge(real, fake), hinge_d_loss(real, fake))
    assert discriminator_hinge(torch.tensor([1.0, 2.0]), torch.tensor([-1.0, -3.0])) == 0
    torch.testing.assert_close(generator_hinge(fake), -fake.mean())


def test_adaptive_weight_is_the_ratio_of_the_last_layers_gradients() -> None:
    last = nn.Conv2d(3, 3, 1)
    hidden, images = randn(2, 3, 4, 4), randn(2, 3, 4, 4, seed=1)
    pixels = last(hidden)
    fidelity, gan = (pixels - images).abs().mean(), -(pixels.tanh() * 3).mean()
    norms = [
        torch.autograd.grad(loss, last.weight, retain_graph=True)[0].norm()
        for loss in (fidelity, gan)
    ]
    by_pixels = [
        torch.autograd.grad(loss, pixels, retain_graph=True)[0] for loss in (fidelity, gan)
    ]
    weight = adaptive_weight(pixels, last.weight, *by_pixels)
    torch.testing.assert_close(weight, norms[0] / (norms[1] + 1e-4))
    huge = adaptive_weight(pixels, last.weight, by_pixels[0] * 1e9, by_pixels[1])
    assert huge == 1e4


def test_with_gradient_has_the_value_and_the_gradient_it_is_given() -> None:
    pixels, gradient = randn(2, 3).requires_grad_(), randn(2, 3, seed=1)
    loss = with_gradient(torch.tensor(0.75), pixels, gradient)
    assert loss.item() == pytest.approx(0.75, abs=1e-6)
    torch.testing.assert_close(torch.autograd.grad(loss, pixels)[0], gradient)


@pytest.mark.parametrize(("width", "layers"), [(16, 3), (8, 2)])
def test_discriminator_is_tamings(width: int, layers: int) -> None:
    reference = NLayerDiscriminator(ndf=width, n_layers=layers)
    ours = PatchDiscriminator(width, layers)
    ours.load_state_dict(reference.state_dict())
    pixels = randn(2, 3, 32, 32)
    torch.testing.assert_close(ours(pixels), reference(pixels))
