"""What a prior is trained on: the losses of its unroll steps, and hidden classes."""

from collections.abc import Callable

import pytest
import torch
from small_nets import ClassNet
from torch import Tensor

from sundae.common.errors import UserError
from sundae.config.run_file import RunConfig
from sundae.prior.network import build_network
from sundae.training.prior import PriorTask, drop_classes

Config = Callable[..., RunConfig]
CPU = torch.device("cpu")


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

    net.training = True  # type: ignore[attr-defined]
    losses = [loss.item() for loss, _ in task.losses(net, batch, torch.Generator())]  # type: ignore
    assert losses == pytest.approx([torch.log(torch.tensor(5.0)).item()] * 2)


def test_a_first_loss_is_the_logarithm_of_the_vocabulary(config: Config) -> None:
    cfg = config()
    batch = {"tokens": torch.randint(5, (4, 16)), "classes": torch.tensor([0, 1, 2, 0])}
    losses = PriorTask(cfg).losses(build_network(cfg), batch, torch.Generator())
    assert [loss.item() for loss, _ in losses] == pytest.approx([1.6094379] * 2)


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


OPTIONS = {
    "objective.unroll_share": 0.5,
    "objective.hole_share": 1.0,
}


@pytest.mark.parametrize("key", OPTIONS)
def test_every_option_of_the_objective_changes_training_and_never_evaluation(
    config: Config, key: str
) -> None:
    batch = {"tokens": torch.arange(64).view(4, 16) % 5, "classes": torch.tensor([0, 1, 2, 0])}
    plain, cfg = config(), config({key: OPTIONS[key]})
    net = build_network(plain)
    torch.nn.init.normal_(net.to_logits.weight, generator=torch.Generator().manual_seed(1))

    def losses(cfg: RunConfig, *, training: bool, grad: bool = True) -> list[float]:
        with torch.set_grad_enabled(grad):
            generator = torch.Generator().manual_seed(0)
            steps = PriorTask(cfg).losses(net.train(training), batch, generator)
            return [loss.item() for loss, _ in steps]

    assert losses(cfg, training=True) != losses(plain, training=True)
    assert losses(cfg, training=False) == losses(plain, training=False)
    assert losses(cfg, training=True, grad=False) == losses(plain, training=True, grad=False)


def test_later_steps_of_a_share_of_the_batch_weigh_as_many_rows_as_they_have(
    config: Config,
) -> None:
    cfg = config({"unroll_steps": 3, "objective.unroll_share": 0.25})
    batch = {"tokens": torch.arange(128).view(8, 16) % 5, "classes": torch.arange(8) % 3}
    seen: list[tuple[int, int]] = []

    class Watching(ClassNet):
        def forward(self, tokens: Tensor, classes: Tensor | None) -> Tensor:
            assert classes is not None
            seen.append((len(tokens), len(classes)))
            return super().forward(tokens, classes)

    steps = list(PriorTask(cfg).losses(Watching(), batch, torch.Generator().manual_seed(0)))
    assert seen == [(8, 8), (2, 2), (2, 2)]
    factors = [(loss / metrics["loss"]).item() for loss, metrics in steps]  # type: ignore[operator]
    assert factors == pytest.approx([3 * 8 / 12, 3 * 2 / 12, 3 * 2 / 12])


def test_a_share_of_steps_that_do_not_exist_is_refused(config: Config) -> None:
    with pytest.raises(UserError, match=r"objective\.unroll_share: 0\.5 .* unroll_steps = 1"):
        config({"unroll_steps": 1, "objective.unroll_share": 0.5})
