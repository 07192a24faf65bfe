"""Feature networks by name."""

from __future__ import annotations

import torch

from sundae.features.efficientnet import EfficientNetFeatures
from sundae.features.inception import InceptionFeatures
from sundae.features.interface import FeatureNetwork
from sundae.features.pixels import Pixels
from sundae.features.vgg import VGGFeatures

_NETWORKS: dict[str, type[FeatureNetwork]] = {
    network.name: network
    for network in (InceptionFeatures, EfficientNetFeatures, VGGFeatures, Pixels)
}
FEATURES = tuple(_NETWORKS)


def load_features(name: str, device: torch.device, *, quiet: bool = False) -> FeatureNetwork:
    """A feature network of `FEATURES` on a device; its weights are downloaded if they never were,
    with a progress bar unless quiet.

    Raises:
        UserError: its package or its weights are missing; says how to get them.
    """
    return _NETWORKS[name](device, quiet=quiet)


def feature_class(name: str) -> type[FeatureNetwork]:
    """The class of a feature network of `FEATURES`, for its names in tables; loads nothing."""
    return _NETWORKS[name]
