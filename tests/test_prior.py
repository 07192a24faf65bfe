"""From a network to losses and to pictures on disk."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from conftest import contents
from torch import Tensor, nn

from sundae.codec.interface import PixelCodec
from sundae.common.compiling import Compiled
from sundae.common.errors import UserError
from sundae.common.images import load_image, to_tensor
from sundae.config.run_file import RunConfig, SamplingConfig
from sundae.prior.network import build_network
from sundae.sampling.grids import SampleGrids
from sundae.sampling.loop import Schedule
from sundae.sampling.output import grid_path, prepare_out_dir, sample_path, write_samples
from sundae.sampling.prior import Prior, even_classes, sample_seeds
from sundae.sampling.strategies import STRATEGIES, schedule_of
from sundae.training.prior import PriorTask, drop_classes

Config = Callable[..., RunConfig]
CPU = torch.device("cpu")


class ClassNet(nn.Module):
    """As certain as it can be that every pixel has the number of the class."""

    def forward(self, tokens: Tensor, classes: Tensor | None) -> Tensor:
        assert classes is not None
        rows = 50.0 * torch.nn.functional.one_hot(classes, 5).float()
        return rows[:, None].expand(*tokens.shape, 5)


class Plain(nn.Module):
    """Any function of tokens and classes as a network that knows nothing of positions."""

    def __init__(self, function: Callable[[Tensor, Tensor | None], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, tokens: Tensor, classes: Tensor | None) -> Tensor:
        return self.function(tokens, classes)


def grey(level: int) -> Tensor:
    """What a picture of one grey level is once it has been a PNG."""
    return torch.full((3, 4, 4), round(level * 255 / 4) / 255)


def write(config: Config, out_dir: Path, count: int, **options: Any) -> Path:
    """Pictures by the fake network, classes in turn."""
    cfg = config()
    prepare_out_dir(out_dir, count, options.get("offset", 0), overwrite=False)
    return write_samples(
        Prior(ClassNet(), cfg, CPU),
        PixelCodec(5),
        out_dir,
        seeds=sample_seeds(0, count),
        classes=even_classes(3, count, options.get("offset", 0)),
        schedule=Schedule(steps=2),
        progress=False,
        **options,
    )


def test_the_task_yields_the_loss_of_every_unroll_step(config: Config) -> None:
    task = PriorTask(config({"unroll_steps": 3}))
    batch = {"tokens": torch.tensor([[0] * 16, [2] * 16]), "classes": torch.tensor([0, 1])}
    steps = list(task.losses(ClassNet(), batch, torch.Generator().manual_seed(0)))
    assert task.num_losses == len(steps) == 3
    for number, (loss, metrics) in enumerate(steps, start=1):
        assert loss.item() == pytest.approx(
            25.0
        )  # right about one row, wrong by 50 about the other
        assert metrics["accuracy"].item() == metrics[f"accuracy_{number}"].item() == 0.5
        assert metrics["loss"] is metrics[f"loss_{number}"] is loss


def test_an_unconditional_task_ignores_the_classes_of_the_data(config: Config) -> None:
    task = PriorTask(config({"net.conditional": False, "net.num_classes": 0}))
    batch = {"tokens": torch.zeros(2, 16, dtype=torch.long), "classes": torch.tensor([0, 1])}

    def net(tokens: Tensor, classes: Tensor | None) -> Tensor:
        assert classes is None
        return torch.zeros(*tokens.shape, 5, requires_grad=True)

    losses = [loss.item() for loss, _ in task.losses(net, batch, torch.Generator())]  # type: ignore
    assert losses == pytest.approx([torch.log(torch.tensor(5.0)).item()] * 2)


def test_a_first_loss_is_the_logarithm_of_the_vocabulary(config: Config) -> None:
    cfg = config()
    batch = {"tokens": torch.randint(5, (4, 16)), "classes": torch.tensor([0, 1, 2, 0])}
    losses = PriorTask(cfg).losses(build_network(cfg), batch, torch.Generator())
    assert [loss.item() for loss, _ in losses] == pytest.approx([1.6094379] * 2)


def test_ramps_end_where_they_begin_unless_told(config: Config) -> None:
    schedule = schedule_of(config({"sampling.temperature": 0.5}).sampling)
    assert (schedule.temperature, schedule.end_temperature) == (0.5, 0.5)
    cfg = config({"sampling.end_temperature": 0, "sampling.end_sample_proportion": 0})
    schedule = schedule_of(cfg.sampling)
    assert (schedule.temperature, schedule.end_temperature) == (1.0, 0.0)
    assert (schedule.sample_proportion, schedule.end_sample_proportion) == (0.5, 0.0)
    assert (schedule.steps, schedule.min_steps, schedule.early_stop) == (3, 1, True)
    cfg = config({"sampling.guidance": 2, "net.class_dropout": 0.1})
    schedule = schedule_of(cfg.sampling)
    assert (schedule.guidance, schedule.end_guidance) == (2.0, 2.0)


def test_every_key_of_sampling_reaches_the_schedule_under_its_name(config: Config) -> None:
    given = {
        "steps": 7,
        "temperature": 0.9,
        "end_temperature": 0.8,
        "temperature_curve": "cosine",
        "sample_proportion": 0.7,
        "end_sample_proportion": 0.6,
        "proportion_curve": "constant",
        "min_steps": 5,
        "early_stop": False,
        "strategy": "halton",
        "choice_temperature": 0.3,
        "guidance": 2.0,
        "end_guidance": 3.0,
        "guidance_curve": "cosine",
        "top_k": 4,
        "top_p": 0.5,
    }
    assert given.keys() | {"nb_samples", "compile"} == {
        field.name for field in fields(SamplingConfig)
    }
    changes = {f"sampling.{name}": value for name, value in given.items()}
    cfg = config(changes | {"net.class_dropout": 0.1})
    assert schedule_of(cfg.sampling) == Schedule(**given)  # type: ignore[arg-type]


def test_a_file_that_says_as_little_as_possible_is_sampled_as_the_paper_does(
    config: Config,
) -> None:
    schedule = schedule_of(config({"sampling.steps": 100}).sampling)
    assert schedule == Schedule(100, 1.0, 1.0, 0.5, 0.5, 1, True, "random")


@pytest.mark.parametrize("steps", [1, 16, 17, 100])
def test_a_strategy_that_is_named_is_taken_whatever_the_steps(config: Config, steps: int) -> None:
    for name in STRATEGIES:
        cfg = config({"sampling.strategy": name, "sampling.steps": steps})
        assert schedule_of(cfg.sampling).strategy == name


@pytest.mark.parametrize(
    ("steps", "end", "expected"),
    [
        (1, None, "renoise"),
        (16, None, "renoise"),
        (17, None, "random"),
        (100, None, "random"),
        (16, 0.01, "renoise"),
        (16, 0.0, "random"),  # a last step that does nothing would leave noise behind
    ],
)
def test_without_a_strategy_it_is_chosen_by_the_steps(
    config: Config, steps: int, end: float | None, expected: str
) -> None:
    for changes in ({}, {"sampling.strategy": "auto"}):
        changes |= {"sampling.steps": steps}
        if end is not None:
            changes |= {"sampling.end_sample_proportion": end}
        assert schedule_of(config(changes).sampling).strategy == expected


@pytest.mark.parametrize(("steps", "name"), [(4, "renoise"), (20, "random")])
def test_samples_are_those_of_the_strategy_that_was_chosen(
    config: Config, steps: int, name: str
) -> None:
    prior = Prior(Plain(lambda tokens, classes: torch.zeros(*tokens.shape, 5)), config(), CPU)
    drawn = {}
    for strategy in ("auto", name, "halton"):
        cfg = config({"sampling.steps": steps, "sampling.strategy": strategy})
        *_, last = prior.refine(sample_seeds(0, 4), None, schedule_of(cfg.sampling))
        drawn[strategy] = last.tokens
    assert torch.equal(drawn["auto"], drawn[name])
    assert not torch.equal(drawn["auto"], drawn["halton"])


def test_guidance_asks_the_network_for_the_class_that_means_any(config: Config) -> None:
    cfg = config({"net.class_dropout": 0.1})
    asked: list[list[int]] = []

    def net(tokens: Tensor, classes: Tensor | None) -> Tensor:
        assert classes is not None
        asked.append(classes.tolist())
        return torch.zeros(*tokens.shape, 5)

    for guidance in (1.0, 3.0):
        prior = Prior(Plain(net), cfg, CPU)
        schedule = Schedule(1, guidance=guidance, end_guidance=guidance)
        list(prior.refine(sample_seeds(0, 2), torch.tensor([2, 0]), schedule))
    assert asked == [[2, 0], [2, 0, 3, 3]]


def test_strategies_know_the_grid_of_the_run(config: Config) -> None:
    schedule = Schedule(1, sample_proportion=0.01, strategy="halton")
    tokens = torch.full((1, 16), 4)
    prior = Prior(ClassNet(), config(), CPU)
    *_, last = prior.refine(sample_seeds(0, 1), torch.tensor([1]), schedule, tokens=tokens)
    # Of 4 x 4 cells the first is in the middle row and a third across; of 1 x 16 it were the sixth.
    assert (last.tokens[0] != 4).nonzero().tolist() == [[9]]


def test_the_head_sees_only_tokens_that_may_change_and_draws_the_same(config: Config) -> None:
    cfg = config()
    net = build_network(cfg)
    nn.init.normal_(net.to_logits.weight)
    sizes: list[tuple[int, ...]] = []
    net.to_logits.register_forward_hook(lambda m, inputs, out: sizes.append(inputs[0].shape))
    tokens = torch.zeros(2, 16, dtype=torch.long)
    frozen = torch.arange(16).expand(2, -1) >= torch.tensor([[4], [10]])

    def drawn(network: nn.Module) -> Tensor:
        *_, last = Prior(network, cfg, CPU, use_amp=False).refine(
            sample_seeds(0, 2),
            torch.tensor([0, 1]),
            Schedule(6, sample_proportion=0.5, end_sample_proportion=0.5, early_stop=False),
            tokens=tokens,
            frozen=frozen,
        )
        return last.tokens

    some = drawn(net)
    assert sizes == [(2, 5, 8)] * 6  # half of the ten that may change where most may
    assert torch.equal(some, drawn(Plain(lambda t, c: net(t, c))))
    assert sizes[6:] == [(2, 16, 8)] * 6


def test_a_long_run_can_be_shared_out() -> None:
    whole = sample_seeds(3, 10)
    assert torch.equal(whole[:4], sample_seeds(3, 4))
    assert torch.equal(whole[4:], sample_seeds(3, 6, offset=4))
    assert len(whole.unique()) == 10
    assert not torch.equal(whole, sample_seeds(4, 10))
    assert even_classes(3, 4, offset=5).tolist() == [2, 0, 1, 2]


def test_every_sample_is_one_png_of_its_class(config: Config, tmp_path: Path) -> None:
    grid = write(config, tmp_path / "out", 7, batch_size=3)
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == [f"{i:05d}.png" for i in range(7)]
    for i in range(7):
        picture = to_tensor(load_image(sample_path(tmp_path / "out", i)))
        assert torch.equal(picture, grey(i % 3))
    assert grid == tmp_path / "out-grid.png"
    assert grid.exists()


def test_names_and_classes_go_on_from_the_offset(config: Config, tmp_path: Path) -> None:
    grid = write(config, tmp_path / "out", 2, batch_size=3, offset=4)
    assert set(contents(tmp_path)) == {"out/00004.png", "out/00005.png", "out-grid-4.png"}
    assert torch.equal(to_tensor(load_image(tmp_path / "out" / "00004.png")), grey(1))
    assert grid == tmp_path / "out-grid-4.png"


def test_compiled_all_batches_have_one_size_and_the_pictures_are_the_same(
    config: Config, tmp_path: Path
) -> None:
    sizes: list[int] = []

    def net(tokens: Tensor, classes: Tensor | None) -> Tensor:
        assert classes is not None
        return torch.nn.functional.one_hot((classes[:, None] + tokens) % 5, 5).float()

    def watched(function: Any, network: Any, strategy: Any, kind: Any, turn: Any) -> Any:
        sizes.append(len(turn.rows.tokens))
        return function(network, strategy, kind, turn)

    for name in ("eager", "compiled"):
        prepare_out_dir(tmp_path / name, 7, 0, overwrite=False)
        prior = Prior(Plain(net), config(), CPU)
        if name == "compiled":
            prior.compiled = cast(Compiled, watched)
        write_samples(
            prior,
            PixelCodec(5),
            tmp_path / name,
            seeds=sample_seeds(0, 7),
            classes=even_classes(3, 7),
            schedule=Schedule(steps=2),
            batch_size=3,
            progress=False,
        )
    assert sizes == [3] * 6
    assert len(contents(tmp_path / "eager")) == 7
    assert contents(tmp_path / "eager") == contents(tmp_path / "compiled")


def test_a_network_of_its_own_is_turned_to_bfloat16_once_and_says_the_same(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sundae.sampling.prior.has_bf16", lambda device: True)
    cfg = config()
    net = build_network(cfg)
    nn.init.normal_(net.to_logits.weight)

    def drawn(**options: Any) -> Tensor:
        prior = Prior(net, cfg, CPU, **options)
        *_, last = prior.refine(sample_seeds(0, 4), torch.arange(4) % 3, Schedule(5))
        return last.tokens

    def logits() -> Tensor:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return net(torch.arange(32).view(2, 16) % 5, torch.tensor([0, 1]))

    before, said = drawn(), logits()
    drawn(use_amp=False, owns_net=True)
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    assert torch.equal(drawn(owns_net=True), before)
    assert torch.equal(logits(), said)
    halved = {type(m) for m in net.modules() for p in m.parameters(recurse=False)
              if p.dtype == torch.bfloat16}  # fmt: skip
    assert halved == {nn.Linear}
    assert net.stage.before[0].ff.down.bias.dtype == torch.bfloat16


def test_the_grid_shows_a_hundred_pictures_at_most(config: Config, tmp_path: Path) -> None:
    grid = write(config, tmp_path / "out", 104, batch_size=30)
    width, height = load_image(grid).size
    small, _ = load_image(write(config, tmp_path / "few", 100, batch_size=100)).size
    assert width == height == small


def test_files_that_exist_are_not_overwritten_unasked(tmp_path: Path) -> None:
    out_dir = tmp_path / "out"
    prepare_out_dir(out_dir, 3, 0, overwrite=False)
    sample_path(out_dir, 5).touch()
    prepare_out_dir(out_dir, 5, 0, overwrite=False)
    with pytest.raises(UserError, match=r"00005\.png exists; .* --overwrite"):
        prepare_out_dir(out_dir, 6, 0, overwrite=False)
    prepare_out_dir(out_dir, 6, 0, overwrite=True)
    grid_path(out_dir, 0).touch()
    with pytest.raises(UserError, match=r"out-grid\.png exists"):
        prepare_out_dir(out_dir, 1, 0, overwrite=False)
    prepare_out_dir(out_dir, 1, 6, overwrite=False)


@pytest.mark.parametrize("name", ["file", "file/below", "x" * 300])
def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write to"):
        prepare_out_dir(tmp_path / name, 1, 0, overwrite=False)
    assert set(contents(tmp_path)) == {"file"}


def test_the_current_folder_is_an_out_dir_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "below")
    assert grid_path(Path(), 0) == tmp_path / "here" / "below-grid.png"
    assert grid_path(Path(".."), 8) == tmp_path / "here-grid-8.png"


def test_pictures_during_training_come_from_the_averaged_network(
    config: Config, tmp_path: Path
) -> None:
    cfg = config({"sampling.sample_proportion": 1.0})
    logged: list[tuple[str, int]] = []
    trainer: Any = SimpleNamespace(
        accelerator=SimpleNamespace(is_main_process=True),
        eval_net=ClassNet(),
        device=CPU,
        seed=0,
        mini_batch_size=2,
        run=tmp_path,
        step=30,
        logbook=SimpleNamespace(log_picture=lambda name, image, step: logged.append((name, step))),
    )
    SampleGrids(cfg, PixelCodec(5))(trainer)
    picture = to_tensor(load_image(tmp_path / "samples" / "step-0000030.png"))
    levels = {round(level.item() * 255) for level in picture.unique()}
    assert levels == {0, 64, 128, 255}  # three classes, and the white between them
    assert logged == [("samples", 30)]
    trainer.run, trainer.step = None, 31
    SampleGrids(cfg, PixelCodec(5))(trainer)
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["step-0000030.png"]
    assert logged[-1] == ("samples", 31)


def test_pictures_of_a_compiled_network_in_training_are_drawn_without_compiling_for_each_step(
    config: Config,
) -> None:
    """As without an average: counts of tokens change from step to step, and batches shrink."""
    torch._dynamo.reset()
    compiled: list[object] = []

    def note(graph: torch.fx.GraphModule, _: object) -> Any:
        compiled.append(graph)
        return graph.forward

    net = ClassNet()
    net.compile(backend=note)
    trainer: Any = SimpleNamespace(
        accelerator=SimpleNamespace(is_main_process=True),
        eval_net=net,
        device=CPU,
        seed=0,
        mini_batch_size=2,
        run=None,
        step=0,
        logbook=SimpleNamespace(log_picture=lambda *_: None),
    )
    SampleGrids(config({}), PixelCodec(5))(trainer)
    assert not compiled
    net(torch.zeros(1, 16, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    assert len(compiled) == 1  # training goes on compiled


def test_classes_are_hidden_with_the_chance_asked_for_and_only_in_training(config: Config) -> None:
    classes = torch.arange(3).repeat(4000)
    dropped = drop_classes(classes, 0.25, 3, torch.Generator().manual_seed(0))
    hidden = dropped == 3
    assert abs(float(hidden.float().mean()) - 0.25) < 0.02
    assert torch.equal(dropped[~hidden], classes[~hidden])

    seen: list[Tensor] = []

    class Watching(ClassNet):
        def forward(self, tokens: Tensor, classes: Tensor | None) -> Tensor:
            assert classes is not None
            seen.append(classes)
            return super().forward(tokens, classes.clamp(max=2))

    net = Watching()
    task = PriorTask(config({"net.class_dropout": 0.9}))
    batch = {"tokens": torch.zeros(30, 16, dtype=torch.int64), "classes": torch.arange(30) % 3}
    for training in (True, False):
        seen.clear()
        list(task.losses(net.train(training), batch, torch.Generator().manual_seed(0)))
        assert bool((seen[0] == 3).any()) is training
        assert torch.equal(seen[0], seen[1])  # one class for all unroll steps


def test_a_network_with_hidden_classes_has_one_more_and_one_without_classes_refuses_them(
    config: Config,
) -> None:
    net = build_network(config({"net.class_dropout": 0.1}))
    logits = net(torch.zeros(1, 16, dtype=torch.int64), torch.tensor([3]))
    assert logits.shape == (1, 16, 5)
    with pytest.raises(UserError, match=r"net\.class_dropout"):
        config({"net.class_dropout": 0.1, "net.conditional": False, "net.num_classes": 0})
