"""Sample grids during training."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from small_nets import ClassNet
from torch import nn

from sundae.codec.interface import PixelCodec
from sundae.common.images import load_image, to_tensor
from sundae.config.run_file import RunConfig
from sundae.sampling.grids import SampleGrids
from sundae.training.logbook import Logbook

Config = Callable[..., RunConfig]
CPU = torch.device("cpu")


def trainer_of(net: nn.Module, run: Path | None, step: int) -> Any:
    """The part of a trainer that the hook reads."""
    return SimpleNamespace(
        state=SimpleNamespace(eval_net=net),
        batches=SimpleNamespace(mini_batch_size=2),
        info=SimpleNamespace(seed=0),
        device=CPU,
        step=step,
        logbook=Logbook(run),
    )


def test_grids_during_training_come_from_the_averaged_network(
    config: Config, tmp_path: Path
) -> None:
    cfg = config({"sampling.sample_proportion": 1.0})
    SampleGrids(cfg, PixelCodec(5))(trainer_of(ClassNet(), tmp_path, step=30))
    image = to_tensor(load_image(tmp_path / "samples" / "step-0000030.png"))
    levels = {round(level.item() * 255) for level in image.unique()}
    assert levels == {0, 64, 128, 255}  # three classes, and the white between them


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
    SampleGrids(config({}), PixelCodec(5))(trainer_of(net, None, step=0))
    assert not compiled
    net(torch.zeros(1, 16, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    assert len(compiled) == 1  # training goes on compiled
