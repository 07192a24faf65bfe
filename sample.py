"""Sample images from a trained prior: python sample.py [--resume exp/digits_...]"""

import argparse
from pathlib import Path

from sundae.codec.interface import ChunkedCodec
from sundae.common.compiling import should_compile
from sundae.common.errors import UserError
from sundae.common.locking import output_folder
from sundae.sampling.canvas import check_canvas, parse_canvas
from sundae.sampling.opening import chosen_classes, open_to_sample
from sundae.sampling.output import prepare_out_dir, write_samples
from sundae.sampling.prior import Prior, sample_seeds
from sundae.sampling.strategies import schedule_of
from utils import (
    add_common_flags,
    add_sampling_flags,
    choose_device,
    run_cli,
    say,
    seed_everything,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_common_flags(parser)
    flag = parser.add_argument
    flag(
        "--resume",
        type=Path,
        metavar="PATH",
        help="run folder (its best checkpoint) or checkpoint; the shipped emoji model unless given",
    )
    flag("--nb-samples", type=int, metavar="N", help="how many PNGs to write")
    flag("--batch-size", type=int, default=64, metavar="N", help="samples at a time (64)")
    add_sampling_flags(parser)
    flag("--class", dest="classes", action="append", metavar="NAME", help="a class by name or "
         "number, repeatable; all classes evenly unless given")  # fmt: skip
    flag("--canvas", metavar="HxW", help="sample a larger grid than the network was trained on, by "
         "overlapping windows: in tokens (32x64) or pixels (1024x2048px)")  # fmt: skip
    flag("--out-dir", type=Path, metavar="DIR", help="folder of the PNGs (samples/NAME_TIME)")
    flag("--count-offset", type=int, default=0, metavar="N", help="number of the first sample: "
         "with the same seed, several calls share out one long run")  # fmt: skip
    flag("--overwrite", action="store_true", help="replace files of the same names")
    flag("--raw-weights", action="store_true", help="not their moving average")
    flag("--cuda-vqgan", action="store_true", help="decode on the GPU")
    flag("--no-tqdm", action="store_true", help="no progress bar")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.batch_size < 1 or args.count_offset < 0:
        raise UserError("--batch-size must be at least 1 and --count-offset at least 0")
    checkpoint, cfg, codec = open_to_sample(args)
    count, offset = cfg.sampling.nb_samples, args.count_offset
    classes = chosen_classes(args.classes, checkpoint, count, offset)
    codec = ChunkedCodec(codec)
    canvas = parse_canvas(args.canvas, codec.factor) if args.canvas else cfg.grid_shape
    check_canvas(canvas, cfg.grid_shape)
    net = checkpoint.load_network(ema=not args.raw_weights)
    numbers = range(offset, offset + count)  # other processes may fill in the others
    with output_folder(args.out_dir, Path("samples"), cfg.trainer.exp_name, numbers) as out_dir:
        prepare_out_dir(out_dir, count, offset, overwrite=args.overwrite)
        seed, schedule = seed_everything(args.seed), schedule_of(cfg.sampling)
        device = choose_device(args.no_cuda, args.quiet)
        plain = canvas == cfg.grid_shape
        steps = cfg.sampling.steps * -(-count // args.batch_size) if plain else 0
        grid = write_samples(
            Prior(
                net.to(device),
                cfg,
                device,
                use_amp=args.precision != "fp32",
                canvas=canvas,
                owns_net=True,
                compiled=should_compile(cfg.sampling.compile, device, steps),
                quiet=args.quiet,
            ),
            codec.to(device if args.cuda_vqgan else "cpu"),
            out_dir,
            seeds=sample_seeds(seed, count, offset),
            classes=classes,
            schedule=schedule,
            batch_size=args.batch_size,
            offset=offset,
            progress=not (args.quiet or args.no_tqdm),
        )
    say(f"{count} samples in {out_dir}, the grid in {grid} "
        f"(step {checkpoint.info.step}, seed {seed}, strategy {schedule.strategy})")  # fmt: skip


if __name__ == "__main__":
    run_cli(main)
