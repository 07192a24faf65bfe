"""The Inception score of answers for which it is known."""

import numpy as np
import pytest
import torch
from torchmetrics.image.inception import InceptionScore

from sundae.evaluation.inception_score import inception_score


def test_equal_answers_score_one_and_certain_varied_ones_the_number_of_classes() -> None:
    assert inception_score(np.zeros((50, 7), np.float32)) == pytest.approx((1, 0))
    certain = np.tile(50 * np.eye(5, dtype=np.float32), (20, 1))
    assert inception_score(certain, splits=1) == pytest.approx((5, 0))
    # Two of five classes, as often as each other: variety counts, not the classes' number.
    two = certain[np.argmax(certain, 1) < 2]
    assert inception_score(two, splits=1)[0] == pytest.approx(2)


def test_parts_are_drawn_at_random_by_the_seed() -> None:
    in_order = np.repeat(50 * np.eye(5, dtype=np.float32), 20, 0)
    mean, deviation = inception_score(in_order, splits=5, seed=1)
    assert 4 < mean <= 5 and deviation > 0  # 1 if each part were one class
    assert inception_score(in_order, splits=5, seed=1) == (mean, deviation)
    assert inception_score(in_order, splits=5, seed=2) != (mean, deviation)
    with pytest.raises(ValueError, match="10 parts of 3 images"):
        inception_score(in_order[:3])


# About memory, and the deviation over one part.
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_torchmetrics_gives_the_same() -> None:
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(80, 6)).astype(np.float32) * 3)
    metric = InceptionScore(feature=torch.nn.Identity(), splits=1)
    metric.features.append(logits)
    expected = float(metric.compute()[0])
    assert inception_score(logits.numpy(), splits=1)[0] == pytest.approx(expected, rel=1e-3)
