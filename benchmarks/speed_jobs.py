"""What `speed.py` runs: the network at a size, variants of the same work, their costs."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from measuring import in_child, memory
from textbook import Textbook, adamw, training_step
from torch import Tensor, nn

from hourglass_transformer import HourglassTransformer
from sundae.codec.interface import PixelCodec
from sundae.common.compiling import compile_modules
from sundae.common.precision import autocast, has_bf16
from sundae.config.run_file import RunConfig, load_config
from sundae.config.sections import SamplingConfig
from sundae.evaluation.cost import Cost
from sundae.prior.network import build_network
from sundae.sampling.sampler import BaseSampler, sample_seeds
from sundae.training.optimizers import make_optimizer
from sundae.training.prior import PriorTask

CONFIGS = Path(__file__).resolve().parents[1] / "config"
TEXTBOOK = "textbook fp32"

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
        paths: regular expression that the names of the measured variants match.
    """

    config: Path
    overrides: tuple[str, ...] = ()
    codec_config: Path | None = None
    device: str = "cpu"
    threads: int = 1
    rounds: int = 1
    steps: int | None = None
    compiles: bool = False
    memory: bool = False
    limit: float = 0
    paths: str = ""

    def selects(self, variant: Variant) -> bool:
        """Whether a variant is measured; without rounds, compiled ones are only compiled."""
        return self.selects_name(variant.name) and (variant.compiled or self.rounds > 0)

    def selects_name(self, name: str) -> bool:
        """Whether a variant of this name is measured."""
        return re.search(self.paths, name) is not None

    def begin(self) -> None:
        """Configures the process that measures; float32 stays float32 in convolutions, too."""
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
class Variant:
    """One implementation of the work of a track.

    Attributes:
        make: the job, or None where torch.compile does not work.
        precision: of its matrix products, fp32 or bf16.
        flop: of one call, matrix products only.
        evaluations: of the network for one image.
        graphs: whether it replays CUDA graphs, whose memory is taken once, not by each call.
    """

    name: str
    make: Callable[[], Job | None]
    precision: str
    parameters: int
    flop: int
    evaluations: int | None = None
    compiled: bool = False
    graphs: bool = False


@dataclass(frozen=True)
class Track:
    """Variants of the same work; the first is what the others are compared with.

    Attributes:
        images: of one call.
        parts: how many times a call does the work.
    """

    name: str
    title: str
    variants: list[Variant]
    images: int
    parts: int = 1


class Bench:
    """The network of a setup, random weights, on its device; variants share its parameters."""

    def __init__(self, setup: Setup, cfg: RunConfig | None = None, *, single: bool = False) -> None:
        """single: only one variant is made, which may own the network."""
        self.setup, self.single = setup, single
        self.cfg = cfg or load_config(setup.config, setup.overrides)
        self.device = torch.device(setup.device)
        self.precision = "bf16" if has_bf16(self.device) else "fp32"

    @cached_property
    def net(self) -> HourglassTransformer:
        """Initialised as for training."""
        torch.manual_seed(0)
        with self.device:
            return build_network(self.cfg).eval()

    @cached_property
    def cost(self) -> Cost:
        """Parameters and FLOPs."""
        return Cost(self.cfg)

    def twin(self) -> HourglassTransformer:
        """A network of its own with the same parameters, not copies of them."""
        return twin(self.net)

    def compiled_net(self) -> HourglassTransformer | None:
        """A compiled twin, or None where compiling does not work."""
        net = self.twin()
        return net if compile_modules(net) else None

    def sampler(self, compiled: bool) -> BaseSampler:
        """Of tokens only, with a network of its own."""
        net = self.net if self.single else copy.deepcopy(self.net)
        return BaseSampler(net, PixelCodec(2), self.cfg, device=self.device, owns_network=True,
                           compile=compiled, quiet=False)  # fmt: skip

    def tokens(self, batch: int) -> Tensor:
        """(batch, length) int64, random, the same every time."""
        generator = torch.Generator().manual_seed(0)
        shape = (batch, self.cfg.data.sequence_length)
        return torch.randint(self.cfg.data.vocab_size, shape, generator=generator).to(self.device)

    def classes(self, batch: int) -> Tensor | None:
        """(batch,) int64 for a conditional network."""
        net = self.cfg.net
        numbers = torch.arange(batch, device=self.device)
        return numbers % net.num_classes if net.conditional else None

    def sampling(self, steps: int | None = None) -> SamplingConfig:
        """The run file's, with the paper's strategy, without guidance or early stopping."""
        return replace(
            self.cfg.sampling,
            steps=steps or self.setup.steps or self.cfg.sampling.steps,
            strategy="random",
            early_stop=False,
            guidance=1.0,
            end_guidance=None,
            top_k=0,
            top_p=1.0,
        )

    def eager_and_compiled(self) -> list[tuple[str, bool]]:
        """(name, compiled) of our own variants."""
        found = [(f"ours {self.precision}", False), (f"ours {self.precision} compiled", True)]
        return found[: 1 + self.setup.compiles]


def twin(module: Any) -> Any:
    """A copy that shares parameters and has no compiled code."""
    return copy.deepcopy(module, {id(p): p for p in module.parameters()})


# -- jobs -----------------------------------------------------------------------------------------


def forward_job(bench: Bench, net: nn.Module | None, batch: int, precision: Any) -> Job | None:
    """Logits of a batch."""
    if net is None:
        return None
    tokens, classes = bench.tokens(batch), bench.classes(batch)

    @torch.no_grad()
    def run() -> None:
        with autocast(bench.device, precision):
            net(tokens, classes)

    return Job(run)


def training_job(bench: Bench, net: HourglassTransformer | None, batch: int) -> Job | None:
    """An optimiser step as `sundae.training.trainer` does it, without its average."""
    if net is None:
        return None
    cfg, task, net = bench.cfg.trainer, PriorTask(bench.cfg), net.train()
    optimizer = make_optimizer(net, cfg, bench.device)
    data, classes = {"tokens": bench.tokens(batch)}, bench.classes(batch)
    if classes is not None:
        data["classes"] = classes

    def run() -> None:
        generator = torch.Generator(bench.device).manual_seed(0)
        losses = task.losses(net, data, generator)
        for _ in range(task.num_losses):
            with autocast(bench.device, bench.precision):
                loss, _ = next(losses)
            (loss / task.num_losses).backward()
        if cfg.clip_grad:
            nn.utils.clip_grad_norm_(net.parameters(), cfg.clip_grad_value)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)  # the next variant has the same parameters

    return Job(run, resident=lambda: state_bytes(optimizer), gradients=bytes_of(net.parameters()))


def textbook_training_job(bench: Bench, batch: int) -> Job:
    """The textbook's optimiser step."""
    cfg, net = bench.cfg.trainer, Textbook.around(bench.twin()).train()
    optimizer = adamw(net, cfg.learning_rate, cfg.betas, cfg.weight_decay)
    tokens, classes = bench.tokens(batch), bench.classes(batch)

    def run() -> None:
        training_step(net, optimizer, tokens, classes, vocab_size=bench.cfg.data.vocab_size,
                      unroll_steps=bench.cfg.unroll_steps,
                      clip=cfg.clip_grad_value if cfg.clip_grad else None)  # fmt: skip

    return Job(run, resident=lambda: state_bytes(optimizer), gradients=bytes_of(net.parameters()))


def sampling_job(
    bench: Bench, compiled: bool, batch: int, sampling: SamplingConfig, warm_up: SamplingConfig
) -> Job | None:
    """Refine a batch from noise; None where compiling does not work.

    A CUDA graph is recorded when a kind of step runs for the second time, so all kinds do so here.
    """
    sampler, seeds, classes = bench.sampler(compiled), sample_seeds(0, batch), bench.classes(batch)

    def run(sampling: SamplingConfig) -> None:
        for _ in sampler.refine_tokens(seeds, classes, sampling, batch_size=batch):
            pass

    for _ in range(2):
        run(warm_up)
    if sampler.compiled is not None and not sampler.compiled.works:
        return None
    return Job(lambda: run(sampling), lambda: None)


# -- memory ---------------------------------------------------------------------------------------


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Of all together."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Of an optimiser's state."""
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
    bench = Bench(setup, single=True)
    (variant,) = (v for v in track(bench, batch).variants if v.name == name)
    _ = bench.net
    for precision in {"fp32", bench.precision}:  # threads and libraries are loaded once
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        ones = torch.ones(64, 64, dtype=dtype, requires_grad=True)
        (ones @ ones).sum().backward()
    before = memory("cpu", peak=False)
    job = variant.make()
    assert job is not None
    (job.warm_up or job.run)()
    job.run()
    return max(0, memory("cpu", peak=True) - before - job.resident() - job.gradients)
