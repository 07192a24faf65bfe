"""Write a prior and its codec as one folder to give away.

OUT/checkpoint.json describes it: step, config, classes, codec, metrics. OUT/model.safetensors holds
the averaged weights in float16, OUT/vqgan.safetensors the codec in float16, OUT/vqgan.json what the
codec is. OUT/README.md survives when OUT is replaced.
"""

import argparse
from pathlib import Path

import utils
from sundae.prior.release import release


def parse_args() -> argparse.Namespace:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__)
    flag = parser.add_argument
    flag("run", type=Path, metavar="RUN", help="run folder or checkpoint")
    flag("out", type=Path, metavar="OUT", help="folder to create")
    flag("--overwrite", action="store_true", help="replace OUT, except its README.md")
    return parser.parse_args()


def main() -> None:
    """Writes the folder and says how large it is."""
    args = parse_args()
    out = release(args.run, args.out, overwrite=args.overwrite)
    size = sum(path.stat().st_size for path in out.iterdir()) / 1e6
    utils.say(f"wrote {out}, {size:.1f} MB; try: python sample.py --resume {out}")


if __name__ == "__main__":
    utils.run_cli(main)
