"""Windows of attention, against attention over everything with a mask made pair by pair."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_nets import net_config, network
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hourglass_transformer import HourglassTransformer
from hourglass_transformer.layers import Layer, at_positions
from hourglass_transformer.resampling import Upsample
from sundae.common.errors import UserError
from sundae.config.run_file import load_config
from sundae.prior.network import build_network


def small_net(**changes: Any) -> HourglassTransformer:
    return network(**{"grid": (8, 16), "depth": (2, 1, 2), "window": (4, 0)} | changes)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def window_of(token: int, grid: tuple[int, int], side: int, shift: tuple[int, int]) -> Any:
    """Number of a token's window; nothing comes around the ends of the grid."""
    places = zip(divmod(token, grid[1]), shift, strict=True)
    return [(place - moved) // side for place, moved in places]


def meeting(
    queries: tuple[int, int],
    keys: tuple[int, int],
    sides: tuple[int, int],
    shift: tuple[int, int] = (0, 0),
) -> Tensor:
    """(queries, keys) bool: which of them are in the same window, by comparing every pair."""
    pairs = [
        [
            window_of(q, queries, sides[0], shift) == window_of(k, keys, sides[1], shift)
            for k in range(keys[0] * keys[1])
        ]
        for q in range(queries[0] * queries[1])
    ]
    return torch.tensor(pairs)


def masked(
    module: nn.Module, mask: Tensor, monkeypatch: pytest.MonkeyPatch, *inputs: Any
) -> Tensor:
    """What a module without windows gives when its attention gets this mask."""
    kernel = F.scaled_dot_product_attention
    with monkeypatch.context() as patch:
        patch.setattr(
            F,
            "scaled_dot_product_attention",
            lambda q, k, v, attn_mask=None, **options: kernel(q, k, v, attn_mask=mask, **options),
        )
        result: Tensor = module(*inputs)
    return result


GRIDS = [  # grid, side, what a displaced partition moves by
    ((8, 8), 4, (2, 2)),
    ((8, 16), 4, (2, 2)),
    ((4, 12), 4, (0, 2)),  # one window high: there is nothing to mix
    ((6, 6), 2, (1, 1)),
    ((12, 6), 6, (3, 0)),
]


@pytest.mark.parametrize(("grid", "side", "moved"), GRIDS)
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("some", [False, True])
def test_a_windowed_layer_is_dense_attention_with_a_mask(
    grid: tuple[int, int],
    side: int,
    moved: tuple[int, int],
    shifted: bool,
    some: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    cfg = net_config(depth=1, window=side)
    windowed = Layer(cfg, *cfg.levels(grid), shifted=shifted)
    net = network(grid=grid, depth=1)
    (dense,) = net.stage.before
    dense.load_state_dict(windowed.state_dict())
    assert net.stage.tables is not None
    own = net.stage.tables[0]
    positions = torch.tensor([[3, 0, 3], [1, 23, 7]]) if some else None
    x = noise(2, grid[0] * grid[1], 16)
    mask = meeting(grid, grid, (side, side), moved if shifted else (0, 0))
    assert not mask.all()
    expected = at_positions(masked(dense, mask, monkeypatch, x, None, own, own), positions)
    torch.testing.assert_close(windowed(x, None, own, own, positions), expected)


@pytest.mark.parametrize(
    ("grid", "factor", "side"), [((8, 16), 4, 4), ((12, 12), 9, 6), ((2, 16), 4, 8)]
)
@pytest.mark.parametrize("use_rotary", [False, True])
def test_windowed_upsampling_is_dense_attention_with_a_mask(
    grid: tuple[int, int],
    factor: int,
    side: int,
    use_rotary: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cfg = net_config(shorten_factor=factor, use_rotary=use_rotary, window=side)
    windowed = Upsample(cfg, *cfg.levels(grid))
    dense = Upsample(cfg, *replace(cfg, window=0).levels(grid))
    dense.load_state_dict(windowed.state_dict())
    cell = windowed.side
    coarse = (grid[0] // cell, grid[1] // cell)
    inputs = (noise(2, coarse[0] * coarse[1], 16), noise(2, grid[0] * grid[1], 16, seed=1))
    rotations = windowed.rotations() if use_rotary else None
    mask = meeting(grid, coarse, (side, side // cell))
    assert not mask.all() and mask.sum(1).min() >= 4  # several keys, or none of them would learn
    expected = masked(dense, mask, monkeypatch, *inputs, rotations)
    torch.testing.assert_close(windowed(*inputs, rotations), expected)


def test_layers_take_turns_in_displacing_their_windows() -> None:
    stage = small_net(depth=(3, (2, 3, 2), 2), window=(4, 4, 2)).stage

    def displaced(layers: nn.ModuleList) -> list[bool]:
        return [layer.attn.windows.mask is not None for layer in layers]  # type: ignore[union-attr]

    assert displaced(stage.before) == [False, True, False]
    assert displaced(stage.after) == [True, False]
    middle = stage.valley
    assert displaced(middle.before) == [False, True]
    assert displaced(middle.valley.before) == [False, True, False]
    for part in (stage, middle):
        assert part.down is not None
        assert part.down.layer is not None and part.down.layer.attn.windows is None


@pytest.mark.parametrize("window", [(0, 0), (16, 0), (32, 8)])
def test_a_window_that_covers_the_grid_is_full_attention(window: tuple[int, int]) -> None:
    torch.manual_seed(0)
    net = small_net(window=window)
    full = small_net(window=())
    full.load_state_dict(net.state_dict())
    nn.init.normal_(net.to_logits.weight)
    full.to_logits.load_state_dict(net.to_logits.state_dict())
    tokens = torch.arange(128)[None] % 7
    assert torch.equal(net(tokens), full(tokens))


def test_windows_change_no_name_and_no_shape_of_a_parameter() -> None:
    with torch.device("meta"):
        windowed, full = small_net(), small_net(window=())
    names = [(name, value.shape) for name, value in full.state_dict().items()]
    assert [(name, value.shape) for name, value in windowed.state_dict().items()] == names


def test_a_network_built_without_memory_gets_its_masks_back() -> None:
    net = small_net()
    nn.init.normal_(net.to_logits.weight)
    with torch.device("meta"):
        again = small_net()
    again.load_state_dict(net.state_dict(), assign=True)
    again.reset_tables()
    tokens = torch.arange(256).view(2, 128) % 7
    assert torch.equal(net(tokens), again(tokens))


def test_windows_save_attention_and_nothing_else() -> None:
    def flops(window: tuple[int, int]) -> int:
        with torch.device("meta"):
            net = small_net(window=window)
            tokens = torch.zeros(1, 128, dtype=torch.long)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(tokens)
        return int(counter.get_total_flops())

    own, across = 4 * 128 * 16 * (128 - 16), 4 * 128 * 16 * (32 - 4)  # scores, and their sums
    assert flops(()) - flops((4, 0)) == 4 * own + across


def test_gradient_checkpointing_and_compilation_agree_with_the_plain_pass() -> None:
    torch.manual_seed(0)
    net = small_net()
    nn.init.normal_(net.to_logits.weight, std=0.25)
    tokens, positions = torch.arange(256).view(2, 128) % 7, torch.tensor([[3, 90], [127, 0]])
    wanted = torch.autograd.grad(net(tokens, None, positions).square().mean(), net.parameters())
    net.set_gradient_checkpointing(True)
    again = torch.autograd.grad(net(tokens, None, positions).square().mean(), net.parameters())
    for one, other in zip(wanted, again, strict=True):
        torch.testing.assert_close(one, other)
    net.set_gradient_checkpointing(False)
    graph = torch.compile(net, backend="eager", fullgraph=True)  # one graph: no control by data
    torch.testing.assert_close(graph(tokens, None, positions), net(tokens, None, positions))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"window": (4,)}, "net.window: 1 sides for the 2 grids of net.depth"),
        ({"window": (3, 0)}, "net.window: expected an even side, got 3"),
        ({"window": (-2, 0)}, "greater than or equal to 0"),
        ({"window": (6, 0)}, "net.window: windows of 6x6 tokens do not divide the 8x16 grid"),
        ({"window": (0, 6)}, "net.window: windows of 6x6 tokens do not divide the 4x8 grid"),
        ({"window": (2, 0)}, "a window of 2x2 tokens must hold at least 2x2 whole blocks"),
        ({"window": (4, 0), "shorten_factor": (16,)}, "2x2 whole blocks of the 4x4 that"),
    ],
)
def test_windows_that_do_not_fit_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        small_net(**changes)


def test_windows_as_small_as_cells_will_do_where_nothing_attends_across() -> None:
    net = small_net(window=(2, 0), attn_resampling=False)
    assert net(torch.zeros(1, 128, dtype=torch.long)).shape == (1, 128, 7)


# -- from a run file ------------------------------------------------------------------------------

RUN_FILE = """
unroll_steps = 2
[trainer]
batch_size = 2
[data]
train_root = "train"
eval_root = "eval"
vocab_size = 7
sequence_length = 256
[net]
dim = 32
dims = [8, 16, 32]
nb_heads = 4
depth = [2, [2, 10, 2], 2]
shorten_factor = [4, 4]
window = [8, 4, 0]
"""


def test_a_run_file_may_nest_its_valley_and_window_every_grid(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(RUN_FILE)
    net = build_network(load_config(tmp_path / "run.toml"))
    nn.init.normal_(net.to_logits.weight)
    logits = net(torch.arange(512).view(2, 256) % 7)
    assert logits.shape == (2, 256, 7) and logits.std() > 0.1
    levels = net.cfg.levels(net.grid)
    assert [level.grid for level in levels] == [(16, 16), (8, 8), (4, 4)]
    assert [level.window for level in levels] == [(8, 8), (4, 4), None]
    assert len(net.stage.valley.valley.before) == 10


def test_one_integer_is_the_window_of_the_outermost_grid(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(RUN_FILE.replace("[8, 4, 0]", "8"))
    cfg = load_config(tmp_path / "run.toml")
    with torch.device("meta"):
        assert build_network(cfg).cfg.windows == (8, 0, 0)


@pytest.mark.parametrize(
    ("length", "shape", "words"),
    [
        (324, "", "net.shorten_factor: blocks of 4x4 tokens do not divide the 18x18 grid"),
        (225, "", "net.shorten_factor: blocks of 2x2 tokens do not divide the 15x15 grid"),
        (96, "latent_shape = [16, 6]", "blocks of 4x4 tokens do not divide the 16x6 grid"),
    ],
)
def test_grids_that_do_not_nest_are_refused(
    length: int, shape: str, words: str, tmp_path: Path
) -> None:
    data = f"sequence_length = {length}\n{shape}"
    (tmp_path / "run.toml").write_text(RUN_FILE.replace("sequence_length = 256", data))
    with pytest.raises(UserError, match=words):
        load_config(tmp_path / "run.toml")
