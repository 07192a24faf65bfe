"""The training loop: precision, accumulation, averaging, evaluation, checkpoints, many devices.

It knows nothing of tokens. A `Task` says what the losses of a batch are.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from sundae.common.errors import UserError
from sundae.common.finite import NonFiniteError, check_finite, named_tensors
from sundae.common.interruption import Interruption
from sundae.common.precision import autocast
from sundae.config.run_file import TrainerConfig
from sundae.data.dataset import collate_batched
from sundae.prior.checkpoint import (
    Checkpoint,
    CheckpointInfo,
    load_into,
    mark_best,
    prune_checkpoints,
    save_checkpoint,
    way_back,
)
from sundae.training.batches import ShuffledBatches, derive_seed, held_out_batches
from sundae.training.callbacks import Callbacks, CallbackType
from sundae.training.ema import EMA
from sundae.training.logbook import Logbook
from sundae.training.metrics import Means, Row, describe
from sundae.training.optimizers import make_optimizer, split_batch
from sundae.training.schedules import learning_rate_factor

Batch = dict[str, Tensor]
Losses = Iterator[tuple[Tensor, dict[str, Tensor]]]

# How often the progress bar asks the device for the loss; asking makes the device finish its work.
_SHOW_EVERY = 50
# Noise of an evaluation is the same every time, so that its curve shows the network alone.
_EVAL_TAG = 2**40


class Task(Protocol):
    """What is learned.

    Attributes:
        parts: how many losses `losses` yields for a batch; the objective is their mean.
    """

    parts: int

    def losses(self, net: nn.Module, batch: Batch, generator: torch.Generator) -> Losses:
        """Yield (scalar loss, scalar metrics by name); each is gone backward on at once."""
        ...


class RunSettings(Protocol):
    """What a trainer asks of a run file, whatever else the file holds."""

    @property
    def trainer(self) -> TrainerConfig: ...

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the checkpoint's JSON."""
        ...


class BatchedData(Protocol):
    """A data set whose `__getitems__` gives a whole batch."""

    def __len__(self) -> int: ...

    def __getitems__(self, indices: Sequence[int]) -> Batch: ...


class Trainer:
    """Trains a network by a task, on one device or, under `accelerate launch`, on many.

    Attributes:
        step: optimiser steps done.
        mini_batch_size, accumulate: rows of a forward pass, and passes a process does for a step.
        run: the run folder, or None when nothing is saved.
        callbacks: hooks, called with the trainer.
        eval_net: what evaluation and samples use: the averaged network, if there is one.
        logbook: where metrics and pictures go.
    """

    def __init__(
        self,
        cfg: RunSettings,
        task: Task,
        net: nn.Module,
        train_data: BatchedData,
        eval_data: BatchedData,
        *,
        accelerator: Accelerator,
        run: Path | None,
        logbook: Logbook,
        seed: int,
        kind: str = "prior",
        codec_identity: str = "",
        classes: list[str] | None = None,
        quiet: bool = False,
    ) -> None:
        """Build optimiser and average.

        Args:
            kind, codec_identity, classes: noted in checkpoints, see `CheckpointInfo`.

        Raises:
            UserError: batch size or held-out data cannot be divided among the processes.
        """
        self.cfg, self.task, self.accelerator, self.run = cfg, task, accelerator, run
        self.logbook, self.seed, self.quiet = logbook, seed, quiet
        self.kind, self.codec_identity, self.classes = kind, codec_identity, classes
        self.train_data, self.eval_data = train_data, eval_data
        self.device = accelerator.device
        self.mini_batch_size, self.accumulate = split_batch(cfg.trainer, accelerator.num_processes)
        if len(eval_data) < accelerator.num_processes:
            raise UserError(
                f"{len(eval_data)} held-out rows are too few for {accelerator.num_processes} "
                "processes; hold out more, or use fewer processes"
            )
        net = net.to(self.device)
        self.ema = EMA(net, cfg.trainer.ema_decay) if cfg.trainer.ema_decay else None
        optimizer = make_optimizer(net, cfg.trainer, self.device)
        self.net, self.optimizer = accelerator.prepare(net, optimizer)
        self.factor = learning_rate_factor(
            cfg.trainer.lr_scheduler_name,
            cfg.trainer.lr_scheduler_kwargs,
            cfg.trainer.learning_rate,
        )
        self.callbacks = Callbacks()
        self.step = self.since_eval = 0
        self.elapsed = 0.0
        self.best: float | None = None
        self.means = Means()
        self.metrics: dict[str, float] = {}
        # Several processes could not agree on the step to stop at; that is left to the launcher.
        self._interruption = Interruption(enabled=accelerator.num_processes == 1)
        self._saved_step: int | None = None
        self._origin: Path | None = None  # the checkpoint that was resumed from

    @property
    def eval_net(self) -> nn.Module:
        """The averaged network, or the network in training where there is no average."""
        return self.ema.net if self.ema else self.bare_net

    @property
    def stopped_by(self) -> int | None:
        """The signal that asked the run to end before `max_steps`, if one did."""
        return self._interruption.signal

    @property
    def bare_net(self) -> nn.Module:
        """The network in training, without what wraps it for several devices."""
        bare: nn.Module = self.accelerator.unwrap_model(self.net)
        return bare

    # -- the loop ---------------------------------------------------------------------------------

    def train(self) -> None:
        """Train until `max_steps`, or until Ctrl-C or SIGTERM; both end with a checkpoint.

        Raises:
            UserError: the training became NaN or infinite; names the last good checkpoint.
        """
        limit = self.cfg.trainer.max_steps or math.inf
        self.callbacks.fire(CallbackType.Start, self)
        batches = self._training_batches()
        with self._naming_the_last_good(), self._interruption, self._progress() as bar:
            started = time.monotonic() - self.elapsed
            while self.step < limit and not self.stopped_by:
                self._update(batches)
                bar.update()
                if self.step % _SHOW_EVERY == 0 or self.step == limit:
                    bar.set_postfix(loss=f"{self._checked_loss():.4f}")
                self.elapsed = time.monotonic() - started
                self._after_update(last=self.step >= limit)
            # Asked for while a step, an evaluation or a picture was being computed.
            if self.stopped_by and self._saved_step != self.step:
                self.save()
        self.callbacks.fire(CallbackType.Termination, self)
        self.logbook.close()

    def _update(self, batches: Iterator[Batch]) -> None:
        """One optimiser step."""
        self.net.train()
        pieces = self.accumulate * self.task.parts
        for mini in range(self.accumulate):
            batch = self._to_device(next(batches))
            seed = derive_seed(self.seed, self.step, mini, self.accelerator.process_index)
            torch.manual_seed(seed)  # dropout; all else draws from the generator
            generator = torch.Generator(self.device).manual_seed(seed)
            losses = self.task.losses(self.net, batch, generator)
            for part in range(self.task.parts):
                last = mini + 1 == self.accumulate and part + 1 == self.task.parts
                with self._synchronised(last):
                    with self._autocast():
                        loss, metrics = next(losses)
                    self.accelerator.backward(loss / pieces)
                self.means.add(metrics, 1.0)
            self.since_eval += 1
            self.callbacks.fire(CallbackType.TrainStep, self)
        self._apply_gradients()

    def _apply_gradients(self) -> None:
        trainer = self.cfg.trainer
        if trainer.clip_grad:
            self.accelerator.clip_grad_norm_(self.net.parameters(), trainer.clip_grad_value)
        for group in self.optimizer.param_groups:
            group["lr"] = trainer.learning_rate * self.factor(self.step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=trainer.grad_none)
        if self.ema:
            self.ema.update(self.bare_net)
        self.step += 1
        self.callbacks.fire(CallbackType.ParameterUpdate, self)

    def _after_update(self, *, last: bool) -> None:
        """Evaluate and save where it is due."""
        trainer = self.cfg.trainer
        improved = False
        if self.since_eval >= self._batches_per_evaluation or last:
            improved = self._evaluate_and_log() and trainer.checkpoint_best
        due = trainer.checkpoint_frequency and self.step % trainer.checkpoint_frequency == 0
        if due or improved or last:
            self.save(best=improved)

    def _evaluate_and_log(self) -> bool:
        """Returns whether this is the best evaluation so far."""
        self.callbacks.fire(CallbackType.TrainEpoch, self)
        self._check_finite()
        train = self.means.read(self.accelerator)
        held_out = self.evaluate()
        self.means, self.since_eval = Means(), 0
        rate = self.cfg.trainer.batch_size * self.step / max(self.elapsed, 1e-9)
        self.metrics = {f"train/{k}": v for k, v in train.items()}
        self.metrics |= {f"eval/{k}": v for k, v in held_out.items()}
        row = {"step": float(self.step), **self.metrics}
        row |= {
            "lr": self.optimizer.param_groups[0]["lr"],
            "seconds": self.elapsed,
            "samples_per_s": rate,
        }
        if self.device.type == "cuda":
            row["peak_gb"] = torch.cuda.max_memory_allocated(self.device) / 2**30
        if self.accelerator.is_main_process:
            self.logbook.log(row)
            self._say(describe(row, self.cfg.trainer.metric_names))
        self.callbacks.fire(CallbackType.EvalEpoch, self)
        name, direction = self.cfg.trainer.metric_best
        sign = -1 if direction == "asc" else 1
        value = held_out[name]
        better = math.isfinite(value) and (self.best is None or sign * value < sign * self.best)
        self.best = value if better else self.best
        return better

    @torch.no_grad()
    def evaluate(self) -> Row:
        """Metrics on the held-out data: always the same rows, the same noise."""
        net, means = self.eval_net, Means()
        net.eval()
        for index, batch in enumerate(self._evaluation_batches()):
            generator = torch.Generator(self.device).manual_seed(
                derive_seed(self.seed, _EVAL_TAG, index, self.accelerator.process_index)
            )
            batch = self._to_device(batch)
            rows = len(next(iter(batch.values())))
            with self._autocast():
                for _, metrics in self.task.losses(net, batch, generator):
                    means.add(metrics, rows)
            self.callbacks.fire(CallbackType.EvalStep, self)
        return means.read(self.accelerator)

    # -- saving and resuming ----------------------------------------------------------------------

    def save(self, *, best: bool = False) -> None:
        """Write a checkpoint, if this run is saved, and delete those past their time.

        Raises:
            UserError: the loss, a weight, its average or a moment is NaN or infinite; nothing is
                written, and the line names the last good checkpoint.
        """
        if self.run is None:
            return
        with self._naming_the_last_good():
            self._check_finite()
        if self.accelerator.is_main_process:
            self._write(self.run, best)
        self._saved_step = self.step
        self.accelerator.wait_for_everyone()
        self.callbacks.fire(CallbackType.SaveCheckpoint, self)

    def _write(self, run: Path, best: bool) -> None:
        info = CheckpointInfo(
            kind=self.kind,
            step=self.step,
            config=self.cfg.to_dict(),
            codec=self.codec_identity,
            classes=self.classes,
            seed=self.seed,
            metrics=self.metrics,
        )
        progress = {
            "since_eval": self.since_eval,
            "elapsed": self.elapsed,
            "best": self.best,
            "sums": self.means.sums,
            "weights": self.means.weights,
        }
        folder = save_checkpoint(
            run,
            info,
            net=self.bare_net,
            ema=self.ema.net if self.ema else None,
            training={
                "optimizer_name": self.cfg.trainer.optimizer_name,
                "optimizer": self.optimizer.state_dict(),
                "progress": progress,
            },
        )
        if best and self.best is not None:
            mark_best(run, folder, self.cfg.trainer.metric_best[0], self.best)
        prune_checkpoints(run, self.cfg.trainer.keep_checkpoints)

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on where a checkpoint left off, with the rows and the noise that were to come next.

        On a CPU the result is the same, bit for bit, as if nothing had happened. On a GPU gradients
        of attention and embeddings are sums in an order that varies from run to run.

        Raises:
            UserError: it belongs to another network or optimiser, is damaged or not finite.
        """
        weights, ema, state = checkpoint.load_training()
        load_into(self.bare_net, weights, checkpoint.folder)
        if self.ema:
            load_into(self.ema.net, ema if ema is not None else weights, checkpoint.folder)
            self.ema.updates = checkpoint.info.step
        try:
            self._restore_optimizer(state, checkpoint.folder)
            self._restore_progress(state["progress"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{checkpoint.folder}: the state of the training does not fit ({error}); "
                "use another checkpoint"
            ) from error
        self.step = self._saved_step = checkpoint.info.step
        self._origin = checkpoint.folder
        self.metrics = dict(checkpoint.info.metrics)
        self.logbook.rewind(self.step)

    def _restore_optimizer(self, state: dict[str, Any], folder: Path) -> None:
        """Take over its moments; rates and decay are those of this run file."""
        before, now = state["optimizer_name"], self.cfg.trainer.optimizer_name
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
        self.best = progress["best"]
        self.means.sums = {name: value.to(self.device) for name, value in progress["sums"].items()}
        self.means.weights = progress["weights"]

    # -- data -------------------------------------------------------------------------------------

    def _training_batches(self) -> Iterator[Batch]:
        start = self.step * self.accumulate
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        sampler = ShuffledBatches(
            len(self.train_data),
            self.mini_batch_size,
            seed=self.seed,
            rank=rank,
            world=world,
            start=start,
        )
        per_epoch = max(1, len(self.train_data) // (self.mini_batch_size * world))
        for count, batch in enumerate(self._loader(self.train_data, sampler), start + 1):
            yield batch
            if count % per_epoch == 0:
                self.callbacks.fire(CallbackType.TrainDataExhaust, self)

    def _evaluation_batches(self) -> Iterator[Batch]:
        """A fixed, shuffled choice of held-out rows, dealt out to the processes."""
        count = len(self.eval_data)
        if self.cfg.trainer.nb_batches[1]:
            count = min(count, self.cfg.trainer.nb_batches[1] * self.mini_batch_size)
        chunks = held_out_batches(
            len(self.eval_data),
            count,
            self.mini_batch_size,
            seed=derive_seed(self.seed, _EVAL_TAG),
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
        )
        yield from self._loader(self.eval_data, chunks)
        if count == len(self.eval_data):
            self.callbacks.fire(CallbackType.EvalDataExhaust, self)

    def _loader(self, data: BatchedData, batches: Any) -> DataLoader[Batch]:
        workers = self.cfg.trainer.nb_workers
        return DataLoader(
            data,  # type: ignore[arg-type]  # only __getitems__ is used
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=collate_batched,  # __getitems__ batches already
            pin_memory=self.device.type == "cuda",
        )

    @property
    def _batches_per_evaluation(self) -> int:
        per_epoch = len(self.train_data) // (self.mini_batch_size * self.accelerator.num_processes)
        return self.cfg.trainer.nb_batches[0] or max(1, per_epoch)

    def _to_device(self, batch: Batch) -> Batch:
        return {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}

    # -- small change -----------------------------------------------------------------------------

    def _autocast(self) -> AbstractContextManager[object]:
        return autocast(self.device, self.cfg.trainer.arithmetic)

    def _synchronised(self, last: bool) -> AbstractContextManager[object]:
        """Gradients travel between processes once an optimiser step, with the last backward."""
        return nullcontext() if last else self.accelerator.no_sync(self.net)

    def _checked_loss(self) -> float:
        loss = self.means.read(self.accelerator).get(
            "loss", self.metrics.get("train/loss", math.nan)
        )
        if self.means.sums and not math.isfinite(loss):
            raise NonFiniteError(f"the loss is {loss}")
        return loss

    def _check_finite(self) -> None:
        """Make sure that the loss and everything a checkpoint holds are numbers.

        Every process looks at its own copy, which is that of all: if the main one alone stopped,
        the others would wait for it. The loss of a step says nothing yet of the weights after it.
        """
        self._checked_loss()
        tensors = named_tensors(self.bare_net.state_dict(), "network")
        if self.ema:
            tensors |= named_tensors(self.ema.net.state_dict(), "average")
        check_finite(tensors | named_tensors(self.optimizer.state_dict(), "optimizer"))

    @contextmanager
    def _naming_the_last_good(self) -> Iterator[None]:
        """Ends a training that became NaN or infinite with the way back to the last good one."""
        try:
            yield
        except NonFiniteError as error:
            remedy = way_back(self.kind, self.run, self._origin)
            raise UserError(
                f"{error} at step {self.step}; nothing was written; {remedy}"
            ) from error

    def _progress(self) -> tqdm[Any]:
        return tqdm(
            initial=self.step,
            total=self.cfg.trainer.max_steps or None,
            unit="step",
            disable=True if self.quiet or not self.accelerator.is_main_process else None,
            dynamic_ncols=True,
        )

    def _say(self, line: str) -> None:
        if not self.quiet:
            tqdm.write(line)
