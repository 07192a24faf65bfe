"""Writing token data in the packed format."""

from pathlib import Path

import numpy as np

from sundae.common.errors import UserError
from sundae.common.files import atomic_path, make_folder
from sundae.data.format import (
    MANIFEST_NAME,
    TOKENS_NAME,
    Manifest,
    token_dtype,
    write_manifest,
)


def is_finished(root: Path) -> bool:
    """Whether a folder holds complete packed latents."""
    return (root / MANIFEST_NAME).is_file()


def refuse_finished(root: Path) -> None:
    """Raises UserError when a folder already holds complete packed latents."""
    if is_finished(root):
        raise UserError(
            f"{root} already holds finished latents; choose another folder or pass --overwrite"
        )


def write_latents(
    root: Path, tokens: np.ndarray, manifest: Manifest, *, overwrite: bool = False
) -> None:
    """Writes a whole data set that fits in memory.

    Args:
        root: folder to create.
        tokens: (manifest.rows, h, w) integer in [0, manifest.codebook_size).
        manifest: what the rows are.
        overwrite: replace finished latents instead of refusing.

    Raises:
        UserError: the folder is finished and overwrite is off, or it cannot be written to.
        ValueError: tokens and manifest disagree.
    """
    if tokens.shape != (manifest.rows, *manifest.latent_shape):
        raise ValueError(f"tokens are {tokens.shape}, the manifest says {manifest.rows} rows")
    if tokens.size and not 0 <= tokens.min() <= tokens.max() < manifest.codebook_size:
        raise ValueError(f"tokens must be in [0, {manifest.codebook_size})")
    if not overwrite:
        refuse_finished(root)
    make_folder(root)
    (root / MANIFEST_NAME).unlink(missing_ok=True)  # from here to the end the folder is unfinished
    with atomic_path(root / TOKENS_NAME) as partial:
        np.save(partial, tokens.astype(token_dtype(manifest.codebook_size)))
    write_manifest(root, manifest)
