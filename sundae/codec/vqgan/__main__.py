"""python -m sundae.codec.vqgan convert SRC DST: a checkpoint made safe, small, self-describing."""

import argparse
import sys
from pathlib import Path

from sundae.codec.vqgan.convert import rounded, save_codec
from sundae.codec.vqgan.load import load_vqgan
from sundae.codec.vqgan.quantise import DISTANCES
from sundae.common.errors import UserError
from sundae.common.naming import printable


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m sundae.codec.vqgan")
    commands = parser.add_subparsers(dest="command", required=True)
    convert = commands.add_parser("convert", help="write safetensors and a readable JSON")
    convert.add_argument("source", type=Path, metavar="SRC", help="checkpoint file or folder")
    convert.add_argument(
        "destination", type=Path, metavar="DST", help="NAME.safetensors, or a folder"
    )
    convert.add_argument("--config", type=Path, metavar="FILE", help="its YAML or JSON config")
    convert.add_argument("--input-range", choices=("signed", "unit"), help="[-1, 1] or [0, 1]")
    convert.add_argument("--distance", choices=DISTANCES, help="how the codebook is searched")
    convert.add_argument("--prefix", help="which VQ-GAN of a combined checkpoint")
    convert.add_argument(
        "--half", action="store_true", help="in float16: half the size, a codec of its own"
    )
    convert.add_argument("--overwrite", action="store_true", help="replace DST")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, or 2 with one line on stderr."""
    args = _parse(arguments)
    try:
        codec = load_vqgan(
            args.source,
            args.config,
            input_range=args.input_range,
            distance=args.distance,
            prefix=args.prefix,
        )
        codec = rounded(codec) if args.half else codec
        written = save_codec(codec, args.destination, half=args.half, overwrite=args.overwrite)
    except UserError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2
    print(printable(f"wrote {' and '.join(str(path) for path in written)}"))
    print(f"{codec.codebook_size} codes, {codec.factor} px a token, {codec.identity}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
