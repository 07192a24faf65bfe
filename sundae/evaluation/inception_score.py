"""How certain a classifier is of each image and how varied its answers are over all of them."""

from __future__ import annotations

import numpy as np
import torch

from sundae.common.extras import import_extra


def inception_score(logits: np.ndarray, *, splits: int = 10, seed: int = 0) -> tuple[float, float]:
    """exp(E_x KL(p(y|x) || p(y))) (arXiv 1606.03498), between 1 and the number of classes.

    Few images lower it: a part of n images cannot score above n. Computed by torch-fidelity, in
    float64.

    Args:
        logits: (n, classes) of a network that was trained on other data.
        splits: parts that the images are divided into at random, each scored on its own.

    Returns:
        Mean and standard deviation over the parts.

    Raises:
        UserError: torch-fidelity is not installed.
        ValueError: fewer images than parts.
    """
    if not 1 <= splits <= len(logits):
        raise ValueError(f"{splits} parts of {len(logits)} images")
    metric = import_extra("torch_fidelity.metric_isc", "requirements-evaluate.txt")
    values = metric.isc_features_to_metric(torch.from_numpy(logits), splits, True, seed)
    return values[metric.KEY_METRIC_ISC_MEAN], values[metric.KEY_METRIC_ISC_STD]
