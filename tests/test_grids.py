"""Sample grids during training."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from sundae.codec.interface import PixelCodec
from sundae.common.images import load_image, to_tensor
from sundae.config.run_file import RunConfig
from sundae.sampling.grids import SampleGrids

Config = Callable[..., RunConfig]
CPU = torch.device("cpu")


class ClassNet(nn.Module):
    """As certain as it can be that every pixel has the number of the class."""

    def forward(self, tokens: Tensor, classes: Tensor | None) -> Tensor:
        assert classes is not None
        rows = 50.0 * torch.nn.functional.one_hot(classes, 5).float()
        return rows[:, None].expand(*tokens.shape, 5)


def test_grids_during_training_come_from_the_averaged_network(
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
    image = to_tensor(load_image(tmp_path / "samples" / "step-0000030.png"))
    levels = {round(level.item() * 255) for level in image.unique()}
    assert levels == {0, 64, 128, 255}  # three classes, and the white between them
    assert logged == [("samples", 30)]
    trainer.run, trainer.step = None, 31
    SampleGrids(cfg, PixelCodec(5))(trainer)
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["step-0000030.png"]
    assert logged[-1] == ("samples", 31)


def test_grids_of_a_compiled_network_in_training_are_drawn_without_compiling_for_each_step(
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
