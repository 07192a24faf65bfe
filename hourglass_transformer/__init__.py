"""An hourglass transformer over 2-D token grids: tokens (and a class) in, logits out."""

from .config import NetConfig
from .model import HourglassTransformer

__all__ = ["HourglassTransformer", "NetConfig"]
