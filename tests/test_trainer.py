"""The loop: resuming changes nothing, accumulation is the full batch, the best is kept."""

import copy
import csv
import json
import math
import shutil
import signal
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from conftest import contents
from torch import Tensor, nn

from sundae.common.errors import UserError
from sundae.common.finite import NonFiniteError
from sundae.config.run_file import RunConfig
from sundae.data.dataset import collate_batched
from sundae.prior.checkpoint import CheckpointInfo, open_checkpoint
from sundae.prior.network import build_network
from sundae.prior.run import list_checkpoints
from sundae.training.batches import split_batch
from sundae.training.ema import EMA
from sundae.training.logbook import Logbook
from sundae.training.metrics import Means, PartialSum
from sundae.training.optimizers import hidden_matrices, make_optimizer
from sundae.training.prior import PriorTask, open_datasets
from sundae.training.trainer import Task, Trainer

Config = Callable[..., RunConfig]
Metrics = dict[str, Tensor]

SGD = {"trainer.optimizer_name": "sgd", "trainer.learning_rate": 1.0}


class Fit:
    """Fits a line to the class by the brightness: a task without randomness.

    Attributes:
        seen: the classes of every batch, in training and in evaluation.
        noise: a number drawn from the generator for every batch.
    """

    watched = "loss"

    def __init__(self, num_losses: int = 1) -> None:
        self.num_losses = num_losses
        self.seen: list[list[int]] = []
        self.noise: list[float] = []

    def losses(
        self, net: nn.Module, batch: Metrics, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Metrics]]:
        self.seen.append(batch["classes"].tolist())
        self.noise.append(torch.rand((), generator=generator).item())
        for part in range(self.num_losses):
            error = net(batch["tokens"].float())[:, 0] - batch["classes"].float() - part
            yield self.of(net, error.square().mean())

    def of(self, net: nn.Module, loss: Tensor) -> tuple[Tensor, Metrics]:
        return loss, {"loss": loss}


class Slope(Fit):
    """Its loss has a gradient of 1 for every weight, whatever the data; its metric is a weight."""

    def of(self, net: nn.Module, loss: Tensor) -> tuple[Tensor, Metrics]:
        total = sum((p.sum() for p in net.parameters()), torch.tensor(0.0))
        return total, {"loss": next(net.parameters()).flatten()[0].clone()}


class Told(Slope):
    """Its held-out loss follows a list, one entry an evaluation."""

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self.values = iter(values)

    def of(self, net: nn.Module, loss: Tensor) -> tuple[Tensor, Metrics]:
        total, metrics = super().of(net, loss)
        if not torch.is_grad_enabled():
            metrics = {"loss": torch.tensor(next(self.values))}
        return total, metrics


@pytest.fixture(autouse=True)
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing the curves takes longer than everything else here; test_logbook.py looks at them."""
    monkeypatch.setattr("sundae.training.logbook.draw_curves", lambda rows, path: None)


def line() -> nn.Linear:
    """16 weights and no bias, always the same."""
    net = nn.Linear(16, 1, bias=False)
    nn.init.constant_(net.weight, 0.25)
    return net


def make(
    cfg: RunConfig,
    run: Path | None = None,
    task: Task | None = None,
    net: nn.Module | None = None,
    seed: int = 0,
) -> Trainer:
    """A trainer of the tiny network, or of a fake one."""
    if run is not None:
        run.mkdir(exist_ok=True)
    torch.manual_seed(seed)
    return Trainer(
        cfg.trainer,
        task or PriorTask(cfg),
        net or build_network(cfg),
        open_datasets(cfg, "pixels-5"),
        accelerator=Accelerator(cpu=True),
        logbook=Logbook(run, quiet=True),
        info=CheckpointInfo(0, cfg.to_dict(), "pixels-5", seed=seed),
    )


def after_step(trainer: Trainer, step: int, action: Callable[[], None]) -> None:
    """Make a trainer do something right after an optimiser step."""
    update = trainer._update

    def update_and_act(batches: Iterator[Metrics]) -> None:
        update(batches)
        if trainer.step == step:
            action()

    trainer._update = update_and_act  # type: ignore[method-assign]


def ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def rows_of(run: Path) -> list[dict[str, str]]:
    """curves.csv without what the clock says."""
    with (run / "curves.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    clock = ("seconds", "samples_per_s")
    return [{k: v for k, v in row.items() if k not in clock} for row in rows]


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested dictionaries and lists as one dictionary of leaves."""
    if isinstance(value, (dict, list, tuple)):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, inner in pairs for k, v in flat(inner, f"{name}/{key}").items()}
    return {name: value}


def assert_same_checkpoint(one: Path, other: Path) -> None:
    """Everything a run goes on from is equal, bit for bit."""
    states = [flat(open_checkpoint(run, prefer_best=False).load_training()) for run in (one, other)]
    assert states[0].keys() == states[1].keys()
    assert "/0/token_embedding.weight" in states[0]
    for key in states[0].keys() - {"/2/progress/elapsed"}:
        left, right = (state[key] for state in states)
        equal = torch.equal(left, right) if isinstance(left, Tensor) else left == right
        assert equal, key


# -- resuming -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"trainer.mini_batch_size": 4, "trainer.clip_grad": True, "trainer.clip_grad_value": 0.1},
        {"net.ff_dropout": 0.3, "net.attn_dropout": 0.3, "net.emb_dropout": 0.3},
        {"trainer.ema_decay": 0.0, "trainer.lr_scheduler_name": "cosine_with_warmup"},
        {"trainer.optimizer_name": "sgd", "unroll_steps": 3},
        {"trainer.optimizer_name": "muon"},
    ],
    ids=["plain", "accumulation", "dropout", "schedule-without-average", "sgd", "muon"],
)
def test_a_run_that_is_stopped_and_resumed_ends_as_if_it_had_not_been(
    config: Config, tmp_path: Path, changes: dict[str, Any]
) -> None:
    if "trainer.lr_scheduler_name" in changes:
        kwargs = {"nb_warmup_steps": 2, "nb_training_steps": 9}
        changes = changes | {"trainer.lr_scheduler_kwargs": kwargs}
    # Evaluated after 3 steps and at the end: the stop falls between two evaluations.
    batches = 3 * (8 // changes.get("trainer.mini_batch_size", 8))
    cfg = config(changes | {"trainer.max_steps": 4, "trainer.nb_batches": [batches, 0]})
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    make(cfg, straight).train()

    first = make(cfg, stopped)
    after_step(first, 2, ctrl_c)
    first.train()
    assert (first.step, first.stopped_by) == (2, signal.SIGINT)
    assert not (stopped / "curves.csv").exists()
    second = make(cfg, stopped)
    nn.init.constant_(second.state.bare_net.to_logits.weight, 9.0)  # type: ignore[union-attr, arg-type]
    second.resume(open_checkpoint(stopped, prefer_best=False))
    second.train()

    assert (second.step, second.stopped_by) == (4, None)
    assert_same_checkpoint(straight, stopped)
    assert rows_of(straight) == rows_of(stopped)
    assert [row["step"] for row in rows_of(straight)] == ["3.0", "4.0"]
    assert json.loads((straight / "best.json").read_text()) == json.loads(
        (stopped / "best.json").read_text()
    )


def test_what_came_after_the_checkpoint_is_forgotten(config: Config, tmp_path: Path) -> None:
    cfg = config({"trainer.max_steps": 6, "trainer.checkpoint_frequency": 2})
    make(cfg, tmp_path).train()
    before = rows_of(tmp_path)
    trainer = make(cfg, tmp_path)
    trainer.resume(open_checkpoint(tmp_path / "checkpoints" / "step-0000002"))
    trainer.train()
    assert rows_of(tmp_path) == before
    assert [row["step"] for row in before] == ["2.0", "4.0", "6.0"]


def test_a_finished_run_stays_as_it_is(config: Config, tmp_path: Path) -> None:
    make(config(), tmp_path).train()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    trainer = make(config(), tmp_path)
    trainer.resume(open_checkpoint(tmp_path, prefer_best=False))
    trainer.train()
    assert trainer.step == 2
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_resuming_takes_the_moments_from_the_checkpoint_and_the_rest_from_the_run_file(
    config: Config, tmp_path: Path
) -> None:
    make(config(), tmp_path).train()
    changes = {"trainer.weight_decay": 0.5, "trainer.betas": [0.5, 0.6], "trainer.max_steps": 3}
    trainer = make(config(changes | {"trainer.learning_rate": 0.125}), tmp_path)
    checkpoint = open_checkpoint(tmp_path, prefer_best=False)
    trainer.resume(checkpoint)
    saved = checkpoint.load_training()[2]["optimizer"]["state"][0]["exp_avg"]
    state = trainer.state.optimizer.state_dict()
    assert torch.equal(state["state"][0]["exp_avg"], saved)
    group = state["param_groups"][0]
    assert (group["weight_decay"], tuple(group["betas"])) == (0.5, (0.5, 0.6))
    trainer.train()
    assert rows_of(tmp_path)[-1]["lr"] == "0.125"


def test_another_optimiser_cannot_go_on(config: Config, tmp_path: Path) -> None:
    make(config(), tmp_path).train()
    trainer = make(config({"trainer.optimizer_name": "sgd"}))
    with pytest.raises(UserError, match="optimizer_name = adamw, which cannot go on as sgd"):
        trainer.resume(open_checkpoint(tmp_path))


@pytest.mark.parametrize(
    "state",
    [[1], {}, {"optimizer": None, "progress": {}}, {"optimizer": {}, "progress": {}}, "progress"],
)
def test_a_damaged_training_state_is_one_line(config: Config, tmp_path: Path, state: Any) -> None:
    make(config(), tmp_path).train()
    path = list_checkpoints(tmp_path)[-1] / "training.pt"
    if state == "progress":
        state = torch.load(path) | {"progress": {"best": None}}
    torch.save(state, path)
    with pytest.raises(UserError, match="the state of the training does not fit"):
        make(config()).resume(open_checkpoint(tmp_path))


def test_an_average_can_be_switched_on_and_off_on_resume(config: Config, tmp_path: Path) -> None:
    without = config({"trainer.ema_decay": 0.0})
    make(without, tmp_path / "a").train()
    trainer = make(config())
    trainer.resume(open_checkpoint(tmp_path / "a"))
    raw = trainer.state.bare_net.state_dict()
    assert all(torch.equal(raw[k], v) for k, v in trainer.state.eval_net.state_dict().items())
    make(config(), tmp_path / "b").train()
    trainer = make(without)
    trainer.resume(open_checkpoint(tmp_path / "b"))
    assert trainer.state.eval_net is trainer.state.bare_net


# -- one optimiser step -------------------------------------------------------------------------


@pytest.mark.parametrize("num_losses", [1, 2])
def test_gradient_accumulation_is_the_full_batch(config: Config, num_losses: int) -> None:
    nets = []
    for mini in (8, 2):
        changes = SGD | {"trainer.learning_rate": 1e-3, "trainer.mini_batch_size": mini}
        trainer = make(config(changes | {"trainer.max_steps": 3}), None, Fit(num_losses), line())
        trainer.train()
        nets.append(trainer.state.bare_net.weight)
    assert torch.allclose(nets[0], nets[1], rtol=1e-5)
    assert not torch.allclose(nets[0], line().weight, rtol=1e-2)


def test_the_gradient_is_that_of_the_mean_over_parts_and_rows(config: Config) -> None:
    cfg = config(SGD | {"trainer.max_steps": 1, "trainer.batch_size": 24})
    trainer = make(cfg, None, Fit(num_losses=2), line())
    reference = line()
    batch = trainer.batches.train_data.__getitems__(range(24))
    losses = [loss for loss, _ in Fit(2).losses(reference, batch, torch.Generator())]
    torch.stack(losses).mean().backward()
    trainer.train()
    assert reference.weight.grad is not None
    expected = reference.weight.detach() - reference.weight.grad
    assert torch.allclose(trainer.state.bare_net.weight, expected, rtol=1e-5)


@pytest.mark.parametrize(("clips", "length"), [(True, 0.5), (False, 4.0)])
def test_clipping_limits_the_norm_of_the_gradient(
    config: Config, clips: bool, length: float
) -> None:
    changes = SGD | {"trainer.clip_grad": clips, "trainer.clip_grad_value": 0.5}
    trainer = make(config(changes | {"trainer.max_steps": 1}), None, Slope(), line())
    trainer.train()
    moved = trainer.state.bare_net.weight - line().weight
    assert moved.norm().item() == pytest.approx(length, rel=1e-4)


def test_the_rate_follows_the_schedule(config: Config) -> None:
    changes = SGD | {
        "trainer.max_steps": 4,
        "trainer.lr_scheduler_name": "constant_with_warmup",
        "trainer.lr_scheduler_kwargs": {"nb_warmup_steps": 2},
        "trainer.nb_batches": [1, 1],
    }
    trainer = make(config(changes), None, Slope(), line())
    trainer.train()
    rates = [row["lr"] for row in trainer.logbook.rows]
    assert rates == [0.0, 0.5, 1.0, 1.0]
    assert trainer.state.bare_net.weight[0, 0].item() == pytest.approx(0.25 - sum(rates))


def test_weight_decay_spares_embeddings_and_vectors(config: Config) -> None:
    cfg = config({"trainer.weight_decay": 0.3}).trainer
    net = nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 4), nn.LayerNorm(4))
    groups = make_optimizer(net, cfg, torch.device("cpu")).param_groups
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    assert [p is net[1].weight for p in groups[0]["params"]] == [True]
    assert len(groups[1]["params"]) == 4


def test_muon_takes_the_hidden_matrices_and_adamw_the_rest(config: Config) -> None:
    cfg = config({"trainer.optimizer_name": "muon", "trainer.weight_decay": 0.3})
    net = build_network(cfg)
    names = {id(p): name for name, p in net.named_parameters()}
    hidden, ends, rest = make_optimizer(net, cfg.trainer, torch.device("cpu")).param_groups
    assert [group["weight_decay"] for group in (hidden, ends, rest)] == [0.3, 0.3, 0.0]
    assert [names[id(p)] for p in ends["params"]] == ["to_logits.weight"]
    inside = {name for name in names.values() if name.endswith(("qkv.weight", "up.weight"))}
    assert inside < {names[id(p)] for p in hidden["params"]}
    assert {"token_embedding.weight", "norm.weight"} < {names[id(p)] for p in rest["params"]}
    assert sum(len(group["params"]) for group in (hidden, ends, rest)) == len(names)


def test_muon_is_torchs_also_after_a_checkpoint(config: Config) -> None:
    """Parts of torch.optim side by side, and the state of one optimiser loaded into another."""
    cfg = config({"trainer.optimizer_name": "muon", "trainer.weight_decay": 0.3}).trainer
    made = build_network(config())
    ours, theirs = copy.deepcopy(made), copy.deepcopy(made)
    optimizer = make_optimizer(ours, cfg, torch.device("cpu"))
    head, matrices = theirs.to_logits.weight, hidden_matrices(theirs)
    taken = {id(p) for p in (head, *matrices)}
    rest = [p for p in theirs.parameters() if id(p) not in taken]
    parts = [
        torch.optim.Muon(
            matrices, lr=cfg.learning_rate, weight_decay=0.3, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW([head], lr=cfg.learning_rate, betas=cfg.betas, weight_decay=0.3),
        torch.optim.AdamW(rest, lr=cfg.learning_rate, betas=cfg.betas, weight_decay=0.0),
    ]
    for step in range(3):
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            one.grad = (one.detach() + step).sin()
            other.grad = one.grad.clone()
        for part in (optimizer, *parts):
            part.step()
        again = make_optimizer(ours, cfg, torch.device("cpu"))
        again.load_state_dict(optimizer.state_dict())
        optimizer = again
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_a_batch_is_shared_out_evenly_or_refused(config: Config) -> None:
    cfg = config({"trainer.batch_size": 12, "trainer.mini_batch_size": 2}).trainer
    assert [split_batch(cfg, processes)[1] for processes in (1, 2, 3)] == [6, 3, 2]
    with pytest.raises(UserError, match=r"batch_size \(12\) is not a multiple .* 4 processes"):
        split_batch(cfg, 4)
    whole = config({"trainer.batch_size": 12}).trainer
    assert split_batch(whole, 3) == (4, 1)  # an unset mini-batch is the process's share


# -- randomness and data ------------------------------------------------------------------------


def test_every_epoch_shows_every_row_once(config: Config) -> None:
    task = Fit()
    trainer = make(config({"trainer.max_steps": 6}), None, task, line())
    trainer.evaluate = lambda: {"loss": 0.0}  # type: ignore[method-assign]
    trainer.train()
    first, second = (list(chain(*task.seen[start : start + 3])) for start in (0, 3))
    assert sorted(first) == sorted(second) == sorted([0, 1, 2] * 8)
    assert first != second


def test_noise_differs_between_batches_and_repeats_with_the_seed(config: Config) -> None:
    noise = []
    for seed in (0, 0, 1):
        task = Fit()
        changes = {"trainer.max_steps": 3, "trainer.mini_batch_size": 4}
        make(config(changes), None, task, line(), seed).train()
        noise.append(task.noise)
    assert noise[0] == noise[1]
    assert not set(noise[0]) & set(noise[2])
    assert len(set(noise[0][:4])) == 4


def test_workers_that_read_data_change_nothing(config: Config) -> None:
    nets = []
    for workers in (0, 1):
        trainer = make(config({"trainer.nb_workers": workers}), None, Fit(), line())
        trainer.train()
        nets.append(trainer.state.bare_net.weight)
    assert torch.equal(*nets)


def test_the_held_out_noise_is_the_same_at_every_evaluation(config: Config) -> None:
    cfg = config({"trainer.mini_batch_size": 4})
    torch.manual_seed(5)
    net = build_network(cfg)
    nn.init.normal_(net.to_logits.weight)  # a fresh network's logits are zero
    trainer, other = make(cfg, net=net), make(cfg, net=net, seed=1)
    weights = {name: value.clone() for name, value in net.state_dict().items()}
    first = trainer.evaluate()
    trainer._update(trainer.batches.training(0))
    assert trainer.evaluate() != first
    trainer.state.eval_net.load_state_dict(weights)
    assert trainer.evaluate() == first
    assert other.evaluate() != first


def test_evaluation_weighs_every_held_out_row_once(config: Config) -> None:
    task = Fit()
    changes = {"trainer.batch_size": 5, "trainer.mini_batch_size": 5}
    trainer = make(config(changes), None, task, line())
    loss = trainer.evaluate()["loss"]
    assert [len(batch) for batch in task.seen] == [5, 5, 2]
    assert sorted(chain(*task.seen)) == sorted([0, 1, 2] * 4)
    everything = collate_batched(trainer.batches.eval_data.__getitems__(range(12)))
    whole, _ = next(Fit().losses(line(), everything, torch.Generator()))
    assert loss == pytest.approx(whole.item(), rel=1e-6)


def test_evaluation_can_be_limited_to_some_batches(config: Config) -> None:
    task = Fit()
    trainer = make(config({"trainer.nb_batches": [2, 1]}), None, task, line())
    trainer.evaluate()
    trainer.evaluate()
    assert [len(batch) for batch in task.seen] == [8, 8]
    assert task.seen[0] == task.seen[1]


def test_evaluation_comes_every_so_many_batches_and_at_the_end(config: Config) -> None:
    changes = {"trainer.mini_batch_size": 4, "trainer.nb_batches": [4, 1], "trainer.max_steps": 5}
    trainer = make(config(changes), None, Slope(), line())
    trainer.train()
    assert [row["step"] for row in trainer.logbook.rows] == [2.0, 4.0, 5.0]


@pytest.mark.parametrize("main", [True, False], ids=["main-process", "other-process"])
def test_hooks_are_called_after_evaluations_and_checkpoints_in_the_main_process(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, main: bool
) -> None:
    changes = {"trainer.nb_batches": [2, 0], "trainer.max_steps": 5}
    cfg = config(changes | {"trainer.checkpoint_frequency": 3, "trainer.checkpoint_best": False})
    trainer = make(cfg, tmp_path, Slope(), line())
    monkeypatch.setattr(Accelerator, "is_main_process", main)
    evaluations: list[int] = []
    checkpoints: list[tuple[int, int]] = []
    trainer.on_evaluation.append(lambda t: evaluations.append(t.step))
    trainer.on_save.append(lambda t: checkpoints.append((t.step, len(list_checkpoints(tmp_path)))))
    trainer.train()
    assert evaluations == ([2, 4, 5] if main else [])
    assert checkpoints == ([(3, 1), (5, 2)] if main else [])


# -- the average --------------------------------------------------------------------------------


def test_the_average_starts_quickly_and_ends_at_its_decay() -> None:
    net = line()
    ema = EMA(net, decay=0.25)
    for value in (1.25, 0.0):
        nn.init.constant_(net.weight, value)
        ema.update(net)
    first = 0.25 * 2 / 11 + 1.25 * 9 / 11  # (1 + 1) / (10 + 1) is still below 0.25
    second = first * 0.25  # (1 + 2) / (10 + 2) has reached it
    assert torch.allclose(ema.net.weight, torch.tensor(second))
    assert not ema.net.weight.requires_grad


@pytest.mark.parametrize("decay", [0.5, 0.0])
def test_evaluation_uses_the_average_where_there_is_one(config: Config, decay: float) -> None:
    cfg = config(SGD | {"trainer.ema_decay": decay, "trainer.max_steps": 1})
    trainer = make(cfg, None, Slope(), line())
    trainer.train()
    raw = 0.25 - 1.0
    expected = 0.25 + (raw - 0.25) * 9 / 11 if decay else raw
    assert trainer.evaluate()["loss"] == pytest.approx(expected, rel=1e-6)
    assert trainer.logbook.rows[-1]["eval/loss"] == pytest.approx(expected, rel=1e-6)


def test_evaluation_switches_dropout_off_and_training_on(config: Config) -> None:
    modes: dict[bool, set[bool]] = {True: set(), False: set()}

    class DonePoller(Slope):
        def of(self, net: nn.Module, loss: Tensor) -> tuple[Tensor, Metrics]:
            modes[torch.is_grad_enabled()].add(net.training)
            return super().of(net, loss)

    changes = {"trainer.ema_decay": 0.0, "trainer.max_steps": 4, "trainer.nb_batches": [1, 1]}
    make(config(changes), None, DonePoller(), line()).train()
    assert modes == {True: {True}, False: {False}}


# -- what is kept -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("direction", "best", "kept"),
    [("des", 2, [2, 4]), ("asc", 3, [3, 4])],
)
def test_the_best_is_remembered_and_spared(
    config: Config, tmp_path: Path, direction: str, best: int, kept: list[int]
) -> None:
    changes = {
        "trainer.max_steps": 4,
        "trainer.nb_batches": [1, 0],
        "trainer.mini_batch_size": 8,
        "trainer.batch_size": 8,
        "trainer.checkpoint_frequency": 1,
        "trainer.keep_checkpoints": 1,
        "trainer.metric_best": ["loss", direction],
    }
    # Two batches an evaluation, of 8 and 4 rows.
    values = [value for value in (3.0, 1.0, 9.0, 2.0) for _ in range(2)]
    make(config(changes), tmp_path, Told(values), line()).train()
    names = [f"step-{step:07d}" for step in kept]
    assert [folder.name for folder in list_checkpoints(tmp_path)] == names
    assert open_checkpoint(tmp_path).info.step == best
    assert open_checkpoint(tmp_path, prefer_best=False).info.step == 4
    assert json.loads((tmp_path / "best.json").read_text())["value"] == (1.0 if best == 2 else 9.0)
    assert open_checkpoint(tmp_path).info.metrics["eval/loss"] == (1.0 if best == 2 else 9.0)


def test_the_best_of_an_earlier_part_of_the_run_stays_the_best(
    config: Config, tmp_path: Path
) -> None:
    changes = {"trainer.nb_batches": [1, 1], "trainer.max_steps": 1}
    make(config(changes), tmp_path, Told([1.0]), line()).train()
    later = config(changes | {"trainer.max_steps": 2})
    trainer = make(later, tmp_path, Told([5.0]), line())
    trainer.resume(open_checkpoint(tmp_path))
    trainer.train()
    assert open_checkpoint(tmp_path, prefer_best=False).info.step == 2
    assert open_checkpoint(tmp_path).info.step == 1


def test_what_is_no_number_is_never_the_best(config: Config, tmp_path: Path) -> None:
    changes = {"trainer.max_steps": 2, "trainer.nb_batches": [1, 1]}
    make(config(changes), tmp_path, Told([math.nan, 5.0]), line()).train()
    assert open_checkpoint(tmp_path).info.step == 2
    assert json.loads((tmp_path / "best.json").read_text())["value"] == 5.0


def test_checkpoints_come_periodically_for_the_best_and_at_the_end(
    config: Config, tmp_path: Path
) -> None:
    changes = {
        "trainer.max_steps": 7,
        "trainer.nb_batches": [1, 1],
        "trainer.checkpoint_frequency": 4,
        "trainer.keep_checkpoints": 0,
    }
    values = [5.0, 4.0, 6.0, 6.0, 3.0, 6.0, 6.0]
    make(config(changes), tmp_path / "best", Told(values), line()).train()
    steps = [int(folder.name[-7:]) for folder in list_checkpoints(tmp_path / "best")]
    assert steps == [1, 2, 4, 5, 7]
    only = config(changes | {"trainer.checkpoint_best": False})
    make(only, tmp_path / "only", Told(values), line()).train()
    steps = [int(folder.name[-7:]) for folder in list_checkpoints(tmp_path / "only")]
    assert steps == [4, 7]
    assert not (tmp_path / "only" / "best.json").exists()


LESS = "lower trainer.learning_rate or set trainer.clip_grad"
WHY = "(without a warm-up, gradients not clipped)"


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_last_good_checkpoint(
    config: Config, tmp_path: Path
) -> None:
    """The weights of step 4 have a loss that is NaN: to go on from there would end at once."""

    class Diverges(Slope):
        def of(self, net: nn.Module, loss: Tensor) -> tuple[Tensor, Metrics]:
            total, metrics = super().of(net, loss)
            bad = torch.is_grad_enabled() and trainer.step == 4
            return (total, metrics | {"loss": torch.tensor(math.nan)}) if bad else (total, metrics)

    changes = {
        "trainer.max_steps": 100,
        "trainer.nb_batches": [99, 1],
        "trainer.checkpoint_frequency": 2,
        "trainer.keep_checkpoints": 1,
    }
    trainer = make(config(changes), tmp_path, Diverges(), line())
    with pytest.raises(UserError) as refusal:
        trainer.train()
    assert [folder.name for folder in list_checkpoints(tmp_path)] == ["step-0000002"]
    assert str(refusal.value) == (
        f"the loss is nan at step 6; likely cause: trainer.learning_rate = 0.01 {WHY}; "
        "nothing was written, step-0000004 was deleted; the last good checkpoint is "
        f"{list_checkpoints(tmp_path)[-1]}: {LESS}, and go on with --resume {tmp_path}"
    )


class Explodes(Slope):
    """From step 4 on its gradient is infinite, while its loss is a number."""

    trainer: Trainer

    def of(self, net: nn.Module, loss: Tensor) -> tuple[Tensor, Metrics]:
        total, metrics = super().of(net, loss)
        if torch.is_grad_enabled() and self.trainer.step == 4:
            weight = next(net.parameters())
            total = total + (weight - weight.detach()).sqrt().sum()  # 0, and steep
        return total, metrics


EXPLOSIONS: dict[str, dict[str, Any]] = {
    "at-a-checkpoint": {"trainer.checkpoint_frequency": 1},
    "at-an-evaluation": {"trainer.nb_batches": [5, 1]},
    "at-the-end": {"trainer.max_steps": 5},
    "at-an-interruption": {},
}


@pytest.mark.parametrize("when", EXPLOSIONS)
def test_weights_that_explode_after_a_good_loss_are_never_written(
    config: Config, tmp_path: Path, when: str
) -> None:
    """The loss of a step is computed before it: NaN was the newest checkpoint, and was resumed."""
    changes = SGD | {"trainer.max_steps": 9, "trainer.nb_batches": [4, 1]}
    changes |= {"trainer.keep_checkpoints": 0, "trainer.checkpoint_frequency": 4}
    changes = changes | EXPLOSIONS[when]
    task = Explodes()
    trainer = make(config(changes), tmp_path, task, line())
    task.trainer = trainer
    written: dict[str, bytes] = {}
    after_step(trainer, 5, lambda: written.update(contents(tmp_path)))
    if when == "at-an-interruption":
        after_step(trainer, 5, ctrl_c)
    with pytest.raises(UserError) as refusal:
        trainer.train()
    last = tmp_path / "checkpoints" / "step-0000004"
    assert str(refusal.value) == (
        "network.weight holds NaN or infinite values at step 5; likely cause: "
        f"trainer.learning_rate = 1 {WHY}; nothing was written; the last good checkpoint is "
        f"{last}: {LESS}, and go on with --resume {tmp_path}"
    )
    assert contents(tmp_path) == written
    assert "checkpoints/step-0000004/training.pt" in written

    open_checkpoint(tmp_path, prefer_best=False).load_training()  # by the flags that are named
    gentle = make(config(changes | {"trainer.max_steps": 6}), tmp_path, Slope(), line())
    gentle.resume(open_checkpoint(tmp_path, prefer_best=False))
    gentle.train()
    assert gentle.state.bare_net.weight[0, 0].item() == 0.25 - 6  # a rate and a gradient of 1


@pytest.mark.parametrize("main", [True, False], ids=["main-process", "other-process"])
@pytest.mark.parametrize(
    ("where", "name"),
    [
        ("net", "network.weight"),
        ("ema", "average.weight"),
        ("optimizer", "optimizer.state.0.exp_avg_sq"),
    ],
)
def test_everything_a_checkpoint_holds_is_checked_in_every_process(
    config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    name: str,
    main: bool,
) -> None:
    """If the main process alone ended, the others would wait for it."""
    trainer = make(config({"trainer.max_steps": 1}), tmp_path, Slope(), line())
    trainer.train()
    before = contents(tmp_path)
    moments = trainer.state.optimizer.state_dict()["state"][0]
    assert trainer.state.ema is not None
    tensors = {
        "net": trainer.state.bare_net.weight.data,
        "ema": trainer.state.ema.net.weight.data,
        "optimizer": moments["exp_avg_sq"],
    }
    tensors[where][0, 7] = math.inf
    trainer.state.step = 2
    monkeypatch.setattr(Accelerator, "is_main_process", main)
    with pytest.raises(
        UserError,
        match=rf"^{name} holds NaN or infinite values at step 2; .*; nothing was written;",
    ):
        trainer.save(best=True)
    assert contents(tmp_path) == before


def test_the_checkpoint_that_is_named_is_good_whoever_wrote_it(
    config: Config, tmp_path: Path
) -> None:
    """Earlier versions wrote NaN; a run must not be sent back to that."""
    changes = {"trainer.max_steps": 3, "trainer.checkpoint_frequency": 1}
    cfg = config(changes | {"trainer.keep_checkpoints": 0})
    trainer = make(cfg, tmp_path, Slope(), line())
    trainer.train()
    first, second, third = list_checkpoints(tmp_path)
    state = torch.load(third / "training.pt")
    state["optimizer"]["state"][0]["exp_avg"][0, 3] = math.nan
    torch.save(state, third / "training.pt")
    nn.init.constant_(trainer.state.bare_net.weight, math.nan)
    with pytest.raises(UserError, match=rf"is {second}: .* --resume {second} --run-dir NEW$"):
        trainer.save()
    shutil.rmtree(second)
    shutil.rmtree(first)
    with pytest.raises(
        UserError, match=f"; the run has no good checkpoint: {LESS}, and train from"
    ):
        trainer.save()
    with pytest.raises(UserError, match=r"optimizer\.state\.0\.exp_avg holds NaN or infinite"):
        make(cfg, None, Slope(), line()).resume(open_checkpoint(third))


def test_a_branch_that_explodes_before_it_saves_is_sent_back_to_where_it_began(
    config: Config, tmp_path: Path
) -> None:
    make(config(SGD), tmp_path / "run", Slope(), line()).train()
    (origin,) = list_checkpoints(tmp_path / "run")
    task = Explodes()
    changes = SGD | {"trainer.max_steps": 9, "trainer.checkpoint_frequency": 5}
    cfg = config(changes | {"trainer.checkpoint_best": False})
    task.trainer = trainer = make(cfg, tmp_path / "branch", task, line())
    trainer.resume(open_checkpoint(origin))
    with pytest.raises(UserError, match=f"is {origin}: .* --resume {origin} --run-dir NEW$"):
        trainer.train()
    assert list_checkpoints(tmp_path / "branch") == []


def test_a_task_that_meets_nan_names_the_last_good_checkpoint(
    config: Config, tmp_path: Path
) -> None:
    """The search for the nearest code refuses NaN before there is a loss of a codec."""

    class Refuses(Slope):
        def of(self, net: nn.Module, loss: Tensor) -> tuple[Tensor, Metrics]:
            if trainer.step == 3:
                raise NonFiniteError("the encoder produced NaN")
            return super().of(net, loss)

    trainer = make(config({"trainer.max_steps": 9}), tmp_path, Refuses(), line())
    with pytest.raises(UserError, match="^the encoder produced NaN at step 3; .*step-0000002: low"):
        trainer.train()


def test_without_a_run_folder_nothing_is_written(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    make(config(), None, Fit(), line()).train()
    assert list((tmp_path / "empty").iterdir()) == []


# -- interruption -------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_gets_a_signal_saves_first_whatever_it_was_doing(
    config: Config, tmp_path: Path, training: bool, kind: signal.Signals
) -> None:
    class Signals(Slope):
        def of(self, net: nn.Module, loss: Tensor) -> tuple[Tensor, Metrics]:
            if torch.is_grad_enabled() == training and trainer.step >= 2 and not trainer.stopped_by:
                signal.raise_signal(kind)
            return super().of(net, loss)

    changes = {"trainer.max_steps": 9, "trainer.nb_batches": [3, 0]}
    changes |= {"trainer.checkpoint_frequency": 0, "trainer.checkpoint_best": False}
    trainer = make(config(changes), tmp_path, Signals(), line())
    before = signal.getsignal(kind)
    trainer.train()
    assert trainer.stopped_by == kind
    assert trainer.step == 3
    assert [folder.name for folder in list_checkpoints(tmp_path)] == ["step-0000003"]
    assert signal.getsignal(kind) is before


def test_a_second_ctrl_c_ends_at_once_and_leaves_no_half_checkpoint(
    config: Config, tmp_path: Path
) -> None:
    trainer = make(config({"trainer.max_steps": 9}), tmp_path, Slope(), line())
    after_step(trainer, 1, ctrl_c)
    after_step(trainer, 1, ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert list_checkpoints(tmp_path) == []


# -- small parts --------------------------------------------------------------------------------


def test_means_weigh_what_they_are_given() -> None:
    means = Means()
    assert means.read(Accelerator(cpu=True)) == {}
    means.add({"a": torch.tensor(1.0), "b": torch.tensor(8.0)}, 1)
    means.add({"a": torch.tensor(4.0, requires_grad=True)}, 2)
    assert means.read(Accelerator(cpu=True)) == {"a": 3.0, "b": 8.0}


def test_a_metric_that_no_sample_has_is_left_out_and_one_that_few_have_is_their_mean() -> None:
    means = Means()
    for total, count in ((0.0, 0), (6.0, 2), (3.0, 1)):
        parts = {"few": (total, count), "none": (0.0, 0)}
        partial = {k: PartialSum(*map(torch.tensor, part)) for k, part in parts.items()}
        means.add(partial | {"loss": torch.tensor(2.0)}, 8.0)
    assert means.read(Accelerator(cpu=True)) == {"few": 3.0, "loss": 2.0}


def test_partial_sums_of_several_processes_are_one_mean() -> None:
    """Every process names every metric, also one that its own samples do not have."""
    both = []
    for total, count in ((0.0, 0), (6.0, 3)):
        means = Means()
        means.add({"rate": PartialSum(torch.tensor(total), torch.tensor(count))}, 1.0)
        both.append(means)

    class Reduces(Accelerator):
        def reduce(self, tensor: Tensor, reduction: str = "sum", scale: float = 1.0) -> Tensor:
            sent.append(tensor)
            return tensor if len(sent) == 1 else sent[0] + sent[1]

    sent: list[Tensor] = []
    assert [means.read(Reduces(cpu=True)) for means in both] == [{}, {"rate": 2.0}]
