"""From a run file to the network that it describes."""

from hourglass_transformer import HourglassTransformer
from sundae.config.run_file import RunConfig


def build_network(cfg: RunConfig) -> HourglassTransformer:
    """A freshly initialised network; on the default device, so `torch.device("meta")` works."""
    return HourglassTransformer(cfg.net, vocab_size=cfg.data.vocab_size, grid=cfg.grid_shape)
