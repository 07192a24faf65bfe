import importlib.util
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import vgg16

from sundae.codec_training import perceptual
from sundae.codec_training.perceptual import LPIPS, EfficientNetDistance, load_perceptual
from sundae.common.errors import UserError
from sundae.features.efficientnet import EfficientNetLite0

EFFICIENTNET = "models/efficientnet-lite0-57934424.pth"


def images(seed: int, side: int = 32) -> torch.Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def tiny_vgg() -> nn.Sequential:
    torch.manual_seed(0)
    return vgg16(weights=None).features.eval()


def efficientnet() -> EfficientNetLite0:
    torch.manual_seed(0)
    net = EfficientNetLite0().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return net.requires_grad_(False)


@pytest.mark.filterwarnings("ignore:The parameter 'pretrained'", "ignore:Arguments other than")
def test_lpips_is_that_of_the_package() -> None:
    reference_of = pytest.importorskip("lpips")
    vgg = tiny_vgg()
    reference = reference_of.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    slices = [getattr(reference.net, f"slice{i}") for i in range(1, 6)]
    for part in slices:
        part.load_state_dict({n: t for n, t in vgg.state_dict().items() if n in part.state_dict()})
    ours = LPIPS(vgg, [reference.lins[i].model[1].weight.detach() for i in range(5)])
    a, b = images(0), images(1)
    with torch.no_grad():
        torch.testing.assert_close(ours(a, b), reference(a, b).mean(), rtol=1e-4, atol=1e-6)


def test_the_distance_vanishes_for_equal_images_and_pulls_them_together() -> None:
    distance = EfficientNetDistance(efficientnet())
    a, b = images(0), images(1)
    assert distance(a, a) == 0
    pixels = a.clone().requires_grad_()
    before = distance(pixels, b)
    (gradient,) = torch.autograd.grad(before, pixels)
    assert distance(a - gradient / gradient.norm() * 0.5, b) < before


def test_folding_changes_no_feature() -> None:
    net = efficientnet()
    before = [feature.clone() for feature in net.stages(images(0))]
    net.fold()
    assert [tuple(f.shape[1:]) for f in before] == [
        (16, 16, 16),
        (24, 8, 8),
        (40, 4, 4),
        (112, 2, 2),
    ]
    for feature, wanted in zip(net.stages(images(0)), before, strict=True):
        torch.testing.assert_close(feature, wanted, rtol=1e-3, atol=1e-4)


def test_no_perceptual_loss_is_zero() -> None:
    assert load_perceptual("none")(images(0), images(1)) == 0


@pytest.mark.parametrize("name", ["lpips", "efficientnet-lite0"])
def test_a_missing_package_is_one_line_with_the_remedy(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(UserError, match=r"not installed: pip install.*training.perceptual to") as e:
        load_perceptual(name)
    assert "\n" not in str(e.value)


def package_with(file: str, content: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every optional package look installed, at `folder`, with one weights file."""
    (folder / file).parent.mkdir(parents=True)
    torch.save(content, folder / file)
    spec = importlib.util.spec_from_loader("fake", None, is_package=True)
    assert spec is not None
    spec.submodule_search_locations = [str(folder)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: spec)


def test_efficientnet_is_read_from_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = efficientnet()
    package_with(EFFICIENTNET, net.state_dict(), tmp_path, monkeypatch)
    a, b = images(0), images(1)
    wanted = EfficientNetDistance(net)(a, b)
    torch.testing.assert_close(
        load_perceptual("efficientnet-lite0")(a, b), wanted, rtol=1e-3, atol=1e-5
    )


def test_weights_of_another_network_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package_with(EFFICIENTNET, {"a": torch.ones(1)}, tmp_path, monkeypatch)
    with pytest.raises(UserError, match="is of another version"):
        load_perceptual("efficientnet-lite0")


def test_weights_that_cannot_be_downloaded_are_one_line_with_the_place_to_put_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibration = {f"lin{i}.model.1.weight": torch.ones(1, 1, 1, 1) for i in range(5)}
    package_with("weights/v0.1/vgg.pth", calibration, tmp_path, monkeypatch)

    def offline(*args: Any, **kwargs: Any) -> None:
        assert kwargs["weights_only"] is True
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(perceptual.torch.hub, "load_state_dict_from_url", offline)
    with pytest.raises(UserError, match=r"no network.*vgg16-397923af.pth into .*checkpoints"):
        load_perceptual("lpips")
