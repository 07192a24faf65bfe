"""python -m sundae.release RUN OUT: a trained prior and its codec as one small folder to give away.

OUT/checkpoint.json       what it is: step, config, classes, codec, metrics
OUT/model.safetensors     the averaged weights in float16
OUT/vqgan.safetensors     the codec, in float16, and what it is in vqgan.json
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path

from safetensors.torch import save_file

from sundae.checkpoint import CODEC, FORMAT, Checkpoint, atomic_folder, open_checkpoint
from sundae.config import update_config
from sundae.errors import UserError
from sundae.files import write_text
from sundae.finite import first_non_finite
from sundae.vqgan import VQGANCodec, load_vqgan
from sundae.vqgan.convert import rounded, save_codec

_CARD = "README.md"
_FILES = {_CARD, CODEC, "vqgan.json", "model.safetensors", "checkpoint.json"}


def release(run: Path, out: Path, *, overwrite: bool = False) -> Path:
    """Write a folder that sample.py can --resume without any other file.

    Args:
        run: run folder (its best checkpoint) or checkpoint of a prior on VQ-GAN tokens.
        out: folder to create. A README.md in it survives when it is replaced.
        overwrite: replace `out`.

    Raises:
        UserError: `out` exists, a weight is NaN, infinite or beyond float16, or the tokens were
            made by a codec that float16 changes.
    """
    if out.exists() and not overwrite:
        raise UserError(f"{out} exists; choose another OUT or pass --overwrite")
    checkpoint = open_checkpoint(run)
    foreign = sorted({p.name for p in out.iterdir()} - _FILES) if out.is_dir() else []
    if foreign:
        raise UserError(f"{out} holds {foreign[0]}, no part of a release; choose another OUT")
    codec = _codec_of(checkpoint)
    net = checkpoint.load_network()
    weights = {name: tensor.half().contiguous() for name, tensor in net.state_dict().items()}
    beyond = first_non_finite(weights)
    if beyond is not None:
        raise UserError(f"{checkpoint.folder}: {beyond} is beyond the range of float16")
    info = replace(checkpoint.info, config=_self_contained(checkpoint))
    card = (out / _CARD).read_bytes() if (out / _CARD).exists() else None
    with atomic_folder(out) as folder:
        save_codec(codec, folder / CODEC, half=True)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        write_text(
            folder / "checkpoint.json",
            json.dumps({"format": FORMAT, **asdict(info)}, indent=2) + "\n",
        )
        for path in folder.glob("*.safetensors"):  # safetensors lets nobody but the owner read
            shutil.copymode(folder / "checkpoint.json", path)
        if card is not None:
            (folder / _CARD).write_bytes(card)
    return out


def _codec_of(checkpoint: Checkpoint) -> VQGANCodec:
    """The codec that the run's tokens were made by, if float16 holds it exactly."""
    vqgan = checkpoint.config.vqgan
    if vqgan is None:
        raise UserError(f"{checkpoint.folder} was trained on pixels: there is no codec to release")
    codec = load_vqgan(
        vqgan.checkpoint, vqgan.config, input_range=vqgan.input_range, distance=vqgan.distance
    )
    if codec.identity != checkpoint.info.codec:
        raise UserError(
            f"{vqgan.checkpoint} is not the codec that {checkpoint.folder} was trained with"
        )
    if rounded(codec).identity != codec.identity:
        raise UserError(
            f"{vqgan.checkpoint} has weights that float16 cannot hold: write it with `python -m "
            "sundae.vqgan convert --half`, make the latents with that, and train on them"
        )
    return codec


def _self_contained(checkpoint: Checkpoint) -> dict[str, object]:
    """The run file, naming the codec that lies beside it."""
    source = str(checkpoint.folder)
    values = update_config(checkpoint.config, {"vqgan.checkpoint": CODEC}, source).to_dict()
    for key in ("config", "input_range", "distance"):
        values["vqgan"].pop(key, None)
    return values


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or 2 with one line on stderr."""
    parser = argparse.ArgumentParser(prog="python -m sundae.release", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder or checkpoint")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to create")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT, but for its README")
    args = parser.parse_args(arguments)
    try:
        out = release(args.run, args.out, overwrite=args.overwrite)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    size = sum(path.stat().st_size for path in out.iterdir()) / 1e6
    print(f"wrote {out}, {size:.1f} MB; try: python sample.py --resume {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
