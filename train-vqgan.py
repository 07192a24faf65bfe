"""Train a VQ-GAN from images: python train-vqgan.py --cfg-path FILE.yaml --dataset-in DIR"""

import argparse
import sys
from pathlib import Path

from sundae.codec_training.config import CodecRunConfig, load_codec_config, parse_codec_config
from sundae.codec_training.experiment import CodecExperiment
from sundae.common.errors import UserError
from sundae.prior.checkpoint import Checkpoint, open_checkpoint
from sundae.training.experiment import check_run, run_training
from utils import add_common_flags, add_training_flags, choose_device, run_cli, training_flags


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_common_flags(parser, "--cfg-path", help="run file (YAML)", metavar="FILE")
    add_common_flags(parser, "--seed", "--no-cuda", "--precision", "--quiet", "--set")
    parser.add_argument(
        "--dataset-in", type=Path, required=True, metavar="DIR", help="folder of images"
    )
    add_training_flags(parser)
    return parser.parse_args()


def read_config(args: argparse.Namespace, checkpoint: Checkpoint | None) -> CodecRunConfig:
    """The run file, or the one in the checkpoint; flags win."""
    flags = training_flags(args, "training")
    if args.cfg_path is not None:
        return load_codec_config(args.cfg_path, args.overrides, flags)
    if checkpoint is None:
        raise UserError("nothing to train: give --cfg-path FILE, or --resume RUN to go on")
    values = checkpoint.info.config
    return parse_codec_config(values, str(checkpoint.folder), args.overrides, flags)


def main() -> None:
    args = parse_args()
    checkpoint = args.resume and open_checkpoint(args.resume, kind="vqgan", prefer_best=False)
    cfg = read_config(args, checkpoint)
    wandb = args.wandb or args.wandb_offline
    check_run(cfg.trainer, args.run_dir, checkpoint, wandb=wandb)
    experiment = CodecExperiment(cfg, args.dataset_in)
    trainer = run_training(
        experiment,
        device=choose_device(not cfg.training.use_cuda, args.quiet),
        run_dir=args.run_dir,
        checkpoint=checkpoint,
        seed=args.seed,
        wandb=wandb,
        quiet=args.quiet,
        on_evaluation=[experiment.log_reconstructions],
        on_save=[experiment.export],
    )
    if trainer.stopped_by:
        sys.exit(128 + trainer.stopped_by)


if __name__ == "__main__":
    run_cli(main)
