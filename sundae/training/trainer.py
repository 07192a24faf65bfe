"""The training loop: precision, accumulation, evaluation, when to save, many devices.

It knows nothing of tokens: a `Task` computes the losses of a batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from sundae.common.errors import UserError
from sundae.common.finite import NonFiniteError
from sundae.common.interruption import Interruption
from sundae.common.precision import autocast
from sundae.config.sections import TrainerConfig
from sundae.prior.checkpoint import Checkpoint, CheckpointInfo, way_back
from sundae.prior.run import delete_checkpoint, prune_checkpoints
from sundae.training.batches import EVAL_TAG, Batch, Batches, DataPair, derive_seed
from sundae.training.health import ExplodedError, likely_cause, remedies
from sundae.training.logbook import Logbook
from sundae.training.metrics import Means, Metrics, Row, describe
from sundae.training.schedules import make_lr_lambda
from sundae.training.state import TrainingState

Losses = Iterator[tuple[Tensor, Metrics]]
Hook = Callable[["Trainer"], None]

# Steps between two losses in the progress bar; reading one waits for the device.
_SHOW_EVERY = 50


class Task(Protocol):
    """What is learned.

    Attributes:
        num_losses: how many losses `losses` yields for a batch; the objective is their mean.
        watched: the metric whose explosion ends the training, see `health.LossWatch`.
    """

    num_losses: int
    watched: str

    def losses(self, net: nn.Module, batch: Batch, generator: torch.Generator) -> Losses:
        """Yield (scalar loss, metrics by name), each followed by its backward pass."""
        ...


class Trainer:
    """Trains a network by a task, on one device or, under `accelerate launch`, on many.

    Attributes:
        logbook: the run folder, if there is one, its metrics and images.
        on_evaluation, on_save: hooks, called with the trainer, in the main process, after every
            evaluation and every checkpoint.
    """

    def __init__(
        self,
        cfg: TrainerConfig,
        task: Task,
        net: nn.Module,
        data: DataPair,
        *,
        accelerator: Accelerator,
        logbook: Logbook,
        info: CheckpointInfo,
    ) -> None:
        """Build optimiser and average.

        Args:
            info: what is the same in every checkpoint of the run, the seed included.

        Raises:
            UserError: batch size or held-out data cannot be divided among the processes.
        """
        self.cfg, self.task, self.accelerator = cfg, task, accelerator
        self.logbook, self.info, self.device = logbook, info, accelerator.device
        self.batches = Batches(data, cfg, accelerator, info.seed)
        self.state = TrainingState(net, cfg, accelerator, task.watched)
        self.lr_lambda = make_lr_lambda(
            cfg.lr_scheduler_name, cfg.lr_scheduler_kwargs, cfg.learning_rate
        )
        self.on_evaluation: list[Hook] = []
        self.on_save: list[Hook] = []
        # Several processes could not agree on the step to stop at; that is left to the launcher.
        self._interruption = Interruption(enabled=accelerator.num_processes == 1)
        self._saved_step: int | None = None
        self._origin: Path | None = None  # the checkpoint that was resumed from
        self._previous_rate: float | None = None  # of the run as it was before
        self._unproven: Path | None = None  # the newest checkpoint, until a step from there is done
        self._exploded: list[Path] = []  # newest checkpoints that such a step has shown to be bad

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return self.state.step

    @property
    def stopped_by(self) -> int | None:
        """The signal that ended the run before `max_steps`, if one did."""
        return self._interruption.signal

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on where a checkpoint left off, with the rows and the noise that were to come next.

        On a CPU the result is the same, bit for bit, as without the interruption. On a GPU
        gradients of attention and embeddings are sums in an order that varies from run to run.

        Raises:
            UserError: see `TrainingState.restore`.
        """
        self.state.restore(checkpoint)
        self._saved_step, self._origin = self.step, checkpoint.folder
        before = checkpoint.info.config.get(self.cfg.section, {})
        self._previous_rate = before.get("learning_rate")
        self.logbook.rewind(self.step)

    def train(self) -> None:
        """Train until `max_steps`, or until Ctrl-C or SIGTERM; both end with a checkpoint.

        Raises:
            UserError: the training became NaN or infinite, or its loss exploded; names the last
                good checkpoint.
        """
        state, limit = self.state, self.cfg.max_steps or math.inf
        batches = self.batches.training(self.step)
        with self._naming_the_last_good(), self._interruption, self._progress_bar() as bar:
            started = time.monotonic() - state.elapsed
            while self.step < limit and not self.stopped_by:
                self._update(batches)
                self._prove_checkpoint()
                bar.update()
                if self.step % _SHOW_EVERY == 0 or self.step == limit:
                    bar.set_postfix(loss=f"{state.checked_loss():.4f}")
                state.elapsed = time.monotonic() - started
                self._after_update(last=self.step >= limit)
            # The signal may have come during a step, an evaluation or a hook.
            if self.stopped_by and self._saved_step != self.step:
                self.save()
            if self._unproven is not None:  # nothing will explode any more
                self._prune()
        self.logbook.close()

    def _update(self, batches: Iterator[Batch]) -> None:
        """One optimiser step."""
        net, num_losses = self.state.net, self.task.num_losses
        net.train()
        backwards, watched = self.batches.accumulate * num_losses, []
        for mini in range(self.batches.accumulate):
            batch = next(batches)
            seed = derive_seed(self.info.seed, self.step, mini, self.accelerator.process_index)
            torch.manual_seed(seed)  # dropout; all else draws from the generator
            losses = self.task.losses(net, batch, torch.Generator(self.device).manual_seed(seed))
            for number in range(mini * num_losses + 1, (mini + 1) * num_losses + 1):
                # Processes exchange gradients once an optimiser step, in its last backward pass.
                last = number == backwards
                with nullcontext() if last else self.accelerator.no_sync(net):
                    with autocast(self.device, self.cfg.arithmetic):
                        loss, metrics = next(losses)
                    self.accelerator.backward(loss / backwards)
                self.state.means.add(metrics, 1.0)
                if isinstance(value := metrics.get(self.task.watched), Tensor):
                    watched.append(value.detach())
            self.state.since_eval += 1
        self.state.watch.add(watched)
        self._apply_gradients()

    def _apply_gradients(self) -> None:
        state, cfg = self.state, self.cfg
        if cfg.clip_grad:
            norm = self.accelerator.clip_grad_norm_(state.net.parameters(), cfg.clip_grad_value)
            state.means.add({"grad_norm": norm}, 1.0)
        for group in state.optimizer.param_groups:
            group["lr"] = cfg.learning_rate * self.lr_lambda(self.step)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=cfg.grad_none)
        if state.ema:
            state.ema.update(state.bare_net)
        state.step += 1

    def _after_update(self, *, last: bool) -> None:
        """Evaluate and save where it is due."""
        improved = False
        if self.state.since_eval >= self.batches.per_evaluation or last:
            improved = self._evaluate_and_log() and self.cfg.checkpoint_best
        frequency = self.cfg.checkpoint_frequency
        due = frequency and self.step % frequency == 0
        if due or improved or last:
            self.save(best=improved)

    def _evaluate_and_log(self) -> bool:
        """Returns whether this is the best evaluation so far."""
        state = self.state
        state.check_health()
        train, held_out = state.means.read(self.accelerator), self.evaluate()
        state.watch.evaluated(train.get(self.task.watched, math.inf))
        state.means, state.since_eval = Means(), 0
        state.metrics = {f"train/{name}": value for name, value in train.items()}
        state.metrics |= {f"eval/{name}": value for name, value in held_out.items()}
        if self.accelerator.is_main_process:
            self.logbook.log({"step": float(self.step), **state.metrics, **self._speed()})
            if not self.logbook.quiet:
                tqdm.write(describe(self.logbook.rows[-1], self.cfg.metric_names))
        self._call(self.on_evaluation)
        return state.set_best(held_out[self.cfg.metric_best[0]])

    def _speed(self) -> Row:
        elapsed = self.state.elapsed
        row = {
            "lr": self.state.optimizer.param_groups[0]["lr"],
            "seconds": elapsed,
            "samples_per_s": self.cfg.batch_size * self.step / max(elapsed, 1e-9),
        }
        if self.device.type == "cuda":
            row["peak_gb"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        return row

    @torch.no_grad()
    def evaluate(self) -> Row:
        """Metrics on the held-out data: always the same rows, the same noise."""
        net, means = self.state.eval_net, Means()
        net.eval()
        for index, batch in enumerate(self.batches.evaluation()):
            generator = torch.Generator(self.device).manual_seed(
                derive_seed(self.info.seed, EVAL_TAG, index, self.accelerator.process_index)
            )
            rows = len(next(iter(batch.values())))
            with autocast(self.device, self.cfg.arithmetic):
                for _, metrics in self.task.losses(net, batch, generator):
                    means.add(metrics, rows)
        return means.read(self.accelerator)

    def save(self, *, best: bool = False) -> None:
        """Write a checkpoint, if this run is saved.

        Those that are not kept are deleted after the next step, if its loss shows that this one is
        good.

        Raises:
            UserError: the loss, a weight, its average or a moment is NaN or infinite, or the loss
                has exploded; nothing is written, and the line names the last good checkpoint.
        """
        if self.logbook.run is None:
            return
        with self._naming_the_last_good():
            self.state.check_health()
        if self.accelerator.is_main_process:
            self._unproven = self.state.save(self.logbook.run, self.info, best=best)
        self._saved_step = self.step
        self.accelerator.wait_for_everyone()
        self._call(self.on_save)

    def _prove_checkpoint(self) -> None:
        """Judge a checkpoint that was just written by the loss of the step from there."""
        if self._unproven is None:
            return
        if self.state.watch.has_jumped():
            self._exploded.append(self._unproven)
            self._unproven = None
        else:
            self._exploded.clear()
            self._prune()

    def _prune(self) -> None:
        assert self.logbook.run is not None
        prune_checkpoints(self.logbook.run, self.cfg.keep_checkpoints)
        self._unproven = None

    def _call(self, hooks: list[Hook]) -> None:
        if self.accelerator.is_main_process:
            for hook in hooks:
                hook(self)

    @contextmanager
    def _naming_the_last_good(self) -> Iterator[None]:
        """Turns a divergence into one line with its likely cause and the last good checkpoint.

        Checkpoints that had exploded when they were written are deleted: to resume takes the last.
        """
        try:
            yield
        except (NonFiniteError, ExplodedError) as error:
            cause = likely_cause(self.cfg, self.device, self._previous_rate)
            bad = [*self._exploded, *filter(None, [self._unproven])]
            for folder in bad:
                delete_checkpoint(folder)
            names = "".join(f", {folder.name} was deleted" for folder in bad)
            change = remedies(self.cfg)
            remedy = way_back(self.info.kind, self.logbook.run, self._origin, change)
            raise UserError(
                f"{error} at step {self.step}; {cause}; nothing was written{names}; {remedy}"
            ) from error

    def _progress_bar(self) -> tqdm[Any]:
        return tqdm(
            initial=self.step,
            total=self.cfg.max_steps or None,
            unit="step",
            disable=True if self.logbook.quiet else None,
            dynamic_ncols=True,
        )
