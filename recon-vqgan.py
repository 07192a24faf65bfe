"""Reconstruct images with a VQ-GAN: originals left, reconstructions right, and scores."""

import argparse
from pathlib import Path

from tqdm import tqdm

import utils
from sundae.codec.vqgan import load_vqgan
from sundae.common.errors import UserError
from sundae.common.files import make_folder
from sundae.common.fitting import FITS
from sundae.common.images import list_images, save_grid
from sundae.config.flags import add_flags
from sundae.config.sections import VQGANConfig
from sundae.evaluation.reconstruction import reconstruct, side_by_side


def positive(text: str) -> int:
    """argparse type: an integer of at least 1."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text}")
    return int(text)


def parse_args() -> argparse.Namespace:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__)
    flag = parser.add_argument
    flag("images", type=Path, metavar="IMG_OR_DIR", help="an image or a folder")
    flag("--ckpt-path", type=Path, required=True, metavar="FILE", help="checkpoint of the VQ-GAN")
    flag("--cfg-path", type=Path, metavar="FILE", help="YAML or JSON of the VQ-GAN")
    flag("--out", type=Path, default=Path("recon.png"), help="image to write (default: recon.png)")
    flag("--overwrite", action="store_true", help="replace the image")
    flag("--size", type=positive, metavar="N", help="scale the shorter side to N pixels first")
    flag(
        "--fit",
        choices=FITS,
        default="resize",
        help="treatment of sides that are no multiple of the patch size (default: resize)",
    )
    flag("--rows", type=positive, default=8, help="pairs to show (default: 8)")
    flag("--batch-size", type=positive, default=8, help="images at once (default: 8)")
    add_flags(parser, VQGANConfig, "input_range", "distance")
    utils.add_common_flags(parser, "--seed", "--no-cuda", "--precision", "--legacy-cfg", "--quiet")
    return parser.parse_args()


def main() -> None:
    """Reconstructs, writes the image and prints the scores."""
    args = parse_args()
    utils.seed_everything(args.seed)
    if args.out.exists() and not args.overwrite:
        raise UserError(f"{args.out} exists; choose another --out or pass --overwrite")
    make_folder(args.out.parent)
    paths = [args.images] if args.images.is_file() else list_images(args.images)
    codec = load_vqgan(
        args.ckpt_path,
        args.cfg_path,
        input_range=args.input_range,
        distance=args.distance,
        precision=args.precision,
    ).to(utils.choose_device(args.no_cuda, args.quiet))
    report = reconstruct(
        codec,
        tqdm(paths, unit="img", disable=True if args.quiet else None),
        size=args.size,
        fit=args.fit,
        batch_size=args.batch_size,
        max_pairs=args.rows,
    )
    save_grid(side_by_side(report.pairs), args.out, columns=2)
    utils.say(str(report))
    for error in report.unreadable:
        utils.say(f"skipped {error}")
    if not args.quiet:
        utils.say(
            f"wrote {args.out}: originals left, reconstructions right, "
            f"{len(report.pairs)} of {report.num_images} images"
        )


if __name__ == "__main__":
    utils.run_cli(main)
