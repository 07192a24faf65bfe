"""Write any supported checkpoint as safetensors plus a readable JSON that needs no other file."""

import copy
import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

from sundae.codec.vqgan.codec import VQGANCodec
from sundae.codec.vqgan.load import NATIVE_FORMAT, NATIVE_VERSION
from sundae.common.errors import UserError
from sundae.common.files import atomic_path, write_text
from sundae.common.finite import first_non_finite
from sundae.common.locking import target_lock


def rounded(codec: VQGANCodec) -> VQGANCodec:
    """The same codec with weights that float16 can hold, still computing in float32.

    It is another codec: some latents fall to other tokens, so its identity is another, too. Raises
    UserError when a weight is beyond float16's range.
    """
    model = copy.deepcopy(codec.model).half().float()
    beyond = first_non_finite(model.state_dict())
    if beyond is not None:
        raise UserError(f"{beyond} is beyond the range of float16; leave out --half")
    return VQGANCodec(
        model,
        codec.rules,
        family=codec.family,
        resolution=codec.resolution,
        precision=codec.precision,
    )


def save_codec(
    codec: VQGANCodec, destination: Path, *, half: bool = False, overwrite: bool = False
) -> list[Path]:
    """Write a codec so that `load_vqgan(destination)` gives one of the same identity.

    Args:
        destination: NAME.safetensors, beside which NAME.json is written; or a folder, which gets
            vqgan.safetensors and vqgan.json.
        half: write `rounded(codec)`, in float16.

    Returns:
        The two paths.

    Raises:
        UserError: one exists and `overwrite` is false, or another process is writing them.
    """
    codec = rounded(codec) if half else codec
    named = destination.suffix == ".safetensors"
    weights = destination if named else destination / "vqgan.safetensors"
    description = weights.with_suffix(".json")
    with target_lock(weights):  # two writers would leave the weights of one, the text of the other
        for path in (weights, description):
            if path.exists() and not overwrite:
                raise UserError(f"{path} exists; choose another destination or pass --overwrite")
        dtype = torch.float16 if half else torch.float32
        tensors = {n: t.to("cpu", dtype).contiguous() for n, t in codec.model.state_dict().items()}
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
        "rules": asdict(codec.rules),
        "architecture": asdict(codec.model.arch),
    }
    return json.dumps(content, indent=2) + "\n"
