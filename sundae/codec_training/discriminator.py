"""The patch discriminator of VQ-GAN (PatchGAN, arXiv 1611.07004), under taming's names."""

from itertools import pairwise

from torch import Tensor, nn

_WIDEST = 8  # times the base width


class PatchDiscriminator(nn.Module):
    """Scores overlapping patches: (B, 3, H, W) in [-1, 1] -> (B, 1, h, w), large for real.

    With the default three layers a score sees 70x70 pixels and h = H/8 - 2. State dicts are those
    of taming-transformers' NLayerDiscriminator.
    """

    def __init__(self, width: int = 64, layers: int = 3) -> None:
        """width: channels after the first convolution. layers: how many of them halve the size."""
        super().__init__()
        widths = [width * min(2**i, _WIDEST) for i in range(layers + 1)]
        main: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2, inplace=True)]
        for level, (before, after) in enumerate(pairwise(widths), 1):
            stride = 2 if level < layers else 1
            main += [
                nn.Conv2d(before, after, 4, stride, 1, bias=False),
                nn.BatchNorm2d(after),
                nn.LeakyReLU(0.2, inplace=True),
            ]
        main.append(nn.Conv2d(widths[-1], 1, 4, 1, 1))
        self.main = nn.Sequential(*main)
        self.apply(_initialise)

    def forward(self, pixels: Tensor) -> Tensor:
        scores: Tensor = self.main(pixels)
        return scores


def _initialise(module: nn.Module) -> None:
    """DCGAN's initial values (arXiv 1511.06434, section 4)."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
