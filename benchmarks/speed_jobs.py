"""What `speed.py` runs: the network at a size, ways to do the same thing with it, their costs."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property
from math import prod
from pathlib import Path
from typing import Any

import torch
from measuring import in_child, memory
from textbook import Textbook, adamw, training_step
from torch import Tensor, nn

from hourglass_transformer import HourglassTransformer
from sundae.common.compiling import compile_modules
from sundae.common.precision import autocast, has_bf16
from sundae.config.run_file import RunConfig, load_config
from sundae.config.sections import SamplingConfig
from sundae.evaluation.cost import flop_of
from sundae.prior.network import build_network
from sundae.sampling.prior import Prior, even_classes, sample_seeds
from sundae.training.optimizers import make_optimizer
from sundae.training.prior import PriorTask

CONFIGS = Path(__file__).resolve().parents[1] / "config"

# Overrides that make a size of a run file's network.
_TINY = (
    "net.dim=32 net.nb_heads=2 net.depth=[1,1,1] data.vocab_size=64 data.sequence_length=64 "
    "vqgan.latent_shape=[8,8] sampling.steps=4"
)
_SMALL = "net.dim=256 net.nb_heads=4 net.depth=[1,4,1] sampling.steps=10"
SIZES: dict[str, tuple[str, tuple[str, ...]]] = {
    "ci": ("ffhq256.toml", tuple(_TINY.split())),
    "small": ("ffhq256.toml", tuple(_SMALL.split())),
    "ffhq256": ("ffhq256.toml", ()),
    "ffhq1024": ("ffhq1024.toml", ()),
}


@dataclass(frozen=True)
class Setup:
    """What is measured, and how; child processes get it too.

    Attributes:
        config, overrides: of the run file.
        codec_config: YAML of the codec, or None where the run file names none.
        steps: of a whole sampling, those of the run file unless given.
        limit: seconds after which a track begins no further round.
        paths: regular expression; only ways whose names it is found in are measured.
    """

    config: Path
    overrides: tuple[str, ...]
    codec_config: Path | None
    device: str
    threads: int
    rounds: int
    steps: int | None
    compiles: bool
    memory: bool
    limit: float
    paths: str = ""

    def wants(self, way: Way) -> bool:
        """Whether a way is to be measured; with no rounds, compiled ones are to be compiled."""
        return self.wants_name(way.name) and (way.compiled or self.rounds > 0)

    def wants_name(self, name: str) -> bool:
        """Whether a way of this name would be measured."""
        return re.search(self.paths, name) is not None

    def begin(self) -> None:
        """Puts the process that measures in order; float32 stays float32 in convolutions, too."""
        torch.set_num_threads(self.threads)
        torch.backends.cudnn.allow_tf32 = False
        torch.manual_seed(0)


@dataclass
class Job:
    """Something ready to be timed.

    Attributes:
        run: does it once.
        warm_up: does enough of it that `run` meets nothing new.
        resident: bytes, beyond the network's weights, that stay from one run to the next.
        gradients: bytes of them.
    """

    run: Callable[[], object]
    warm_up: Callable[[], object] | None = None
    resident: Callable[[], int] = int
    gradients: int = 0


@dataclass(frozen=True)
class Way:
    """One way to do what a track is about.

    Attributes:
        make: the job, or None where it cannot be had here.
        precision: of its matrix products, fp32 or bf16; empty if it has none.
        flop: of one call, matrix products only.
        evaluations: of the network for one image.
        graphs: whether it replays CUDA graphs, whose memory is taken once, not by each call.
    """

    name: str
    make: Callable[[], Job | None]
    precision: str = ""
    parameters: int | None = None
    flop: int | None = None
    evaluations: int | None = None
    compiled: bool = False
    graphs: bool = False


@dataclass(frozen=True)
class Track:
    """Ways to do the same thing; the first is what the others are compared with.

    Attributes:
        images: that a call makes or treats.
        parts: a call does the thing so many times.
    """

    name: str
    title: str
    ways: list[Way]
    images: int
    parts: int = 1


class Bench:
    """The network of a setup, random weights, on its device; ways share its parameters."""

    def __init__(self, setup: Setup, cfg: RunConfig | None = None, *, several: bool = True) -> None:
        """several: more than one way is made; a single one may have the network for its own."""
        self.setup, self.several = setup, several
        self.cfg = cfg or load_config(setup.config, setup.overrides)
        self.device = torch.device(setup.device)
        self.precision = "bf16" if has_bf16(self.device) else "fp32"
        self.length = prod(self.cfg.grid_shape)

    @cached_property
    def net(self) -> HourglassTransformer:
        """Initialised as for training."""
        torch.manual_seed(0)
        with self.device:
            return build_network(self.cfg).eval()

    @cached_property
    def costs(self) -> Costs:
        """Parameters and FLOP."""
        return Costs(self.cfg)

    def twin(self) -> HourglassTransformer:
        """A network of its own with the same parameters, not copies of them."""
        return twin(self.net)

    def compiled_net(self) -> HourglassTransformer | None:
        """A compiled twin, or None where compiling does not work."""
        net = self.twin()
        return net if compile_modules(net) else None

    def prior(self, compiled: bool) -> Prior:
        """Ready to sample; with a network of its own, whose linear maps become bfloat16."""
        net = copy.deepcopy(self.net) if self.several else self.net
        return Prior(net, self.cfg, self.device, owns_net=True, compiled=compiled)

    def tokens(self, batch: int) -> Tensor:
        """(batch, length) int64, random, the same every time."""
        generator = torch.Generator().manual_seed(0)
        shape = (batch, self.length)
        return torch.randint(self.cfg.data.vocab_size, shape, generator=generator).to(self.device)

    def classes(self, batch: int) -> Tensor | None:
        """(batch,) int64 for a conditional network."""
        net = self.cfg.net
        return even_classes(net.num_classes, batch).to(self.device) if net.conditional else None

    def schedule(self) -> SamplingConfig:
        """The run file's, the paper's strategy, without guidance or early end."""
        schedule = replace(
            self.cfg.sampling,
            strategy="random",
            early_stop=False,
            guidance=1.0,
            end_guidance=1.0,
            top_k=0,
            top_p=1.0,
        )
        return replace(schedule, steps=self.setup.steps or schedule.steps)

    def step_schedule(self, steps: int) -> SamplingConfig:
        """A few steps, all at the mean proportion of the run file."""
        schedule = self.schedule()
        mean = sum(schedule.proportion_ramp) / 2
        return replace(schedule, steps=steps, sample_proportion=mean, end_sample_proportion=mean)


def twin(module: Any) -> Any:
    """A copy that shares parameters, and takes no compiled code along."""
    return copy.deepcopy(module, {id(p): p for p in module.parameters()})


class Costs:
    """Counted on a network without memory."""

    def __init__(self, cfg: RunConfig) -> None:
        with torch.device("meta"):
            self._net = build_network(cfg)
            self._classes = torch.zeros(1, dtype=torch.long) if cfg.net.conditional else None
            self._tokens = torch.zeros(1, prod(cfg.grid_shape), dtype=torch.long)
        self.parameters = sum(p.numel() for p in self._net.parameters())
        self._forward = cache(self._count)

    def forward(self, positions: int | None = None) -> int:
        """FLOP of one sample, with logits at so many positions, all unless given."""
        return self._forward(positions)

    def _count(self, positions: int | None) -> int:
        chosen = None if positions is None else self._tokens[:, :positions]
        return flop_of(lambda: self._net(self._tokens, self._classes, chosen))

    def sampling(self, schedule: SamplingConfig, all_logits: bool) -> int:
        """FLOP of one sample, all steps."""
        length = self._tokens.shape[1]
        if all_logits:
            return self.forward() * schedule.steps
        whole, none = self.forward(length), self.forward(0)
        shares = map(schedule.proportion_at, range(schedule.steps))
        logits = sum(max(1, round(share * length)) if share else 0 for share in shares)
        return none * schedule.steps + (whole - none) * logits // length


# -- jobs -----------------------------------------------------------------------------------------


def forward_job(bench: Bench, net: nn.Module | None, batch: int, amp: bool) -> Job | None:
    """Logits of a batch."""
    if net is None:
        return None
    tokens, classes = bench.tokens(batch), bench.classes(batch)

    @torch.no_grad()
    def run() -> None:
        with autocast(bench.device, "auto" if amp else "fp32"):
            net(tokens, classes)

    return Job(run)


def training_job(bench: Bench, net: HourglassTransformer | None, batch: int) -> Job | None:
    """An optimiser step as `sundae.training.trainer` does it, without its average."""
    if net is None:
        return None
    cfg, task, net = bench.cfg.trainer, PriorTask(bench.cfg), net.train()
    optimizer = make_optimizer(net, cfg, bench.device)
    data = batch_of(bench, batch)

    def run() -> None:
        generator = torch.Generator(bench.device).manual_seed(0)
        losses = task.losses(net, data, generator)
        for _ in range(task.num_losses):
            with autocast(bench.device, cfg.arithmetic):
                loss, _ = next(losses)
            (loss / task.num_losses).backward()
        if cfg.clip_grad:
            nn.utils.clip_grad_norm_(net.parameters(), cfg.clip_grad_value)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)  # the next way has the same parameters

    return Job(run, resident=lambda: state_bytes(optimizer), gradients=bytes_of(net.parameters()))


def textbook_training_job(bench: Bench, batch: int) -> Job:
    """The textbook's optimiser step."""
    cfg, net = bench.cfg.trainer, Textbook.around(bench.twin()).train()
    optimizer = adamw(net, cfg.learning_rate, cfg.betas, cfg.weight_decay)
    tokens, classes = bench.tokens(batch), bench.classes(batch)

    def run() -> None:
        training_step(
            net,
            optimizer,
            tokens,
            classes,
            vocab_size=bench.cfg.data.vocab_size,
            unroll_steps=bench.cfg.unroll_steps,
            clip=cfg.clip_grad_value if cfg.clip_grad else None,
        )

    return Job(run, resident=lambda: state_bytes(optimizer), gradients=bytes_of(net.parameters()))


def batch_of(bench: Bench, batch: int) -> dict[str, Tensor]:
    """What a data set gives the trainer."""
    classes = bench.classes(batch)
    data = {"tokens": bench.tokens(batch)}
    return data if classes is None else data | {"classes": classes}


def sampling_job(
    bench: Bench, prior: Prior, batch: int, schedule: SamplingConfig, warm_up: SamplingConfig | None
) -> Job | None:
    """Refine a batch from noise; None where compiling does not work.

    A CUDA graph is recorded when a kind of step runs for the second time, so all kinds do so here.
    """
    seeds = sample_seeds(0, batch).to(bench.device)
    classes = bench.classes(batch)

    def run(schedule: SamplingConfig) -> None:
        for _ in prior.refine(seeds, classes, schedule):
            pass

    for _ in range(2):
        run(warm_up or schedule)
    if prior.compiled is not None and not prior.compiled.works:
        return None
    return Job(lambda: run(schedule), lambda: None)


# -- memory ---------------------------------------------------------------------------------------


def bytes_of(tensors: Iterator[Tensor]) -> int:
    """Of all together."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Of what an optimiser keeps."""
    values = (value for state in optimizer.state.values() for value in state.values())
    return bytes_of(value for value in values if isinstance(value, Tensor))


def cuda_memory(job: Job) -> int:
    """Peak bytes of a run beyond what was there before it and beyond gradients."""
    before = memory("cuda", peak=False)
    torch.cuda.reset_peak_memory_stats()
    job.run()
    torch.cuda.synchronize()
    return max(0, memory("cuda", peak=True) - before - job.gradients)


def cpu_memory(track: Callable[[Bench, int], Track], setup: Setup, batch: int, name: str) -> int:
    """Peak bytes beyond weights, gradients and optimiser state; in a process of its own."""
    return int(in_child(_peak_in_child, track, setup, batch, name))


def _peak_in_child(
    track: Callable[[Bench, int], Track], setup: Setup, batch: int, name: str
) -> int:
    setup.begin()
    bench = Bench(setup, several=False)
    (way,) = (way for way in track(bench, batch).ways if way.name == name)
    _start_kernels(bench)
    before = memory("cpu", peak=False)
    job = way.make()
    assert job is not None
    (job.warm_up or job.run)()
    job.run()
    return max(0, memory("cpu", peak=True) - before - job.resident() - job.gradients)


def _start_kernels(bench: Bench) -> None:
    """Let the process take what it takes once: threads, libraries, and the network's weights."""
    _ = bench.net
    for precision in {"fp32", bench.precision}:
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        ones = torch.ones(64, 64, dtype=dtype, requires_grad=True)
        (ones @ ones).sum().backward()
