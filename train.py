"""Train a discrete image prior: python train.py --cfg-path config/digits/demo.toml"""

import argparse
import sys

from sundae.codec.interface import open_codec
from sundae.common.errors import UserError
from sundae.config.run_file import RunConfig, load_config, parse_config
from sundae.prior.checkpoint import Checkpoint, open_checkpoint
from sundae.sampling.grids import SampleGrids
from sundae.training.experiment import check_run, run_training
from sundae.training.prior import PriorExperiment
from utils import add_common_flags, add_training_flags, choose_device, run_cli, training_flags


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_common_flags(parser)
    add_training_flags(parser)
    flag = parser.add_argument
    flag("--cuda-vqgan", action="store_true", help="decode samples on the GPU")
    flag("--mnist", action="store_true", help="accepted for old command lines; pixel tokens are "
         "recognised by a run file without [vqgan]")  # fmt: skip
    return parser.parse_args()


def read_config(args: argparse.Namespace, checkpoint: Checkpoint | None) -> RunConfig:
    """The run file, or the one in the checkpoint; flags win."""
    flags = training_flags(args, "trainer")
    if args.cfg_path is not None:
        return load_config(args.cfg_path, args.overrides, flags)
    if checkpoint is None:
        raise UserError("nothing to train: give --cfg-path FILE, or --resume RUN to go on")
    values = checkpoint.info.config
    return parse_config(values, str(checkpoint.folder), args.overrides, flags)


def main() -> None:
    args = parse_args()
    checkpoint = open_checkpoint(args.resume, prefer_best=False) if args.resume else None
    cfg = read_config(args, checkpoint)
    wandb = args.wandb or args.wandb_offline
    check_run(cfg.trainer, args.run_dir, checkpoint, wandb=wandb)
    codec = open_codec(cfg)
    experiment = PriorExperiment.open(cfg, codec.identity, checkpoint)
    device = choose_device(not cfg.trainer.use_cuda, args.quiet)
    codec.to(device if args.cuda_vqgan else "cpu")
    trainer = run_training(
        experiment,
        device=device,
        run_dir=args.run_dir,
        checkpoint=checkpoint,
        seed=args.seed,
        wandb=wandb,
        quiet=args.quiet,
        on_evaluation=[SampleGrids(cfg, codec)],
    )
    if trainer.stopped_by:
        sys.exit(128 + trainer.stopped_by)


if __name__ == "__main__":
    run_cli(main)
