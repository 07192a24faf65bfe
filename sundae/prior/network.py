"""From a run file's [net] section to the network it describes."""

from __future__ import annotations

from hourglass_transformer import HourglassConfig, HourglassTransformer
from hourglass_transformer.config import Depth
from sundae.common.errors import UserError
from sundae.config.run_file import Depth as FileDepth
from sundae.config.run_file import NetConfig, RunConfig


def build_network(cfg: RunConfig) -> HourglassTransformer:
    """A freshly initialised network; on the default device, so `torch.device("meta")` works.

    Raises:
        UserError: the [net] section describes a network that cannot be built.
    """
    net = cfg.net
    try:
        shape = HourglassConfig(
            vocab_size=cfg.data.vocab_size,
            grid=cfg.grid_shape,
            dim=net.dim,
            nb_heads=net.nb_heads,
            depth=_depth(net.depth),
            shorten_factor=net.shorten_factors or (4,),
            dims=net.dims or (),
            window=net.windows,
            dim_head=net.dim_head,
            num_classes=net.num_classes if net.conditional else 0,
            null_class=net.conditional and net.class_dropout > 0,
            use_rotary=net.use_rotary,
            resampling=net.resampling,
            attn_resampling=net.attn_resampling,
            use_scalenorm=net.use_scalenorm,
            use_glu=net.use_glu,
            ff_mult=net.ff_mult,
            attn_dropout=net.attn_dropout,
            ff_dropout=net.ff_dropout,
            emb_dropout=net.emb_dropout,
        )
    except ValueError as error:
        raise UserError(f"[net]: {error}") from error
    return HourglassTransformer(shape)


def _depth(depth: FileDepth | int) -> Depth:
    """The file's (n,) or (before, valley, after) -> the network's n or (before, valley, after)."""
    if isinstance(depth, int):
        return depth
    if len(depth) == 1:
        return _depth(depth[0])
    before, valley, after = depth
    assert isinstance(before, int) and isinstance(after, int)
    return before, _depth(valley), after


def null_class(net: NetConfig) -> int | None:
    """Number of the class that means any, of a network that has learned one."""
    return net.num_classes if net.conditional and net.class_dropout > 0 else None
