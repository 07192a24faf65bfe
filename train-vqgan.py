"""Train a VQ-GAN from pictures: python train-vqgan.py --cfg-path FILE.yaml --dataset-in DIR"""

import argparse
import sys
from pathlib import Path

from accelerate import Accelerator

from sundae.codec_training.config import (
    CodecRunConfig,
    dump_yaml,
    load_codec_config,
    parse_codec_config,
)
from sundae.codec_training.dataset import ImageDataset, open_pictures
from sundae.codec_training.export import Exports
from sundae.codec_training.perceptual import FeatureDistance, load_perceptual
from sundae.codec_training.task import CodecTask, ReconstructionPictures, build_training
from sundae.common.compiling import compile_modules
from sundae.common.errors import UserError
from sundae.common.files import make_folder, write_text
from sundae.prior.checkpoint import Checkpoint, open_checkpoint
from sundae.training.callbacks import CallbackType
from sundae.training.logbook import Logbook, check_wandb, start_wandb
from sundae.training.optimizers import split_batch
from sundae.training.run_folder import agreed, check_run_folder, run_folder
from sundae.training.trainer import Trainer
from utils import (
    add_common_flags,
    add_training_flags,
    choose_device,
    explicit,
    run_cli,
    say,
    seed_everything,
    training_flags,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_common_flags(parser, "--cfg-path", help="run file (YAML)", metavar="FILE")
    add_common_flags(parser, "--seed", "--no-cuda", "--precision", "--quiet", "--set")
    parser.add_argument(
        "--dataset-in", type=Path, required=True, metavar="DIR", help="folder of pictures"
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
    training = cfg.training
    args.wandb |= args.wandb_offline
    if args.wandb:
        check_wandb(training.save_outputs)
    train_data, eval_data = open_pictures(
        args.dataset_in,
        size=training.size,
        load_size=training.load_size,
        eval_fraction=training.eval_fraction,
        cache=training.cache,
    )
    perceptual = load_perceptual(training.perceptual)
    check_run_folder(cfg, args.run_dir, checkpoint)  # once more after the slow part

    device = choose_device(not training.use_cuda, args.quiet)
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="no")
    with run_folder(cfg, args.run_dir, checkpoint, accelerator) as run:
        train(args, cfg, checkpoint, perceptual, (train_data, eval_data), accelerator, run)


def train(
    args: argparse.Namespace,
    cfg: CodecRunConfig,
    checkpoint: Checkpoint | None,
    perceptual: FeatureDistance,
    data: tuple[ImageDataset, ImageDataset],
    accelerator: Accelerator,
    run: Path | None,
) -> None:
    """Train from the checkpoint, or from the start, and say how it ended."""
    train_data, eval_data = data
    training = cfg.training
    device, quiet = accelerator.device, args.quiet or not accelerator.is_main_process
    seed = seed_everything(explicit(args.seed, checkpoint.info.seed if checkpoint else None))
    (seed,) = agreed(seed)  # processes may have drawn different ones
    seed_everything(seed)
    _, accumulate = split_batch(training, accelerator.num_processes)
    net = build_training(cfg, accumulate)
    task = CodecTask(cfg, perceptual.to(device), accumulate)
    trainer = Trainer(
        cfg,
        task,
        net,
        train_data,
        eval_data,
        accelerator=accelerator,
        run=run,
        logbook=Logbook(run),
        seed=seed,
        kind="vqgan",
        quiet=quiet,
    )
    if explicit(training.compile, device.type == "cuda"):
        compile_modules(*net.compilable(), task.perceptual, quiet=quiet)
    if checkpoint is not None:
        trainer.resume(checkpoint)
    if run is not None and accelerator.is_main_process:  # nothing is written before this
        write_text(make_folder(run) / "config.yaml", dump_yaml(cfg))
        if args.wandb:
            trainer.logbook.wandb_run = start_wandb(cfg.wandb, run, cfg.to_dict())
    trainer.callbacks.register(CallbackType.EvalEpoch, ReconstructionPictures(cfg, eval_data))
    trainer.callbacks.register(CallbackType.SaveCheckpoint, Exports(cfg))
    if not quiet:
        parameters = sum(p.numel() for p in net.vqgan.parameters())
        say(f"{parameters:,} parameters, perceptual loss {training.perceptual}, "
            f"{len(train_data):,} training and {len(eval_data):,} held-out pictures, "
            f"seed {seed}, on {device}, into {run}")  # fmt: skip
    trainer.train()
    accelerator.end_training()  # threads of a process group left open can abort what exits
    if accelerator.is_main_process:
        how = "stopped" if trainer.stopped_by else "done"
        say(f"{how} at step {trainer.step}: {run or 'not saved'}")
    if trainer.stopped_by:
        sys.exit(128 + trainer.stopped_by)


if __name__ == "__main__":
    run_cli(main)
