"""A discrete image prior, learned as a step-unrolled denoising autoencoder, sampled in parallel.

`from sundae import Sampler` is the front door: it samples images and repaints given ones.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sundae.editing.sampler import Sampler

__all__ = ["Sampler"]


def __getattr__(name: str) -> Any:
    """Imports the front door on first use (PEP 562), so that a room does not load all others."""
    if name == "Sampler":
        from sundae.editing.sampler import Sampler

        return Sampler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
