"""What fits my GPU, and how long will it take?

    python plan.py config/ffhq256.toml --gpu rtx4090
    python plan.py config/ffhq1024.toml --gpu h100 --gpus 8 --images 140000
    python plan.py config/ffhq256.toml --memory 12 --tflops 58 --bandwidth 500

Parameters, FLOPs and memory are counted, no GPU is needed. Times are the FLOPs over what a card was
measured to sustain; where nothing was measured a share of the vendor's peak is assumed, and the
output says so.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sundae.common.errors import UserError
from sundae.common.files import write_text
from sundae.config.run_file import load_config
from sundae.evaluation.plan import CARDS, Plan, choose_card, read_efficiency, same_card
from sundae.evaluation.plan_text import describe
from utils import add_common_flags, run_cli

MEASURED = Path(__file__).with_name("benchmarks") / "efficiency.json"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flag = parser.add_argument
    flag("run_file", type=Path, metavar="FILE", help="run file (TOML)")
    flag("--gpu", metavar="NAME", help=f"one of {', '.join(CARDS)}")
    flag("--gpus", type=int, default=1, metavar="N", help="GPUs that train together (default: 1)")
    flag("--memory", type=float, metavar="GB", help="of the card, where the table has another")
    flag("--tflops", type=float, metavar="X", help="dense bf16 peak, where the table has another")
    flag("--bandwidth", type=float, metavar="GB/S", help="of its memory")
    flag("--images", type=int, metavar="N", help="images per epoch")
    flag("--efficiency", type=Path, metavar="FILE", help="measured on this card: what speed.py "
         "--json wrote, or a file like benchmarks/efficiency.json")  # fmt: skip
    flag("--json", type=Path, metavar="FILE", help="write all numbers there, too")
    add_common_flags(parser, "--set")
    args = parser.parse_args()
    for name in ("gpus", "memory", "tflops", "bandwidth", "images"):
        value = getattr(args, name)
        if value is not None and not value > 0:
            raise UserError(f"--{name} {value:g}: expected a number above 0")
    return args


def main() -> None:
    args = parse_args()
    cfg = load_config(args.run_file, args.overrides)
    measured, gpu = read_efficiency(MEASURED), args.gpu
    if args.efficiency:
        own = read_efficiency(args.efficiency)
        if gpu is None and len(own) == 1:
            (gpu,) = own
            gpu = next((key for key in CARDS if same_card(key, gpu)), gpu)
        measured |= own
    name, card = choose_card(gpu, measured, args.memory, args.tflops, args.bandwidth)
    if args.efficiency and name and not any(same_card(name, device) for device in own):
        raise UserError(f"--efficiency {args.efficiency}: measured on {', '.join(own)}, not on "
                        f"{name}; leave it out, or name that card")  # fmt: skip
    plan = Plan(cfg, card, name=name, gpus=args.gpus, images=args.images, measured=measured)
    print(describe(plan, str(args.run_file)))
    if args.json:
        write_text(args.json, plan.to_json())


if __name__ == "__main__":
    run_cli(main)
