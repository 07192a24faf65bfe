"""Sample images from a trained prior: python sample.py [--resume exp/digits_...]"""

import argparse
from pathlib import Path

from sundae.common.errors import UserError
from sundae.common.locking import output_folder
from sundae.sampling.canvas import parse_canvas
from sundae.sampling.output import prepare_out_dir, write_samples
from sundae.sampling.sampler import BaseSampler
from utils import (
    add_common_flags,
    add_sampling_flags,
    choose_device,
    run_cli,
    sampler_options,
    say,
    seed_everything,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_common_flags(parser)
    flag = parser.add_argument
    flag("--nb-samples", type=int, metavar="N", help="number of images")
    flag("--batch-size", type=int, default=64, metavar="N", help="samples at a time (default: 64)")
    add_sampling_flags(parser)
    flag("--class", dest="classes", action="append", metavar="NAME", help="a class by name or "
         "number, repeatable; by default all classes in turn")  # fmt: skip
    flag("--canvas", metavar="HxW", help="sample a larger grid than the network was trained on, by "
         "overlapping windows: in tokens (32x64) or pixels (1024x2048px)")  # fmt: skip
    flag("--out-dir", type=Path, metavar="DIR", help="folder (default: samples/NAME_TIME)")
    flag("--count-offset", type=int, default=0, metavar="N", help="number of the first sample: "
         "with the same seed, several calls divide one long run")  # fmt: skip
    flag("--overwrite", action="store_true", help="replace files of the same names")
    flag("--no-tqdm", action="store_true", help="no progress bar")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.batch_size < 1 or args.count_offset < 0:
        raise UserError("--batch-size must be at least 1 and --count-offset at least 0")
    device = choose_device(args.no_cuda, quiet=True)
    sampler = BaseSampler.from_pretrained(**sampler_options(args, device))
    count, offset = sampler.cfg.sampling.nb_samples, args.count_offset
    canvas = parse_canvas(args.canvas, sampler.codec.factor) if args.canvas else sampler.grid
    if canvas == sampler.grid:
        sampler.compile_for(count, args.batch_size)
    seed = seed_everything(args.seed)
    states = sampler.refine(count, classes=args.classes, seed=seed, first=offset,
                            batch_size=args.batch_size, canvas=canvas)  # fmt: skip
    numbers = range(offset, offset + count)  # other processes may fill in the others
    name = sampler.cfg.trainer.exp_name
    with output_folder(args.out_dir, Path("samples"), name, numbers) as out_dir:
        prepare_out_dir(out_dir, count, offset, overwrite=args.overwrite)
        choose_device(args.no_cuda, args.quiet)  # says that there is no GPU, after all refusals
        bar = not (args.quiet or args.no_tqdm)
        grid = write_samples(states, out_dir, count, offset=offset, progress=bar)
    say(f"{count} samples in {out_dir}, the grid in {grid} (step {sampler.step}, seed {seed}, "
        f"strategy {sampler.cfg.sampling.resolved_strategy})")  # fmt: skip


if __name__ == "__main__":
    run_cli(main)
