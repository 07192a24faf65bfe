"""Repaint pictures with a trained prior: holes, what lies beyond their borders, or variations.

Each picture is scaled until it just covers what the prior was trained on, and its centre is cut
out; a mask goes the same way. --canvas and --whole keep more of a picture, by more windows.
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from sundae.codec.interface import ChunkedCodec
from sundae.common.compiling import should_compile
from sundae.common.errors import UserError
from sundae.common.locking import output_folder
from sundae.editing.files import (
    name_pictures,
    open_task,
    prepare_answers,
    read_wish,
    readable,
    repaint,
    write_answers,
)
from sundae.editing.masks import MASK_SIZES
from sundae.sampling.canvas import check_canvas, parse_canvas
from sundae.sampling.opening import chosen_classes, open_to_sample
from sundae.sampling.prior import Prior, sample_seeds
from utils import add_common_flags, add_sampling_flags, choose_device, run_cli, say, seed_everything


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_flags(parser)
    flag = parser.add_argument
    flag("images", type=Path, metavar="IMG_OR_DIR", help="a picture, or a folder of pictures")
    flag(
        "--resume",
        type=Path,
        metavar="PATH",
        help="run folder (its best checkpoint) or checkpoint; the shipped emoji model unless given",
    )
    flag("--nb-inpaint", type=int, default=8, metavar="N", help="pictures of a folder, the first "
         "in natural order (8)")  # fmt: skip
    flag("--nb-samples", type=int, default=4, metavar="N", help="answers a picture (4)")
    flag("--batch-size", type=int, default=16, metavar="N", help="answers at a time (16)")
    flag("--out-dir", type=Path, metavar="DIR", help="a folder of PNGs and a grid for each picture "
         "go there (inpainted/NAME_TIME)")  # fmt: skip
    flag("--overwrite", action="store_true", help="replace files of the same names")
    flag("--class", dest="classes", action="append", metavar="NAME", help="a class by name or "
         "number, repeatable; any unless given, or all in turn where none means any")  # fmt: skip
    flag("--canvas", metavar="HxW", help="scale and cut each picture to this instead, in tokens "
         "(32x64) or pixels (1024x2048px)")  # fmt: skip
    flag("--whole", action="store_true", help="keep all of each picture, on a canvas of its "
         "proportions")  # fmt: skip

    what = parser.add_argument_group(
        "what to repaint (one of these; the classic hole unless given)"
    )
    what.add_argument("--inpaint-strategy", metavar="KIND", help="a hole: " + ", ".join(MASK_SIZES))
    what.add_argument("--mask", type=Path, metavar="FILE", help="your own hole: white (grey 128 of "
                      "255 or lighter) is repainted; a mask is stretched to the picture's size, "
                      "and each pixel that white touches is hidden")  # fmt: skip
    what.add_argument("--outpaint", metavar="LEFT,RIGHT,TOP,BOTTOM", help="pixels to add at each "
                      "side, after the picture was scaled: 0,128,0,0")  # fmt: skip
    what.add_argument("--image-to-image", type=float, metavar="STRENGTH", help="start from the "
                      "picture with this fraction of its tokens drawn anew, 0 to 1")  # fmt: skip
    what.add_argument("--no-composite", action="store_true", help="show what was decoded, without "
                      "putting the known pixels back")  # fmt: skip
    what.add_argument("--feather", type=int, metavar="N", help="pixels within the hole that are "
                      "toned to meet its edge (half a patch)")  # fmt: skip
    for kind, sizes in MASK_SIZES.items():
        group = parser.add_argument_group(f"sizes of --inpaint-strategy {kind}")
        for name, (number, meaning) in sizes.items():
            group.add_argument(f"--{kind}-{name}", type=number, metavar="N", help=meaning)
    add_sampling_flags(parser)
    flag("--raw-weights", action="store_true", help="not their moving average")
    flag("--cuda-vqgan", action="store_true", help="encode and decode on the GPU")
    flag("--no-tqdm", action="store_true", help="no progress bar")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if min(args.nb_inpaint, args.nb_samples, args.batch_size) < 1 or (args.feather or 0) < 0:
        raise UserError("--nb-inpaint, --nb-samples and --batch-size must be at least 1, "
                        "--feather at least 0")  # fmt: skip
    wish = read_wish(args)
    pictures = name_pictures(args.images, args.nb_inpaint)
    checkpoint, cfg, codec = open_to_sample(args)
    count = args.nb_samples
    guided = cfg.sampling.guidance_ramp != (1, 1)
    classes = chosen_classes(args.classes, checkpoint, count, any_unless_named=True, guided=guided)
    codec = ChunkedCodec(codec)
    grid = parse_canvas(args.canvas, codec.factor) if args.canvas else cfg.grid_shape
    check_canvas(grid, cfg.grid_shape)
    net = checkpoint.load_network(ema=not args.raw_weights)
    read = partial(open_task, wish=wish, grid=grid, factor=codec.factor, whole=args.whole)
    pictures, unreadable = readable(pictures, read)
    with output_folder(args.out_dir, Path("inpainted"), cfg.trainer.exp_name) as out_dir:
        prepare_answers(out_dir, list(pictures), count, overwrite=args.overwrite)
        seed, quiet = seed_everything(args.seed), args.quiet or args.no_tqdm
        device, schedule = choose_device(args.no_cuda, args.quiet), cfg.sampling
        plain = grid == cfg.grid_shape and not args.whole and args.outpaint is None
        steps = schedule.steps * len(pictures) * -(-count // args.batch_size) if plain else 0
        compiled = should_compile(cfg.sampling.compile, device, steps)
        amp = args.precision != "fp32"
        prior = Prior(net.to(device), cfg, device, use_amp=amp, owns_net=True, compiled=compiled,
                      quiet=args.quiet)  # fmt: skip
        codec = codec.to(device if args.cuda_vqgan else "cpu")
        done = tqdm(pictures.items(), unit="picture", disable=True if quiet else None)
        for number, (name, path) in enumerate(done):
            seeds = sample_seeds(seed, count, number * count)
            task = read(path, torch.Generator().manual_seed(int(seeds[0])))
            answers = repaint(
                task,
                wish,
                prior,
                codec,
                seeds=seeds,
                classes=classes,
                schedule=schedule,
                batch_size=args.batch_size,
                composite=not args.no_composite,
                feather=args.feather,
                watch=lambda state: done.set_postfix(step=state.step, running=state.num_running),
            )
            write_answers(out_dir / name, answers, task, codec)
    for error in unreadable:
        say(f"skipped {error}")
    say(f"{count} answers to each of {len(pictures)} pictures in {out_dir} "
        f"(step {checkpoint.info.step}, seed {seed}, "
        f"strategy {schedule.resolved_strategy})")  # fmt: skip


if __name__ == "__main__":
    run_cli(main)
