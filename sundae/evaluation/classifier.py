"""A small convolutional network that reads labels off images, fitted on real ones."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm

# In fitting, so many images are seen in all, within limits of the times that each is seen. With 28
# pixels a side it is the four times that MNIST and Fashion-MNIST need, three minutes on two cores.
_SEEN, _LEAST, _MOST = 180_000, 4, 30
_BATCH, _RATE, _DECAY = 128, 4e-3, 0.05

_LARGEST = 64  # pixels a side; larger images are scaled down
_WIDTHS = (3, 32, 32, 64, 64, 128)
# Number of halvings -> convolutions that halve.
_STRIDED = {1: (1,), 2: (1, 3), 3: (0, 1, 3)}


class ImageClassifier(nn.Module):
    """Logits for each of several labels: five convolutions, and averages over regions.

    Convolutions halve the sides until 4 to 8 positions are left. Regions stay apart, since what an
    image shows may be told by where it is: 2x2 of them for one label, 4x4 for attributes, many of
    which are small parts in one place.
    """

    def __init__(self, size: tuple[int, int], num_values: Sequence[int]) -> None:
        """Draws the weights from torch's global generator.

        Args:
            size: (height, width) in pixels that images are scaled to.
            num_values: number of values of each label.
        """
        super().__init__()
        self.size, self.num_values = size, tuple(num_values)
        halving = _STRIDED[min(3, max(1, round(math.log2(min(size) / 7))))]
        layers: list[nn.Module] = []
        for place, (before, after) in enumerate(pairwise(_WIDTHS)):
            stride = 2 if place in halving else 1
            convolution = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(after), nn.ReLU()]
        self.body = nn.Sequential(*layers).to(memory_format=torch.channels_last)
        self.regions = 2 if len(num_values) == 1 else 4
        self.head = nn.Linear(self.regions**2 * _WIDTHS[-1], sum(num_values))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(N, 3, H, W) uint8 or float in [0, 255] -> for each label (N, values)."""
        pixels = (images.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        regions = F.adaptive_avg_pool2d(self.body(pixels), self.regions)
        return self.head(regions.flatten(1)).split(self.num_values, dim=1)

    @torch.inference_mode()
    def predict(self, images: Tensor) -> np.ndarray:
        """(N, C, H, W) uint8, of any size, grey or RGB -> (N, labels) int64, the likeliest values.

        Runs on the device of the weights, in evaluation mode.
        """
        self.eval()
        device, images = self.head.weight.device, scaled(images, self.size)
        batches = (_as_rgb(part).to(device) for part in images.split(4 * _BATCH))
        found = [torch.stack([x.argmax(1) for x in self(batch)], 1) for batch in batches]
        return torch.cat(found).cpu().numpy()


def fit_classifier(
    images: Tensor,
    labels: np.ndarray,
    num_values: Sequence[int],
    *,
    seed: int = 0,
    device: torch.device | None = None,
    quiet: bool = True,
) -> ImageClassifier:
    """Fits a classifier by cross-entropy, on images shifted by a few pixels at random.

    On one machine, a seed gives the same classifier again.

    Args:
        images: (N, C, H, W) uint8, grey or RGB.
        labels: (N, labels) int64, -1 where an image has none.
        num_values: number of values of each label.
        quiet: no progress bar.
    """
    images = scaled(images, fitting_size((images.shape[2], images.shape[3])))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = ImageClassifier((images.shape[2], images.shape[3]), num_values).to(device).train()
    num_epochs = min(_MOST, max(_LEAST, _SEEN // len(images)))
    num_steps = num_epochs * math.ceil(len(images) / _BATCH)
    optimizer = torch.optim.AdamW(net.parameters(), lr=_RATE, weight_decay=_DECAY)
    schedule = OneCycleLR(optimizer, _RATE, total_steps=num_steps)
    targets = torch.from_numpy(labels).long()
    batches = _batches(len(images), num_epochs, torch.Generator().manual_seed(seed))
    bar = tqdm(batches, "fitting a classifier", num_steps, disable=True if quiet else None)
    for rows, shift in bar:
        logits = net(_shifted(_as_rgb(images[rows]).to(device), shift))
        pairs = zip(logits, targets[rows].to(device).T)
        loss = torch.stack([_cross_entropy(*pair) for pair in pairs]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval()


def fitting_size(size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) in pixels of images as a classifier sees them."""
    scale = min(1.0, _LARGEST / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def scaled(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images (N, C, H, W) uint8 at another size, antialiased; few at a time are float meanwhile."""
    if images.shape[2:] == size:
        return images
    parts = (
        F.interpolate(part.float(), size, mode="bilinear", antialias=True).round().byte()
        for part in images.split(4 * _BATCH)
    )
    return torch.cat(list(parts))


def _batches(
    count: int, num_epochs: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, tuple[float, float]]]:
    """Rows of each step, and a shift down and right as two numbers in [0, 1)."""
    for _ in range(num_epochs):
        for rows in torch.randperm(count, generator=generator).split(_BATCH):
            down, right = torch.rand(2, generator=generator).tolist()
            yield rows, (down, right)


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over the images that have the label; 0 where none has it."""
    total = F.cross_entropy(logits, targets, ignore_index=-1, reduction="sum")
    return total / (targets >= 0).sum().clamp(min=1)


def _shifted(images: Tensor, shift: tuple[float, float]) -> Tensor:
    """Moves images by up to a fourteenth of a side, and repeats the border."""
    height, width = images.shape[2:]
    reach = min(height, width) // 14
    top, left = (int(part * (2 * reach + 1)) for part in shift)
    padded = F.pad(images.float(), (reach,) * 4, mode="replicate")
    return padded[:, :, top : top + height, left : left + width]


def _as_rgb(images: Tensor) -> Tensor:
    return images.expand(-1, 3, -1, -1)
