"""Sample images from a trained prior: python sample.py --resume exp/digits_..."""

import argparse
from datetime import datetime
from pathlib import Path

import torch

from sundae.checkpoint import Checkpoint, open_checkpoint
from sundae.codecs import open_codec
from sundae.config import RunConfig, load_config, parse_config, with_sampling_flags
from sundae.errors import UserError
from sundae.prior import (
    Prior,
    even_classes,
    prepare_out_dir,
    sample_seeds,
    schedule_of,
    write_samples,
)
from sundae.runs import check_same_codec, check_same_network, class_number
from utils import (
    add_common_flags,
    add_sampling_flags,
    choose_device,
    explicit,
    run_cli,
    seed_everything,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_common_flags(parser)
    flag = parser.add_argument
    flag(
        "--resume", type=Path, metavar="PATH", help="run folder (its best checkpoint) or checkpoint"
    )
    flag("--nb-samples", type=int, metavar="N", help="how many PNGs to write")
    flag("--batch-size", type=int, default=64, metavar="N", help="samples at a time (64)")
    add_sampling_flags(parser)
    flag("--class", dest="classes", action="append", metavar="NAME", help="a class by name or "
         "number, repeatable; all classes evenly unless given")  # fmt: skip
    flag("--out-dir", type=Path, metavar="DIR", help="folder of the PNGs (samples/NAME_TIME)")
    flag("--count-offset", type=int, default=0, metavar="N", help="number of the first sample: "
         "with the same seed, several calls share out one long run")  # fmt: skip
    flag("--overwrite", action="store_true", help="replace files of the same names")
    flag("--raw-weights", action="store_true", help="not their moving average")
    flag("--no-amp", action="store_true", help="float32 even where bfloat16 is fast")
    flag("--cuda-vqgan", action="store_true", help="decode on the GPU")
    flag("--no-tqdm", action="store_true", help="no progress bar")
    return parser.parse_args()


def read_config(args: argparse.Namespace, checkpoint: Checkpoint) -> RunConfig:
    """The run file, or the one in the checkpoint; flags win."""
    if args.cfg_path is not None:
        cfg = load_config(args.cfg_path, args.overrides)
    else:
        cfg = parse_config(checkpoint.info.config, str(checkpoint.folder), args.overrides)
    check_same_network(cfg, checkpoint)
    return with_sampling_flags(cfg, args, str(checkpoint.folder))


def main() -> None:
    args = parse_args()
    if args.resume is None:
        raise UserError("nothing to sample from: give --resume RUN, the folder that train.py wrote")
    if args.batch_size < 1 or args.count_offset < 0:
        raise UserError("--batch-size must be at least 1 and --count-offset at least 0")
    checkpoint = open_checkpoint(args.resume)
    cfg = read_config(args, checkpoint)
    count, offset = cfg.sampling.nb_samples, args.count_offset
    if cfg.net.conditional:
        names = checkpoint.info.classes or []
        wanted = torch.tensor([class_number(name, names) for name in explicit(args.classes, names)])
        classes = wanted[even_classes(len(wanted), count, offset)]
    elif args.classes:
        raise UserError(f"--class: {checkpoint.folder} was trained without classes; leave it out")
    else:
        classes = None
    codec = open_codec(cfg)
    check_same_codec(codec.identity, checkpoint)
    net = checkpoint.load_network(ema=not args.raw_weights)
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    out_dir = args.out_dir or Path("samples") / f"{cfg.trainer.exp_name}_{stamp}"
    prepare_out_dir(out_dir, count, offset, overwrite=args.overwrite)

    seed = seed_everything(args.seed)
    device = choose_device(args.no_cuda, args.quiet)
    grid = write_samples(
        Prior(net.to(device), cfg, device, use_amp=not args.no_amp),
        codec.to(device if args.cuda_vqgan else "cpu"),
        out_dir,
        seeds=sample_seeds(seed, count, offset),
        classes=classes,
        schedule=schedule_of(cfg.sampling),
        batch_size=args.batch_size,
        offset=offset,
        progress=not (args.quiet or args.no_tqdm),
    )
    print(f"{count} samples in {out_dir}, the grid in {grid} "
          f"(step {checkpoint.info.step}, seed {seed})")  # fmt: skip


if __name__ == "__main__":
    run_cli(main)
