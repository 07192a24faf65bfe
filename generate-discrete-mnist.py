"""Turn small grey images into token data, one token a pixel: OUT/train and OUT/eval."""

import argparse
from pathlib import Path

import utils
from sundae.datasets.digits import NAMES, write_pixel_dataset


def parse_args() -> argparse.Namespace:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__)
    flag = parser.add_argument
    flag("name", metavar="NAME", choices=NAMES, help=", ".join(NAMES))
    flag("out", metavar="OUT", type=Path, help="folder to create")
    flag(
        "--levels",
        type=int,
        metavar="N",
        help="grey levels, 2 to 256 (default: 17 for digits, otherwise 256)",
    )
    flag(
        "--data-dir",
        type=Path,
        default=Path("data"),
        help="folder of downloaded IDX files, in MNIST/raw and so on (default: data)",
    )
    exists = parser.add_mutually_exclusive_group()
    exists.add_argument("--overwrite", action="store_true", help="replace what OUT holds")
    exists.add_argument(
        "--skip-existing", action="store_true", help="succeed when OUT holds the same data already"
    )
    flag("--quiet", action="store_true", help="print errors only")
    return parser.parse_args()


def main() -> None:
    """Writes the data and says where it is."""
    args = parse_args()
    written = write_pixel_dataset(**vars(args))
    if not args.quiet:
        utils.say(f"wrote {args.out}" if written else f"{args.out} is already there")


if __name__ == "__main__":
    utils.run_cli(main)
