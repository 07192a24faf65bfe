"""Encode a folder of images with a VQ-GAN; a second call continues where the first was stopped."""

import argparse
import re
import time
from pathlib import Path
from typing import Never

from tqdm import tqdm

import utils
from sundae.codec.encoding import generate_latents
from sundae.codec.vqgan import load_vqgan
from sundae.config.flags import add_flags
from sundae.config.sections import VQGANConfig
from sundae.data.format import SKIPPED_NAME


def size_in_pixels(text: str) -> tuple[int, int]:
    """argparse type of --size: "256" or "256x512", height first."""
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if not match:
        raise argparse.ArgumentTypeError(f"expected 256 or 256x512 (height x width), got {text}")
    return int(match[1]), int(match[2] or match[1])


def parse_args() -> argparse.Namespace:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__)
    flag = parser.add_argument
    flag("--cfg-path", type=Path, metavar="FILE", help="YAML of the VQ-GAN")
    flag("--ckpt-path", type=Path, required=True, metavar="FILE", help="checkpoint of the VQ-GAN")
    flag("--dataset-in", type=Path, required=True, metavar="DIR", help="folder of images")
    flag("--latents-out", type=Path, required=True, metavar="DIR", help="folder to create")
    flag(
        "--size",
        type=size_in_pixels,
        help="256 or 256x512 (height x width); default: what the VQ-GAN was trained for",
    )
    flag("--batch-size", type=int, default=32, metavar="N", help="images at once (default: 32)")
    flag(
        "--nb-workers",
        type=int,
        default=0,
        metavar="N",
        help="processes that read images (default: 0)",
    )
    flag("--no-aug", action="store_true", help="leave out the mirror images")
    flag("--use-class", action="store_true", help="one class a sub-folder")
    flag("--strict", action="store_true", help="stop at an unreadable image")
    flag("--overwrite", action="store_true", help="start afresh and drop what --latents-out holds")
    add_flags(parser, VQGANConfig, "input_range", "distance")
    flag(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="torch.compile the encoder, whose first batch then takes long (default: on a GPU)",
    )
    flag("--no-tqdm", action="store_true", help="no progress bar")
    utils.add_common_flags(parser, "--seed", "--no-cuda", "--precision", "--legacy-cfg", "--quiet")
    return parser.parse_args()


def show_on(bar: "tqdm[Never]", done: int, total: int) -> None:
    """Moves a progress bar, counting the rate only from where this run starts."""
    if bar.total is None:
        bar.total, bar.initial, bar.n = total, done, done
    bar.update(done - bar.n)


def main() -> None:
    """Encodes the folder and says where the latents are."""
    args = parse_args()
    utils.seed_everything(args.seed)
    device = utils.choose_device(args.no_cuda, args.quiet)
    codec = load_vqgan(
        args.ckpt_path,
        args.cfg_path,
        input_range=args.input_range,
        distance=args.distance,
        precision=args.precision,
    ).to(device)
    if device.type == "cuda" if args.compile is None else args.compile:
        codec.compile(quiet=args.quiet)
    start = time.perf_counter()
    with tqdm(unit="img", disable=True if args.no_tqdm or args.quiet else None) as bar:
        report = generate_latents(
            codec,
            args.dataset_in,
            args.latents_out,
            size=args.size,
            batch_size=args.batch_size,
            num_workers=args.nb_workers,
            mirror=not args.no_aug,
            use_class=args.use_class,
            strict=args.strict,
            overwrite=args.overwrite,
            device=device,
            progress=lambda done, total: show_on(bar, done, total),
        )
    if args.quiet:
        return
    rate = (report.num_images - report.already_done) / (time.perf_counter() - start)
    listed = f" (see {args.latents_out / SKIPPED_NAME})" if report.skipped else ""
    utils.say(
        f"wrote {args.latents_out}: {report.num_images} images, {report.rows} rows, "
        f"{len(report.skipped)} skipped{listed}, {rate:.1f} images/s"
    )


if __name__ == "__main__":
    utils.run_cli(main)
