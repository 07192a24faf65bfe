"""Run files that benchmarks/networks.py compares, and for how long each of them is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from operator import attrgetter
from pathlib import Path

from sundae.codec.interface import open_codec
from sundae.common.errors import UserError
from sundae.config.run_file import RunConfig, load_config, update_config
from sundae.data.dataset import TokenDataset
from sundae.evaluation.cost import Cost
from sundae.training.data import open_datasets

_NEVER = 10**9
# Networks are compared on one task.
_SAME = ("unroll_steps", "data", "vqgan", "trainer.batch_size")


@dataclass(frozen=True)
class Run:
    """A network and how long it is trained."""

    name: str
    cfg: RunConfig
    parameters: int
    flop: int  # of a forward pass of one sample

    def lasting(self, steps: int) -> Run:
        """The same network trained for another number of steps."""
        kwargs = dict(self.cfg.trainer.lr_scheduler_kwargs)
        if "nb_warmup_steps" in kwargs:
            kwargs["nb_warmup_steps"] = min(kwargs["nb_warmup_steps"], steps // 4)
        if "nb_training_steps" in kwargs:
            kwargs["nb_training_steps"] = steps
        changes = {"trainer.max_steps": steps, "trainer.lr_scheduler_kwargs": kwargs}
        return replace(self, cfg=update_config(self.cfg, changes, self.name))


def open_run(path: Path, overrides: Sequence[str]) -> Run:
    """A run file's network, evaluated only at its end and never saved."""
    cfg = load_config(path, overrides)
    flags = {"trainer.nb_batches": [_NEVER, 0], "trainer.save_outputs": False}
    cfg, cost = update_config(cfg, flags, str(path)), Cost(cfg)
    return Run(str(path), cfg, cost.parameters, cost.forward_flops())


def plan_runs(
    files: Sequence[Path], overrides: Sequence[str], steps: int, equal_flops: bool
) -> list[Run]:
    """All that is trained with every seed.

    Args:
        steps: optimiser steps of each; 0 takes those of the first file.
        equal_flops: train those after the first also for as many FLOPs as the first.

    Raises:
        UserError: the run files do not train on the same, or for no end.
    """
    first, *others = (open_run(path, overrides) for path in files)
    for other, key in product(others, _SAME):
        if attrgetter(key)(other.cfg) != attrgetter(key)(first.cfg):
            raise UserError(
                f"{other.name} and {first.name} differ in {key}, so that their losses mean "
                "different things; make them equal"
            )
    steps = steps or first.cfg.trainer.max_steps
    if not steps:
        raise UserError(f"{first.name} trains until stopped; say how long with --max-steps")
    runs = [run.lasting(steps) for run in (first, *others)]
    if equal_flops:
        equal = [(run, max(1, round(steps * first.flop / run.flop))) for run in others]
        runs += [run.lasting(count) for run, count in equal if count != steps]
    return runs


def open_data(cfg: RunConfig, pictures: Path) -> tuple[TokenDataset, TokenDataset]:
    """Training and held-out data; UserError saying how to make what is missing."""
    for root in filter(None, (cfg.data.root, cfg.data.train_root, cfg.data.eval_root)):
        if root.is_dir():
            continue
        command = f"python generate-discrete-mnist.py {root.parent.name} {root.parent}"
        if cfg.vqgan is not None:
            command = (
                f"python generate-latents.py --ckpt-path {cfg.vqgan.checkpoint} "
                f"--dataset-in {pictures} --latents-out {root}"
            ) + (" --use-class" if cfg.net.conditional else "")
        raise UserError(f"the data folder {root} does not exist; make it with: {command}")
    known = cfg.vqgan is None or cfg.vqgan.checkpoint.exists()
    return open_datasets(cfg, open_codec(cfg).identity if known else "")
