"""The Inception-v3 that defines the FID, through torch-fidelity.

Its weights are those of the TensorFlow graph of 2015, and images are resized as TensorFlow 1 did,
so that figures agree with published ones.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sundae.common.errors import UserError
from sundae.common.extras import import_extra
from sundae.common.files import atomic_path, make_folder
from sundae.features.interface import FeatureNetwork, pooled_and_layout
from sundae.features.weights import (
    DownloadError,
    cache_folder,
    check_sha256,
    download,
    read_state,
)

FILE = "weights-inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE}"
_SHA256 = "6726825d"  # of its name


def fetch_inception(file: Path | None = None, *, quiet: bool = False) -> list[Path]:
    """Puts the weights into the cache, 91 MB, unless they are there, and returns their path.

    Args:
        file: weights that were downloaded by other means.
        quiet: no progress bar.

    Raises:
        UserError: they could not be downloaded, or the file is another one.
    """
    path = cache_folder() / FILE
    if file is None and path.exists():
        return [path]
    make_folder(path.parent)
    if file is not None:
        check_sha256(file, _SHA256)
        with atomic_path(path) as partial:
            partial.write_bytes(file.read_bytes())
    if path.exists():
        return [path]
    try:
        download(URL, path, _SHA256, quiet=quiet)
    except DownloadError as error:
        raise UserError(
            f"the weights of Inception could not be downloaded ({error}); use --features "
            f"efficientnet-lite0, or download {URL} elsewhere and put it at {path}"
        ) from error
    return [path]


def load_inception(*, quiet: bool = False) -> nn.Module:
    """torch-fidelity's network, frozen, on the CPU: uint8 images -> features and logits.

    Its weights are downloaded if they never were, with a progress bar unless quiet.

    Raises:
        UserError: torch-fidelity is not installed, or the weights could not be downloaded.
    """
    requirements = "requirements-evaluate.txt"
    module = import_extra("torch_fidelity.feature_extractor_inceptionv3", requirements)
    (path,) = fetch_inception(quiet=quiet)
    # torch-fidelity unpickles what it reads, so it gets a copy of what was read without that.
    copy = io.BytesIO()
    torch.save(read_state(path), copy)
    copy.seek(0)
    layers = ["2048", "logits_unbiased"]
    net: nn.Module = module.FeatureExtractorInceptionV3(
        "inception", layers, feature_extractor_weights_path=copy
    )
    return net


class InceptionFeatures(FeatureNetwork):
    """The 2048 pooled features, and the logits without bias, as the Inception score takes them."""

    name = "inception"
    title = "Inception-v3"
    distance_name = "FID"
    protocol: ClassVar[dict[str, Any]] = {
        "network": "Inception-v3 of TensorFlow, 2015-12-05, by torch-fidelity",
        "weights": FILE,
        "resize": "bilinear as in TensorFlow 1, without antialiasing, to 299x299",
        "features": "2048 after the last pooling",
        "logits": "1008 classes, without bias",
    }

    def __init__(self, device: torch.device, *, quiet: bool = False) -> None:
        super().__init__(device, quiet=quiet)
        self.net = load_inception(quiet=quiet).to(device)
        self._maps: list[Tensor] = []
        last = self.net.get_submodule("Mixed_7c")  # its 8x8 map is what the network pools
        last.register_forward_hook(lambda *call: self._maps.append(call[-1]))

    def see(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pooled, logits = self.net((images * 255).round().to(torch.uint8))
        return pooled, pooled_and_layout(self._maps.pop())[1], logits
