"""Fetch or draw images to learn from: OUT/CLASS/*.png, or for MNIST and Fashion-MNIST IDX files."""

import argparse
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import utils
from sundae.common.errors import UserError
from sundae.datasets.avatars import STYLES, write_avatars
from sundae.datasets.cats import BACKGROUNDS as CAT_BACKGROUNDS
from sundae.datasets.cats import PARTS, write_cats
from sundae.datasets.emoji import BACKGROUNDS as EMOJI_BACKGROUNDS
from sundae.datasets.emoji import write_emoji
from sundae.datasets.mnist import write_fashion_mnist, write_mnist

# What writes each set. Its keyword arguments are the flags that the set has.
SETS: dict[str, Callable[..., dict[str, int] | None]] = {
    "avatars": write_avatars,
    "cats": write_cats,
    "emoji": write_emoji,
    "fashion-mnist": write_fashion_mnist,
    "mnist": write_mnist,
}


def parse_args() -> tuple[str, dict[str, Any]]:
    """Name of the set and the arguments of its writer."""
    parser = argparse.ArgumentParser(description=__doc__)
    flag = parser.add_argument
    flag("name", metavar="NAME", choices=SETS, help=", ".join(SETS))
    flag("out", metavar="OUT", type=Path, help="folder to create")
    exists = parser.add_mutually_exclusive_group()
    exists.add_argument("--overwrite", action="store_true", help="replace what OUT holds")
    exists.add_argument(
        "--skip-existing", action="store_true", help="succeed when OUT holds the same already"
    )
    utils.add_common_flags(parser, "--quiet")

    # The others are left out where they are not given, and have the defaults of the writer.
    group = parser.add_argument_group("some sets", argument_default=argparse.SUPPRESS)
    flag = group.add_argument
    flag(
        "--size",
        type=int,
        metavar="N",
        help="side in pixels (default: 64 for avatars, 256 for cats and emoji)",
    )
    flag(
        "--count",
        type=int,
        metavar="N",
        help="images of each style of avatars (default: 1000), or of cats (default: 10000)",
    )
    flag(
        "--nb-workers",
        type=int,
        metavar="N",
        help="processes that draw avatars or cats (default: one a core)",
    )
    flag(
        "--background",
        choices=(*EMOJI_BACKGROUNDS, *CAT_BACKGROUNDS),
        help="of emoji: light grey (default) or white; of cats: flat colours (default) or scenes",
    )
    flag(
        "--package-dir",
        type=Path,
        metavar="DIR",
        help="folder with the package of emoji, mnist or fashion-mnist as files, in place of a "
        "download",
    )
    flag(
        "--styles",
        nargs="+",
        metavar="STYLE",
        help=f"of avatars: some of {', '.join(STYLES)} (default: all)",
    )
    flag("--classes-by", choices=PARTS, help="of cats: the part that decides on the class")
    flag(
        "--no-skin-tones",
        dest="skin_tones",
        action="store_false",
        help="of emoji: leave out the variants in five skin tones, 1,520 of the images",
    )
    values = vars(parser.parse_args())
    name = values.pop("name")
    return name, values


def main() -> None:
    """Writes the folder and says how many images each class has."""
    name, values = parse_args()
    write = SETS[name]
    for key in values.keys() - inspect.signature(write).parameters.keys():
        flags = {"skin_tones": "--no-skin-tones"}
        raise UserError(f"{flags.get(key, '--' + key.replace('_', '-'))} is no flag of {name}")
    counts = write(**values)
    if counts is None:
        utils.say(f"{values['out']} is already there")
    else:
        classes = ", ".join(f"{count} {label}" for label, count in counts.items())
        listed = f": {classes}" if len(counts) > 1 else ""
        utils.say(f"wrote {values['out']}: {sum(counts.values())} images{listed}")


if __name__ == "__main__":
    utils.run_cli(main)
