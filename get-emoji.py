"""Fetch 3,391 3D emoji with npm and write them as OUT/GROUP/CODEPOINTS.png, to train on."""

import argparse
from pathlib import Path

import utils
from sundae.datasets.emoji import BACKGROUNDS, write_emoji


def parse_args() -> argparse.Namespace:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__)
    flag = parser.add_argument
    flag("out", metavar="OUT", type=Path, help="folder to create")
    flag("--size", type=int, default=256, metavar="N", help="side in pixels (default: 256)")
    flag("--background", choices=BACKGROUNDS, default="grey", help="light grey (default) or white")
    flag(
        "--no-skin-tones",
        dest="skin_tones",
        action="store_false",
        help="leave out the variants in five skin tones, 1,520 of the images",
    )
    flag(
        "--tarballs",
        type=Path,
        metavar="DIR",
        help="folder with both npm packages as .tgz, in place of npm",
    )
    exists = parser.add_mutually_exclusive_group()
    exists.add_argument("--overwrite", action="store_true", help="replace what OUT holds")
    exists.add_argument(
        "--skip-existing", action="store_true", help="succeed when OUT holds the same already"
    )
    utils.add_common_flags(parser, "--quiet")
    return parser.parse_args()


def main() -> None:
    """Writes the folder and says how many images each group has."""
    args = parse_args()
    counts = write_emoji(**vars(args))
    if counts is None:
        utils.say(f"{args.out} is already there")
    else:
        groups = ", ".join(f"{count} {group}" for group, count in counts.items())
        utils.say(f"wrote {args.out}: {sum(counts.values())} images: {groups}")


if __name__ == "__main__":
    utils.run_cli(main)
