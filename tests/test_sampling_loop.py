"""How the loop of sampling runs: when it polls the device, its batches, what it compiles.

Samples are the same in every case; tests/test_sampling.py says what they are.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from conftest import make_schedule
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sundae.codec.interface import PixelCodec
from sundae.common.compiling import Compiled
from sundae.common.precision import Precision
from sundae.config.run_file import RunConfig
from sundae.config.sections import SamplingConfig
from sundae.prior.categorical import draw_seeds
from sundae.prior.network import build_network
from sundae.sampling.loop import Refinement, sample
from sundae.sampling.polling import DonePoller, PollPolicy
from sundae.sampling.sampler import BaseSampler, sample_seeds
from sundae.sampling.strategies import STRATEGIES

VOCAB, LENGTH, ROWS = 6, 16, 12
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
AS_ON_A_GPU = PollPolicy.for_device(CUDA, compiled=False)
EVERY_STRATEGY = pytest.mark.parametrize("strategy", STRATEGIES)


def undecided(tokens: Tensor, classes: Tensor | None) -> Tensor:
    """Rows settle after different times: each token stays or follows its left neighbour."""
    codes = torch.arange(VOCAB)
    stay, follow = (t[..., None] == codes for t in (tokens, tokens.roll(1, 1)))
    logits = (stay + 0.5 * follow).clamp(min=1e-6).log()
    return logits if classes is None else logits + 0.01 * classes[:, None, None]


def schedule_for(strategy: Any, steps: int = 40, **changes: Any) -> SamplingConfig:
    settings: dict[str, Any] = {"sample_proportion": 0.8, "end_sample_proportion": 0.4}
    return make_schedule(steps, 1.0, 0.6, min_steps=2, strategy=strategy, **settings | changes)


def states(schedule: SamplingConfig, *, rows: int = ROWS, **options: Any) -> Iterator[Refinement]:
    frozen = torch.rand(rows, LENGTH, generator=torch.Generator().manual_seed(1)) < 0.2
    return sample(
        options.pop("denoise", undecided),
        seeds=draw_seeds(rows, torch.Generator().manual_seed(0)),
        length=LENGTH,
        vocab_size=VOCAB,
        schedule=schedule,
        tokens=torch.arange(LENGTH).remainder(VOCAB).repeat(rows, 1),
        frozen=frozen,
        grid=(4, 4),
        **options,
    )


def last(schedule: SamplingConfig, **options: Any) -> Tensor:
    *_, state = states(schedule, **options)
    return state.tokens


class Waits(TorchDispatchMode):
    """Counts the operations that make a host wait for its device."""

    waiting = (
        *("_local_scalar_dense", "nonzero", "_unique2", "unique_dim", "masked_select", "equal"),
        "lift_fresh",  # of a tensor that was made of Python's numbers
    )

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        masks = name in ("index", "index_put", "index_put_") and any(
            part is not None and part.dtype == torch.bool for part in args[1]
        )
        if name in self.waiting or masks:
            self.counts[name] += 1
        return func(*args, **kwargs or {})


def test_the_counter_sees_what_makes_a_host_wait() -> None:
    x = torch.arange(4)
    with Waits() as waits:
        assert bool(x.any()) and x.sum().item() == 6
        x[x > 1], x.nonzero(), x.unique(), x[[0, 2]]
    assert waits.counts.total() == 6


@EVERY_STRATEGY
def test_the_device_is_polled_rarely(strategy: str) -> None:
    schedule = schedule_for(strategy, guidance=2.0)
    pace = PollPolicy(5, (1.0, 0.5))
    with Waits() as waits:
        steps = states(
            schedule, policy=pace, classes=torch.arange(ROWS), null_class=3, denoise=undecided
        )
        done = sum(1 for _ in steps) - 1
    assert done > 10
    assert waits.counts.total() <= done / 5 + 3


def test_the_network_does_not_synchronise(config: Callable[..., RunConfig]) -> None:
    net = build_network(config())
    tokens, classes = torch.zeros(2, LENGTH, dtype=torch.int64), torch.tensor([0, 1])
    with Waits() as waits:
        net(tokens, classes)
    assert not waits.counts


@EVERY_STRATEGY
@pytest.mark.parametrize(
    "pace", [AS_ON_A_GPU, PollPolicy(1, (1.0,)), PollPolicy(7, (1.0, 0.3, 0.1))], ids=str
)
def test_samples_do_not_depend_on_when_they_leave(strategy: str, pace: PollPolicy) -> None:
    schedule = schedule_for(strategy)
    expected = [state.tokens for state in states(schedule)]
    found = [state.tokens for state in states(schedule, policy=pace)]
    assert len(found) >= len(expected)  # it is noticed later that all are done
    expected += expected[-1:] * (len(found) - len(expected))
    assert all(torch.equal(a, b) for a, b in zip(found, expected))


def test_batches_shrink_to_few_sizes_and_nobody_who_is_not_done_is_left_out() -> None:
    sizes: list[int] = []

    def watched(tokens: Tensor, classes: Tensor | None) -> Tensor:
        sizes.append(len(tokens))
        return undecided(tokens, classes)

    schedule = schedule_for("random", 200)
    for pace in (AS_ON_A_GPU, PollPolicy.for_device(CPU, compiled=False)):
        sizes.clear()
        running = [s.num_running for s in states(schedule, rows=64, policy=pace, denoise=watched)]
        assert running == sorted(running, reverse=True)
        assert running[-1] == 0 and len(running) < 200
        assert sizes == sorted(sizes, reverse=True)
        assert set(sizes) <= set(pace.sizes(64))
        assert 3 < len(set(sizes)) < len(set(running))
        assert all(size >= left for size, left in zip(sizes, running))
        if pace.interval == 1:  # the smallest that fits
            assert all(
                size == min(n for n in pace.sizes(64) if n >= left)
                for size, left in zip(sizes, running)
            )


def test_a_batch_shrinks_by_eighths_on_the_cpu_and_by_halves_on_a_gpu() -> None:
    eighths = [0, 1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64]
    assert PollPolicy.for_device(CPU, compiled=False).sizes(64) == eighths
    assert PollPolicy.for_device(CUDA, compiled=False).sizes(64) == [0, 1, 2, 4, 8, 16, 32, 64]
    assert PollPolicy.for_device(CUDA, compiled=True).sizes(64) == [0, 1, 4, 16, 64]
    assert PollPolicy.for_device(CPU, compiled=False).sizes(3) == [0, 1, 2, 3]


def test_a_result_is_read_at_the_next_poll() -> None:
    done = torch.tensor([[n < left for n in range(10)] for left in range(10)])
    patient, eager = DonePoller(PollPolicy(3, (1.0,)), 10), DonePoller(PollPolicy(1, (1.0,)), 10)
    assert [patient.poll(row) for row in done] == [10, 10, 10, 10, 10, 8, 8, 8, 5, 5]
    assert [eager.poll(row) for row in done] == [10, 9, 8, 7, 6, 5, 4, 3, 2, 1]


# -- compiled -------------------------------------------------------------------------------------


class Graphs:
    """A compiler that runs what it gets, and keeps it."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        self.sizes.append(len(graph.graph.nodes))
        return graph.forward


@pytest.mark.parametrize(
    ("strategy", "kinds"),
    [
        ("random", 1),
        ("halton", 1),
        ("confidence", 1),
        ("argmax", 2),
        ("renoise", 4),
        ("posterior", 1),
    ],
)
def test_a_step_is_compiled_once_for_each_of_few_sizes(
    strategy: str, kinds: int, capsys: pytest.CaptureFixture[str]
) -> None:
    torch._dynamo.reset()
    graphs = Graphs()
    compiled = Compiled(CPU, backend=graphs)
    changes = {"early_stop": False, "end_sample_proportion": 0.75, "choice_temperature": 2.0}
    schedule = schedule_for(strategy, 12, **changes)
    expected = last(schedule)
    for _ in range(2):
        assert torch.equal(last(schedule, compiled=compiled), expected)
    assert compiled.works and capsys.readouterr().err == ""
    assert len(graphs.sizes) <= kinds
    assert min(graphs.sizes) > 20  # whole steps, no splinters


def test_kinds_of_steps_that_occur_once_are_not_compiled() -> None:
    torch._dynamo.reset()
    graphs = Graphs()
    schedule = make_schedule(16, 1.0, 0.0, 0.5, 0.5, early_stop=False)  # argmax in the last step
    found = last(schedule, compiled=Compiled(CPU, backend=graphs))
    assert torch.equal(found, last(schedule))
    assert len(graphs.sizes) == 1


def test_where_nothing_compiles_that_is_said_in_a_line_and_the_samples_are_the_same(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def broken(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        raise RuntimeError("no Triton here\nand a long story")

    torch._dynamo.reset()
    schedule = schedule_for("random", 6)
    compiled = Compiled(CPU, backend=broken)
    assert torch.equal(last(schedule, compiled=compiled), last(schedule))
    error = capsys.readouterr().err
    assert "no Triton here" in error and error.count("\n") == 1
    assert torch.equal(last(schedule, compiled=compiled), last(schedule))
    last(schedule, compiled=Compiled(CPU, quiet=True, backend=broken))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("precision", "side", "options"),
    [("fp32", 4, {}), ("bf16", 4, {"backend": Graphs()}), ("fp32", 6, {"backend": Graphs()})],
    ids=["all of it", "bf16", "windows"],
)
def test_a_compiled_network_draws_the_same_samples(
    precision: Precision,
    side: int,
    options: dict[str, Any],
    config: Callable[..., RunConfig],
) -> None:
    """The only test that goes through the whole compiler, which takes a while."""
    torch._dynamo.reset()
    cfg = config({"net.type": "transformer", "net.depth": 1})
    net = build_network(cfg)
    torch.nn.init.normal_(net.to_logits.weight)
    sampler = BaseSampler(net, PixelCodec(5), cfg, precision=precision)
    schedule = make_schedule(6, 0.9, 0.8, 0.5, 0.5, min_steps=6)

    def drawn() -> list[Tensor]:
        rows = (sample_seeds(0, 6), torch.arange(6) % 3, schedule)
        return [state.tokens for state in sampler.refine_tokens(*rows, canvas=(side, side))]

    expected = drawn()
    sampler.compiled = Compiled(CPU, quiet=True, **options)
    found = drawn()
    if not sampler.compiled.works and not options:
        pytest.skip("no C++ compiler on this machine")
    assert sampler.compiled.works
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert options == {} or len(options["backend"].sizes) == 1
