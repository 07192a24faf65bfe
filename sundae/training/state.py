"""What a checkpoint holds of a training: network, average, optimiser and progress."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn

from sundae.common.errors import UserError
from sundae.common.finite import NonFiniteError, check_finite, named_tensors
from sundae.config.sections import TrainerConfig
from sundae.prior.checkpoint import Checkpoint, CheckpointInfo, load_into, save_checkpoint
from sundae.prior.run import mark_best
from sundae.training.ema import EMA
from sundae.training.health import LossWatch
from sundae.training.metrics import Means
from sundae.training.optimizers import make_optimizer


class TrainingState:
    """Everything that changes in a training.

    Attributes:
        net: the network in training, wrapped for several devices.
        step: optimiser steps done.
        since_eval: mini-batches since the last evaluation.
        elapsed: seconds of training.
        means: metrics of the training batches since the last evaluation.
        metrics: of the last evaluation.
        best: value of the best evaluation.
        watch: what tells whether the loss has exploded.
    """

    def __init__(
        self, net: nn.Module, cfg: TrainerConfig, accelerator: Accelerator, watched: str
    ) -> None:
        """watched: name of the metric that explodes when a training does."""
        self.cfg, self.accelerator = cfg, accelerator
        net = net.to(accelerator.device)
        self.ema = EMA(net, cfg.ema_decay) if cfg.ema_decay else None
        optimizer = make_optimizer(net, cfg, accelerator.device)
        self.net, self.optimizer = accelerator.prepare(net, optimizer)
        self.step = self.since_eval = 0
        self.elapsed = 0.0
        self.means = Means()
        self.metrics: dict[str, float] = {}
        self.best: float | None = None
        self.watch = LossWatch(watched)

    @property
    def bare_net(self) -> nn.Module:
        """The network in training, without what wraps it for several devices."""
        bare: nn.Module = self.accelerator.unwrap_model(self.net)
        return bare

    @property
    def eval_net(self) -> nn.Module:
        """The averaged network, or the network in training where there is no average."""
        return self.ema.net if self.ema else self.bare_net

    def set_best(self, value: float) -> bool:
        """Take the value of an evaluation; returns whether it is the best so far."""
        sign = -1 if self.cfg.metric_best[1] == "asc" else 1
        better = math.isfinite(value) and (self.best is None or sign * value < sign * self.best)
        self.best = value if better else self.best
        return better

    def checked_loss(self) -> float:
        """The mean loss since the last evaluation.

        Raises:
            NonFiniteError: it is not finite.
            ExplodedError: see `LossWatch`.
        """
        loss = self.means.read(self.accelerator).get(
            "loss", self.metrics.get("train/loss", math.nan)
        )
        if self.means.sums and not math.isfinite(loss):
            raise NonFiniteError(f"the loss is {loss}")
        self.watch.check(self.accelerator)
        return loss

    def check_health(self) -> None:
        """Refuse a loss that has exploded, or anything in a checkpoint that is not finite.

        Every process checks its own copy, all of which are equal: if the main process alone
        stopped, the others would wait for it. A loss is computed before the weights change.

        Raises:
            NonFiniteError: the loss, a weight, its average or a moment is NaN or infinite.
            ExplodedError: see `LossWatch`.
        """
        self.checked_loss()
        tensors = named_tensors(self.bare_net.state_dict(), "network")
        if self.ema:
            tensors |= named_tensors(self.ema.net.state_dict(), "average")
        check_finite(tensors | named_tensors(self.optimizer.state_dict(), "optimizer"))

    def save(self, run: Path, info: CheckpointInfo, *, best: bool) -> Path:
        """Write a checkpoint, marked as the best or not; returns its folder."""
        folder = save_checkpoint(
            run,
            replace(info, step=self.step, metrics=self.metrics),
            net=self.bare_net,
            ema=self.ema.net if self.ema else None,
            training={
                "optimizer_name": self.cfg.optimizer_name,
                "optimizer": self.optimizer.state_dict(),
                "progress": {
                    "since_eval": self.since_eval,
                    "elapsed": self.elapsed,
                    "best": self.best,
                    "sums": self.means.sums,
                    "weights": self.means.weights,
                    **self.watch.state(),
                },
            },
        )
        if best and self.best is not None:
            mark_best(run, folder, self.cfg.metric_best[0], self.best)
        return folder

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take up a checkpoint; learning rate and weight decay are those of this run file.

        Raises:
            UserError: it belongs to another network or optimiser, is damaged or not finite.
        """
        weights, average, state = checkpoint.load_training()
        load_into(self.bare_net, weights, checkpoint.folder)
        if self.ema:
            load_into(self.ema.net, weights if average is None else average, checkpoint.folder)
            self.ema.updates = checkpoint.info.step
        try:
            self._restore_optimizer(state, checkpoint.folder)
            self._restore_progress(state["progress"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{checkpoint.folder}: the state of the training does not fit ({error}); "
                "use another checkpoint"
            ) from error
        self.step, self.metrics = checkpoint.info.step, dict(checkpoint.info.metrics)

    def _restore_optimizer(self, state: dict[str, Any], folder: Path) -> None:
        before, now = state["optimizer_name"], self.cfg.optimizer_name
        if before != now:
            raise UserError(
                f"{folder} was trained with trainer.optimizer_name = {before}, which cannot go on "
                f"as {now}; set it back"
            )
        groups = [dict(group) for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, ours in zip(self.optimizer.param_groups, groups, strict=True):
            group |= {name: value for name, value in ours.items() if name != "params"}

    def _restore_progress(self, progress: dict[str, Any]) -> None:
        self.since_eval, self.elapsed = progress["since_eval"], progress["elapsed"]
        self.best, self.means.weights = progress["best"], progress["weights"]
        self.watch.restore(progress)
        device = self.accelerator.device
        self.means.sums = {name: value.to(device) for name, value in progress["sums"].items()}
