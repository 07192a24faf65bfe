"""Write a VQ-GAN checkpoint as safetensors and a readable JSON that need no other file."""

import argparse
from pathlib import Path

import utils
from sundae.codec.vqgan import load_vqgan
from sundae.codec.vqgan.convert import rounded, save_codec
from sundae.config.flags import add_flags
from sundae.config.sections import VQGANConfig


def parse_args() -> argparse.Namespace:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__)
    flag = parser.add_argument
    flag("source", type=Path, metavar="SRC", help="checkpoint file or folder")
    flag("destination", type=Path, metavar="DST", help="NAME.safetensors, or a folder")
    flag("--config", type=Path, metavar="FILE", help="YAML or JSON of the VQ-GAN")
    add_flags(parser, VQGANConfig, "input_range", "distance")
    flag("--prefix", help="names before those of the VQ-GAN in a combined checkpoint")
    flag(
        "--half",
        action="store_true",
        help="float16: half the size, but another codec; encode data with the result",
    )
    flag("--overwrite", action="store_true", help="replace DST")
    return parser.parse_args()


def main() -> None:
    """Converts the checkpoint and says what it is."""
    args = parse_args()
    codec = load_vqgan(
        args.source,
        args.config,
        input_range=args.input_range,
        distance=args.distance,
        prefix=args.prefix,
    )
    codec = rounded(codec) if args.half else codec
    written = save_codec(codec, args.destination, half=args.half, overwrite=args.overwrite)
    utils.say(f"wrote {' and '.join(map(str, written))}")
    utils.say(f"{codec.codebook_size} codes, {codec.factor} px a token, {codec.identity}")


if __name__ == "__main__":
    utils.run_cli(main)
