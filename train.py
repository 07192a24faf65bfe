"""Train a discrete image prior: python train.py --cfg-path config/digits/demo.toml"""

import argparse
import sys
from pathlib import Path

from accelerate import Accelerator

from sundae.codec.interface import Codec, open_codec
from sundae.common.compiling import compile_modules
from sundae.common.errors import UserError
from sundae.config.run_file import RunConfig, load_config, parse_config, update_config
from sundae.data.dataset import TokenDataset
from sundae.prior.checkpoint import Checkpoint, open_checkpoint
from sundae.prior.compatibility import check_same_classes, check_same_codec, check_same_network
from sundae.prior.network import build_network
from sundae.sampling.grids import SampleGrids
from sundae.training.callbacks import CallbackType
from sundae.training.data import learned_classes, open_datasets
from sundae.training.logbook import Logbook, check_wandb, start_wandb
from sundae.training.run_folder import agreed, check_run_folder, keep_run_file, run_folder
from sundae.training.task import PriorTask
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
    add_common_flags(parser)
    flag = parser.add_argument
    add_training_flags(parser)
    flag("--cuda-vqgan", action="store_true", help="decode samples on the GPU")
    flag("--mnist", action="store_true", help="accepted for old command lines; pixel tokens are "
         "recognised by a run file without [vqgan]")  # fmt: skip
    args = parser.parse_args()
    args.wandb |= args.wandb_offline
    return args


def read_config(args: argparse.Namespace, checkpoint: Checkpoint | None) -> RunConfig:
    """The run file, or the one in the checkpoint; flags win."""
    if args.cfg_path is not None:
        cfg = load_config(args.cfg_path, args.overrides)
    elif checkpoint is not None:
        cfg = parse_config(checkpoint.info.config, str(checkpoint.folder), args.overrides)
    else:
        raise UserError("nothing to train: give --cfg-path FILE, or --resume RUN to go on")
    flags = training_flags(args, "trainer")
    return update_config(cfg, flags, str(args.cfg_path or args.resume))


def main() -> None:
    args = parse_args()
    checkpoint = open_checkpoint(args.resume, prefer_best=False) if args.resume else None
    cfg = read_config(args, checkpoint)
    if args.wandb:
        check_wandb(cfg.trainer.save_outputs)
    if checkpoint is not None:
        check_same_network(cfg, checkpoint)
    codec = open_codec(cfg)
    train_data, eval_data = open_datasets(cfg, codec.identity)
    if checkpoint is not None:
        check_same_codec(codec.identity, checkpoint)
        check_same_classes(learned_classes(cfg, train_data), checkpoint)
    check_run_folder(cfg, args.run_dir, checkpoint)  # once more after the slow part

    device = choose_device(not cfg.trainer.use_cuda, args.quiet)
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="no")
    with run_folder(cfg, args.run_dir, checkpoint, accelerator) as run:
        train(args, cfg, checkpoint, codec, (train_data, eval_data), accelerator, run)


def train(
    args: argparse.Namespace,
    cfg: RunConfig,
    checkpoint: Checkpoint | None,
    codec: Codec,
    data: tuple[TokenDataset, TokenDataset],
    accelerator: Accelerator,
    run: Path | None,
) -> None:
    """Train from the checkpoint, or from the start, and say how it ended."""
    device, quiet = accelerator.device, args.quiet or not accelerator.is_main_process
    seed = seed_everything(explicit(args.seed, checkpoint.info.seed if checkpoint else None))
    (seed,) = agreed(seed)  # processes may have drawn different ones
    seed_everything(seed)
    net = build_network(cfg)
    net.set_gradient_checkpointing(cfg.trainer.gradient_checkpointing)
    trainer = Trainer(
        cfg,
        PriorTask(cfg),
        net,
        *data,
        accelerator=accelerator,
        run=run,
        logbook=Logbook(run),
        seed=seed,
        codec_identity=codec.identity,
        classes=learned_classes(cfg, data[0]),
        quiet=quiet,
    )
    if explicit(cfg.trainer.compile, device.type == "cuda"):
        compile_modules(net, quiet=quiet)
    if checkpoint is not None:
        trainer.resume(checkpoint)
    if run is not None and accelerator.is_main_process:  # nothing is written before this
        keep_run_file(cfg, run)
        if args.wandb:
            trainer.logbook.wandb_run = start_wandb(cfg.wandb, run, cfg.to_dict())
    codec.to(device if args.cuda_vqgan else "cpu")
    trainer.callbacks.register(CallbackType.EvalEpoch, SampleGrids(cfg, codec))
    parameters = sum(p.numel() for p in net.parameters())
    if not quiet:
        place = f"into {run}" if run else "not saved"
        say(f"{parameters:,} parameters, {len(data[0]):,} training and {len(data[1]):,} "
            f"held-out grids, seed {seed}, on {device}, {place}")  # fmt: skip
    trainer.train()
    accelerator.end_training()  # threads of a process group left open can abort what exits
    if accelerator.is_main_process:
        how = "stopped" if trainer.stopped_by else "done"
        say(f"{how} at step {trainer.step}: {run or 'not saved'}")
    if trainer.stopped_by:
        sys.exit(128 + trainer.stopped_by)


if __name__ == "__main__":
    run_cli(main)
