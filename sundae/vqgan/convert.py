"""Write any supported checkpoint as safetensors plus a readable JSON that needs no other file."""

import json
from pathlib import Path

from safetensors.torch import save_file

from sundae.errors import UserError
from sundae.files import atomic_path, make_folder, write_text
from sundae.vqgan.codec import VQGANCodec
from sundae.vqgan.load import NATIVE_FORMAT, NATIVE_VERSION


def save_codec(codec: VQGANCodec, destination: Path, *, overwrite: bool = False) -> list[Path]:
    """Write a codec so that `load_vqgan(destination)` gives one of the same identity.

    destination: NAME.safetensors, beside which NAME.json is written; or a folder, which gets
        vqgan.safetensors and vqgan.json.

    Returns the two paths. Raises UserError when one exists and `overwrite` is false.
    """
    weights = destination
    if weights.suffix != ".safetensors":
        weights = destination / "vqgan.safetensors"
    description = weights.with_suffix(".json")
    for path in (weights, description):
        if path.exists() and not overwrite:
            raise UserError(f"{path} exists; choose another destination or pass --overwrite")
    make_folder(weights.parent)
    tensors = {n: t.cpu().contiguous() for n, t in codec.model.state_dict().items()}
    with atomic_path(weights) as partial:
        save_file(tensors, partial, metadata={"format": "pt"})
    write_text(description, _describe(codec))
    return [weights, description]


def _describe(codec: VQGANCodec) -> str:
    content = {
        "format": NATIVE_FORMAT,
        "version": NATIVE_VERSION,
        "family": codec.family,
        "identity": codec.identity,
        "factor": codec.factor,
        "codebook_size": codec.codebook_size,
        "resolution": codec.resolution,
        "rules": codec.rules.to_dict(),
        "architecture": codec.model.arch.to_dict(),
    }
    return json.dumps(content, indent=2) + "\n"
