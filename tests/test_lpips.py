"""LPIPS beside torchmetrics' implementation, and with the published weights where they are."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_image
from torch import Tensor, nn
from torchmetrics.functional.image import lpips

from sundae.features.lpips import LPIPS, NETS
from sundae.features.lpips_weights import load_lpips, weights_path

CPU = torch.device("cpu")
REFERENCE = {"alexnet": "alex", "vgg16": "vgg"}

published = pytest.mark.skipif(
    not all(weights_path(net).exists() for net in NETS),
    reason="no weights in the cache: python get-weights.py lpips",
)


def images(seed: int, height: int = 48, width: int = 40) -> Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(seed))


def reference(net: str) -> nn.Module:
    """torchmetrics' LPIPS with published heads and a random trunk."""
    return lpips._LPIPS(net=REFERENCE[net], pnet_rand=True).eval().requires_grad_(False)


def convs(net: nn.Module) -> list[nn.Conv2d]:
    return [module for module in net.modules() if isinstance(module, nn.Conv2d)]


@pytest.mark.parametrize("net", NETS)
def test_it_is_that_of_torchmetrics(net: str) -> None:
    torch.manual_seed(0)
    wanted, ours = reference(net), LPIPS(net).requires_grad_(False)
    for conv, copied in zip(convs(ours.trunk), convs(wanted.net), strict=True):
        conv.load_state_dict(copied.state_dict())
    for head, copied in zip(ours.heads, wanted.lins, strict=True):
        head.copy_(copied.model[1].weight[0])
    a, b = images(0), images(1)
    torch.testing.assert_close(ours(a, b), wanted(a * 2 - 1, b * 2 - 1).flatten())
    assert (ours(a, b) > 1e-4).all()


def test_images_below_32_pixels_are_enlarged() -> None:
    """AlexNet has no features of 28x28."""
    net, (a, b) = LPIPS("alexnet", (4,) * 5).requires_grad_(False), (images(0, 28), images(1, 28))
    a, b = a[..., :28], b[..., :28]
    large = (F.interpolate(x, 64, mode="bilinear") for x in (a, b))
    torch.testing.assert_close(net(a, b), net(*large))
    assert (net(a, a) == 0).all()


@published
@pytest.mark.parametrize(
    ("net", "expected"), [("alexnet", (0.8847, 0.3528)), ("vgg16", (0.8349, 0.2657))]
)
def test_published_weights_give_known_distances(net: str, expected: tuple[float, float]) -> None:
    """Two photographs; one of them and itself, blurred."""
    china, flower = (
        torch.from_numpy(load_sample_image(name)[::4, ::4].copy()).permute(2, 0, 1)[None] / 255
        for name in ("china.jpg", "flower.jpg")
    )
    distance, blurred = load_lpips(net, CPU), F.avg_pool2d(china, 3, 1, 1)
    found = [float(distance(china, other)) for other in (flower, blurred)]
    assert found == pytest.approx(expected, abs=1e-3)


@published
@pytest.mark.parametrize("net", NETS)
def test_published_heads_are_those_of_torchmetrics(net: str) -> None:
    path = Path(lpips.__file__).with_name("lpips_models") / f"{REFERENCE[net]}.pth"
    wanted = torch.load(path, map_location="cpu", weights_only=True)
    for depth, head in enumerate(load_lpips(net, CPU).heads):
        assert torch.equal(head, wanted[f"lin{depth}.model.1.weight"][0])


@published
def test_published_trunks_are_those_of_torchvision() -> None:
    """First weights of torchvision's AlexNet and VGG-16, as printed."""
    alexnet, vgg16 = (convs(load_lpips(net, CPU))[0] for net in NETS)
    torch.testing.assert_close(
        alexnet.weight[0, 0, 0, :3], torch.tensor([0.1186, 0.0941, 0.0954]), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(
        vgg16.bias[:4], torch.tensor([0.4034, 0.3778, 0.4644, -0.3228]), atol=1e-4, rtol=0
    )
