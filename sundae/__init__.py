"""A discrete image prior, learned as a step-unrolled denoising autoencoder, sampled in parallel.

`from sundae import Sampler` is the way in; the rooms are in the order in which they may import.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sundae.editing.sampler import Sampler

__all__ = ["Sampler"]


def __getattr__(name: str) -> Any:
    """Import `Sampler` when it is first needed: the rooms below it do without."""
    if name == "Sampler":
        from sundae.editing.sampler import Sampler

        return Sampler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
