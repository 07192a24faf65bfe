"""What a step of train-vqgan.py holds in memory, discriminator and perceptual loss included.

    python benchmarks/vqgan_memory.py config/vqgan/ffhq1024.yaml

One optimiser step on random images with random weights, which take as much memory as trained
ones; so nothing has to be downloaded for LPIPS. On a CPU the peak is that of the whole process less
what it held before the networks were built.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import utils
from benchmarks.measuring import machine, memory
from sundae.codec_training.config import load_codec_config
from sundae.codec_training.perceptual import (
    EfficientNetDistance,
    FeatureDistance,
    LPIPSDistance,
    Nothing,
)
from sundae.codec_training.task import CodecTask, build_training
from sundae.common.precision import autocast
from sundae.features.efficientnet import EfficientNetLite0
from sundae.features.lpips import LPIPS
from sundae.training.ema import EMA
from sundae.training.optimizers import make_optimizer


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path, metavar="YAML", help="run file of a codec")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    utils.add_common_flags(parser, "--no-cuda", "--set")
    return parser.parse_args()


def random_perceptual(name: str) -> FeatureDistance:
    """The network of a perceptual loss with random weights."""
    if name == "lpips":
        return LPIPSDistance(LPIPS("vgg16"))
    return EfficientNetDistance(EfficientNetLite0()) if name != "none" else Nothing()


def main() -> None:
    args = parse_args()
    device = utils.choose_device(args.no_cuda)
    cfg = load_codec_config(args.config, [*args.overrides, "training.disc_start=0"])
    training, before = cfg.training, memory(device.type, peak=False)
    rows = (training.mini_batch_size or training.batch_size) * training.crops
    net = build_training(cfg).to(device).train()
    ema = EMA(net, training.ema_decay)
    optimizer = make_optimizer(net, training, device)
    perceptual = random_perceptual(training.perceptual).eval().requires_grad_(False).to(device)
    task = CodecTask(cfg, perceptual)
    images = torch.rand(rows, 3, training.size, training.size, device=device)
    start = time.perf_counter()
    losses = task.losses(net, {"images": images}, torch.Generator(device).manual_seed(0))
    for _ in range(task.num_losses):
        with autocast(device, training.arithmetic):
            loss, _ = next(losses)
        loss.backward()
    activations = memory(device.type, peak=True)
    optimizer.step()
    ema.update(net)
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start  # of a first step, with all that is done once
    parameters = sum(p.numel() for p in net.parameters())
    figures = {
        "config": args.config.name,
        "pixels": training.size,
        "rows": rows,
        "gradient_checkpointing": training.gradient_checkpointing,
        "perceptual": training.perceptual,
        "parameters": parameters,
        "seconds": seconds,
        "after_backward_gb": (activations - before) / 1e9,
        "peak_gb": (memory(device.type, peak=True) - before) / 1e9,
        **machine(device.type),
    }
    for name, value in figures.items():
        print(f"{name:24} {value:.2f}" if isinstance(value, float) else f"{name:24} {value}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    utils.run_cli(main)
