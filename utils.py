"""What every script needs: flags they share, the device, seeding, printing, and how they end."""

import argparse
import functools
import os
import random
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sundae.common.errors import UserError
from sundae.common.naming import printable
from sundae.common.precision import PRECISIONS
from sundae.config.flags import add_flags, values_of
from sundae.config.sections import SamplingConfig, TrainerConfig, WandbConfig


def run_cli(main: Callable[[], None]) -> None:
    """Run a script's `main` and end as a shell expects.

    A UserError, or running out of memory, becomes one printable line on stderr and exit code 2,
    Ctrl-C one line and 130; a reader that went away (`| head`) ends the script quietly with 141.
    Other exceptions are raised with their traceback.
    """
    try:
        main()
        sys.stdout.flush()
    except UserError as error:
        line = str(error).strip().replace("\n", " ")
        print(f"error: {printable(line)}", file=sys.stderr)
        sys.exit(2)
    except (torch.OutOfMemoryError, MemoryError) as error:
        print(
            f"error: out of memory ({str(error).splitlines()[0][:80]}); lower "
            "--batch-size, --nb-samples or trainer.mini_batch_size",
            file=sys.stderr,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # Python flushes stdout once more on its way out; that must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def say(line: str) -> None:
    """Print a line whose names may come from files: see `sundae.common.naming.printable`."""
    print(printable(line), flush=True)


def choose_device(no_cuda: bool, quiet: bool = False) -> torch.device:
    """CUDA where there is some and `no_cuda` is false, else the CPU, with one line about it."""
    if no_cuda:
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    if not quiet:
        _say_once("no CUDA device found; running on the CPU")
    return torch.device("cpu")


@functools.cache
def _say_once(message: str) -> None:
    print(message, file=sys.stderr)


def seed_everything(seed: int | None) -> int:
    """Seed Python, NumPy and PyTorch on all devices; returns the seed, drawn when None."""
    if seed is None:
        seed = random.SystemRandom().randrange(2**32)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return seed


def seed_number(text: str) -> int:
    """argparse type of --seed: what NumPy and PyTorch both accept."""
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"expected an integer from 0 to {2**32 - 1}, got {text}")
    return int(text)


_COMMON_FLAGS: dict[str, dict[str, Any]] = {
    "--cfg-path": {"metavar": "FILE", "help": "run file (TOML)"},
    "--seed": {
        "type": seed_number,
        "metavar": "N",
        "help": "seed of all randomness; the same seed gives the same result",
    },
    "--no-cuda": {"action": "store_true", "help": "run on the CPU even where there is a GPU"},
    "--precision": {
        "choices": PRECISIONS,
        "default": "auto",
        "help": "bf16, fp32, or auto: bf16 where the hardware has it",
    },
    "--legacy-cfg": {
        "action": "store_true",
        "help": "accepted for old command lines; has no effect",
    },
    "--quiet": {"action": "store_true", "help": "print results and errors only"},
    "--set": {
        "action": "append",
        "default": [],
        "dest": "overrides",
        "metavar": "KEY=VALUE",
        "help": "override a key of the run file, such as net.dim=512; may be repeated",
    },
}


def add_common_flags(parser: argparse.ArgumentParser, *flags: str, **changes: Any) -> None:
    """Add flags that mean the same in every script, all of them when none is named.

    Args:
        flags: among --cfg-path --seed --no-cuda --precision --legacy-cfg --quiet --set.
        changes: argparse settings for the named flags, such as required=True.
    """
    for flag in flags or _COMMON_FLAGS:
        parser.add_argument(flag, **_COMMON_FLAGS[flag] | changes)
        if flag == "--precision":
            parser.add_argument("--no-amp", action="store_const", const="fp32", dest="precision",
                                help="the same as --precision fp32")  # fmt: skip


def add_sampling_flags(parser: argparse.ArgumentParser, *, resume: bool = True) -> None:
    """Add the flags of a sampler, and one for every key of [sampling] but nb_samples.

    Args:
        resume: With --resume; else the script sets `args.resume` by itself.
    """
    flag = parser.add_argument
    if resume:
        flag("--resume", type=Path, metavar="PATH", help="run folder (its best checkpoint) or "
             "checkpoint (default: the bundled emoji model)")  # fmt: skip
    flag("--raw-weights", action="store_true", help="the weights, not their moving average")
    flag("--cuda-vqgan", action="store_true", help="encode and decode on the GPU")
    group = parser.add_argument_group(
        "how to sample",
        "keys of [sampling], by default as in the run file; in brackets the default of such a key",
    )
    keys = [field.name for field in fields(SamplingConfig) if field.name != "nb_samples"]
    add_flags(group, SamplingConfig, *keys)


def sampler_options(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """What `Sampler.from_pretrained` takes of the flags of a script that samples."""
    return {
        "path": args.resume,
        "run_file": args.cfg_path,
        "overrides": args.overrides,
        "flags": values_of(args, SamplingConfig),  # also a script's --nb-samples
        "ema": not args.raw_weights,
        "device": device,
        "codec_device": device if args.cuda_vqgan else "cpu",
        "precision": args.precision,
        "quiet": args.quiet,
    }


def add_training_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that every training script has."""
    flag = parser.add_argument
    flag("--resume", type=Path, metavar="PATH", help="run folder or checkpoint to continue from")
    flag(
        "--run-dir",
        type=Path,
        metavar="DIR",
        help="folder of this run (default: exp_dir/exp_name_TIME)",
    )
    flag("--no-save", action="store_true", help="write nothing: no checkpoints, curves or images")
    parser.set_defaults(precision=None)  # the run file's
    add_flags(parser, TrainerConfig, "nb_workers")
    flag("--wandb", action="store_true", help="log to Weights & Biases")
    add_flags(parser, WandbConfig, "project", "entity")
    flag("--wandb-offline", action="store_true", help="as --wandb, but with the log on disk only")


def training_flags(args: argparse.Namespace, section: str) -> dict[str, Any]:
    """Dotted keys of the run file that the flags of `add_training_flags` set, None where not given.

    Args:
        section: of the training loop, "trainer" or "training".
    """
    precision = args.precision
    loop = {
        "nb_workers": args.nb_workers,
        "precision": precision,
        "use_amp": None if precision is None else precision != "fp32",
        "use_cuda": False if args.no_cuda else None,
        "save_outputs": False if args.no_save else None,
    }
    return {f"{section}.{name}": value for name, value in loop.items()} | {
        **values_of(args, WandbConfig, "project", "entity"),
        "wandb.mode": "offline" if args.wandb_offline else None,
    }
