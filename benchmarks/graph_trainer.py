"""A training step as one CUDA graph, for small networks, of which Python cannot launch the kernels
one by one as fast as a GPU runs them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from sundae.common.precision import autocast
from sundae.prior.objective import corruption_rates
from sundae.training.batches import Batch
from sundae.training.metrics import Metrics
from sundae.training.prior import PriorTask
from sundae.training.trainer import Trainer

_WARM_UP = 3  # steps before the capture, as torch's notes on CUDA graphs advise


class GraphTask(PriorTask):
    """The objective, whose corruption rates in training are drawn outside of the graph.

    They are a random permutation, which a capture may not contain.
    """

    drawn: Tensor | None = None

    def rates(self, count: int, generator: torch.Generator) -> Tensor:
        return super().rates(count, generator) if self.drawn is None else self.drawn


class GraphTrainer(Trainer):
    """A trainer whose optimiser steps replay a CUDA graph; on a CPU they call the same step.

    For one device, a prior, and mini-batches that are whole batches. The captured step has the
    highest learning rate. What an optimiser changes is proportional to the rate, so the schedule
    scales the change. Random numbers are not those of `Trainer`: a graph has generators of its own.
    """

    _graph: torch.cuda.CUDAGraph | None = None
    _captured = False

    def _update(self, batches: Iterator[Batch]) -> None:
        batch = next(batches)
        if not self._captured:
            self._capture(batch)
        for name, rows in batch.items():
            self._inputs[name].copy_(rows)
        rows = len(batch["tokens"])
        self._rates.copy_(corruption_rates(rows, self._rate_generator))
        self._scale.fill_(self.lr_lambda(self.step))
        if self._graph is None:
            self._step()
        else:
            self._graph.replay()
        for group in self.state.optimizer.param_groups:  # for the log; `_step` has the highest rate
            group["lr"] = self.cfg.learning_rate * self.lr_lambda(self.step)
        state = self.state
        for metrics in self._metrics:
            state.means.add(metrics, 1.0)
        state.watch.add([m[self.task.watched].clone() for m in self._metrics[: self._num_losses]])  # type: ignore[union-attr]
        state.since_eval += 1
        if state.ema:
            state.ema.update(state.bare_net)
        state.step += 1

    def _capture(self, batch: Batch) -> None:
        """Make what the graph reads and writes, and on CUDA the graph."""
        assert isinstance(self.task, GraphTask) and self.batches.accumulate == 1
        device, self._num_losses = self.device, self.task.num_losses
        self._generator = torch.Generator(device).manual_seed(self.info.seed)
        self._rate_generator = torch.Generator(device).manual_seed(self.info.seed + 1)
        self._inputs = {name: rows.clone() for name, rows in batch.items()}
        self._rates = corruption_rates(len(batch["tokens"]), self._rate_generator)
        self._scale = torch.ones((), device=device)
        self._parameters = list(self.state.bare_net.parameters())
        self._before = [p.detach().clone() for p in self._parameters]
        self._metrics: list[Metrics] = []
        self._captured = True
        if device.type != "cuda":
            return
        optimizer = self.state.optimizer.optimizer
        for group in optimizer.param_groups:
            group["capturable"] = True
        start = [p.detach().clone() for p in self._parameters]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                self._step()
        torch.cuda.synchronize()
        for parameter, value in zip(self._parameters, start, strict=True):
            parameter.detach().copy_(value)
            parameter.grad = None
        for moments in optimizer.state.values():
            for value in moments.values():
                value.zero_()
        self._graph = torch.cuda.CUDAGraph()
        self._graph.register_generator_state(self._generator)
        with torch.cuda.graph(self._graph, stream=stream):
            self._step()
        torch.cuda.synchronize()

    def _step(self) -> None:
        """Forward, backward and optimiser, on what `_capture` has made."""
        assert isinstance(self.task, GraphTask)
        self.state.net.train()
        torch._foreach_copy_(self._before, [p.detach() for p in self._parameters])
        self._metrics = []
        for parameter in self._parameters:
            parameter.grad = None
        self.task.drawn = self._rates
        losses = self.task.losses(self.state.bare_net, self._inputs, self._generator)
        for _ in range(self._num_losses):
            with autocast(self.device, self.cfg.arithmetic):
                loss, metrics = next(losses)
            (loss / self._num_losses).backward()
            self._metrics.append({name: value.detach() for name, value in metrics.items()})  # type: ignore[union-attr]
        self.task.drawn = None
        if self.cfg.clip_grad:
            norm = torch.nn.utils.clip_grad_norm_(self._parameters, self.cfg.clip_grad_value)
            self._metrics.append({"grad_norm": norm.detach()})
        for group in self.state.optimizer.param_groups:
            group["lr"] = self.cfg.learning_rate
        self.state.optimizer.optimizer.step()
        with torch.no_grad():
            torch._foreach_sub_(self._parameters, self._before)
            torch._foreach_mul_(self._parameters, self._scale)
            torch._foreach_add_(self._parameters, self._before)
