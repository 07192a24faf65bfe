"""The whole network, seen from outside: what reaches what, and where position matters."""

import math
from typing import Any

import pytest
import small_nets
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hourglass_transformer import HourglassTransformer

VOCAB = 7
SHAPES: dict[str, dict[str, Any]] = {
    "hourglass": {},
    "learned positions": {"use_rotary": False},
    "rectangular": {"grid": (8, 4)},
    "nested": {"depth": (1, (1, 1, 1), 1), "grid": (4, 8)},
    "two factors": {"depth": (1, (0, 1, 0), 1), "grid": (6, 12), "shorten_factor": (4, 9)},
    "narrow outside": {"dims": (8, 16)},
    "three widths": {"depth": (1, (1, 1, 1), 1), "grid": (4, 8), "dims": (8, 24, 16)},
    "widths and narrow heads": {"dims": (8, 16), "dim_head": 4, "use_rotary": False},
    "windows": {"grid": (8, 8), "window": (4, 0)},
    "windows on two grids": {
        "depth": (2, (1, 1, 2), 2),
        "grid": (8, 16),
        "window": (4, 4, 0),
        "dims": (8, 24, 16),
    },
    "average": {"resampling": "average"},
    "without attention across": {"attn_resampling": False},
    "average and nothing else": {"resampling": "average", "attn_resampling": False},
    "scalenorm": {"use_scalenorm": True},
    "glu": {"use_glu": True},
    "narrow heads": {"dim_head": 4},
    "nothing after the valley": {"depth": (1, 1, 0)},
    "nothing around the valley": {"depth": (0, 2, 0), "use_rotary": False},
    "only projections after the valley": {"depth": (1, 1, 0), "attn_resampling": False},
    "conditional": {"num_classes": 3},
    "transformer": {"depth": 2},
    "transformer, learned positions": {"depth": 2, "use_rotary": False},
    "transformer, scalenorm and glu": {"depth": 2, "use_scalenorm": True, "use_glu": True},
}
EVERY_SHAPE = pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES.keys())


def fresh(**changes: Any) -> HourglassTransformer:
    return small_nets.network(vocab_size=VOCAB, **changes)


def network(**changes: Any) -> HourglassTransformer:
    """As after some training: the map to logits, which starts at zero, is random."""
    net = fresh(**changes)
    nn.init.normal_(net.to_logits.weight, std=net.to_logits.in_features**-0.5)
    return net.eval()


def tokens_for(net: HourglassTransformer, batch: int = 2, seed: int = 0) -> Tensor:
    shape = (batch, net.grid[0] * net.grid[1])
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def classes_for(net: HourglassTransformer, batch: int = 2) -> Tensor | None:
    return torch.arange(batch) % net.cfg.num_classes if net.cfg.num_classes else None


@EVERY_SHAPE
def test_a_new_network_gives_every_token_the_same_chance(changes: dict[str, Any]) -> None:
    net = fresh(**changes)
    logits = net(tokens_for(net), classes_for(net))
    assert torch.equal(logits, torch.zeros(2, net.grid[0] * net.grid[1], VOCAB))


@EVERY_SHAPE
def test_logits_at_positions_are_those_of_all(changes: dict[str, Any]) -> None:
    net = network(**changes)
    tokens, classes = tokens_for(net), classes_for(net)
    positions = torch.tensor([[3, 0, 5, 5], [15, 2, 1, 7]])  # in any order, also twice
    every = net(tokens, classes)
    some = net(tokens, classes, positions)
    assert every.std() > 0.1
    for row in range(2):
        assert torch.allclose(some[row], every[row, positions[row]], atol=1e-5)


def flops(net: HourglassTransformer, positions: Tensor | None) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(2, 16, dtype=torch.int64, device="meta"), None, positions)
    return int(counter.get_total_flops())


@pytest.mark.parametrize("depth", [(1, 1, 1), (1, 1, 0), 2], ids=str)
def test_the_last_layer_works_only_at_positions(depth: Any) -> None:
    with torch.device("meta"):
        net, positions = fresh(depth=depth), torch.zeros(2, 6, dtype=torch.int64)
    keys = 4 if depth == (1, 1, 0) else 16  # the up-sampling layer looks at the coarse grid
    # queries, what attention gives, the feed-forward; logits; scores and their sums
    each = 2 * (10 * 16**2 + VOCAB * 16) + 4 * keys * 16
    assert flops(net, None) - flops(net, positions) == 2 * (16 - 6) * each


@EVERY_SHAPE
def test_every_parameter_learns(changes: dict[str, Any]) -> None:
    net = network(**changes)
    logits = net(tokens_for(net), classes_for(net))
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens_for(net, seed=1).flatten())
    loss.backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all() and parameter.grad.norm() > 1e-6, name
        if name.endswith(
            ("to_qkv.weight", "to_kv.weight")
        ):  # queries (within a level only), keys, values
            parts = 3 if "qkv" in name else 2
            for part in parameter.grad.chunk(parts):
                assert part.norm() > 1e-6, name


@EVERY_SHAPE
def test_every_position_reaches_every_logit(changes: dict[str, Any]) -> None:
    net = network(**changes)
    tokens = tokens_for(net, batch=1)
    classes = classes_for(net, batch=1)
    for place in (0, tokens.shape[1] // 2 + 1, tokens.shape[1] - 1):
        other = tokens.clone()
        other[0, place] = (other[0, place] + 1) % VOCAB
        difference = (net(other, classes) - net(tokens, classes)).abs().amax(-1)
        assert difference.min() > 1e-7
        assert difference[0, place] > 0.1  # around the valley, too


@EVERY_SHAPE
def test_rows_of_a_batch_do_not_touch(changes: dict[str, Any]) -> None:
    net = network(**changes)
    tokens, classes = tokens_for(net, batch=4), classes_for(net, batch=4)
    together = net(tokens, classes)
    for row in range(4):
        alone = net(tokens[row : row + 1], None if classes is None else classes[row : row + 1])
        assert torch.allclose(together[row], alone[0], atol=1e-5)


# -- position -------------------------------------------------------------------------------------


@torch.no_grad()
def permutation_gap(net: HourglassTransformer, order: Tensor) -> float:
    """How far logits of permuted tokens are from permuted logits."""
    tokens = tokens_for(net, batch=3)
    return float((net(tokens[:, order]) - net(tokens)[:, order]).abs().max())


@pytest.mark.parametrize("name", ["transformer", "transformer, learned positions"])
def test_a_plain_transformer_knows_its_positions_by_what_was_asked_for(name: str) -> None:
    net = network(**SHAPES[name])
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    assert permutation_gap(net, order) > 0.05
    if net.position is not None:
        nn.init.zeros_(net.position)
        assert permutation_gap(net, order) < 1e-5  # nothing else tells positions apart


@pytest.mark.parametrize("name", ["hourglass", "nested", "learned positions", "average"])
def test_an_hourglass_tells_positions_apart(name: str) -> None:
    net = network(**SHAPES[name])
    length = net.grid[0] * net.grid[1]
    for order in (torch.arange(length).flip(0), torch.arange(length).roll(1)):
        assert permutation_gap(net, order) > 0.05


def test_without_positions_an_hourglass_may_swap_cells_but_not_raster_neighbours() -> None:
    """The cells are what attention and projections share, so only they can be exchanged."""
    net = network(use_rotary=False, grid=(4, 8))
    assert net.position is not None
    nn.init.zeros_(net.position)
    raster = torch.arange(32).view(4, 8)
    cells = raster.roll((2, 4), dims=(0, 1)).flatten()
    assert permutation_gap(net, cells) < 1e-5
    for shift in ((1, 0), (0, 1), (1, 2), (2, 1)):
        assert permutation_gap(net, raster.roll(shift, dims=(0, 1)).flatten()) > 1e-3
    in_fours = torch.arange(32).view(8, 4).flip(0).flatten()  # whole groups of raster neighbours
    assert permutation_gap(net, in_fours) > 1e-3


def test_rotary_frequencies_follow_the_grid_at_every_level() -> None:
    net = fresh(depth=(1, (1, 1, 1), 1), grid=(8, 16), dim=64)  # 8 frequencies an axis
    stage, grid = net.stage, (8, 16)
    for _ in range(3):
        assert stage.tables is not None
        cos, sin = stage.tables[0]
        assert cos.shape == (grid[0] * grid[1], 32)
        turned = torch.atan2(sin, cos)
        for place, channels, size in ((grid[1], slice(0, 8), grid[0]), (1, slice(8, 16), grid[1])):
            frequencies = turned[place, channels]  # of the next row, and of the next column
            assert frequencies[0].item() == pytest.approx(1, abs=1e-4)
            assert frequencies[-1].item() == pytest.approx(math.pi / size, abs=1e-4)
        grid = (grid[0] // 2, grid[1] // 2)
        stage = stage.valley if stage.down is not None else stage


def test_rotary_tables_are_not_saved_and_return_after_the_meta_device() -> None:
    net = network(depth=(1, (1, 1, 1), 1), grid=(4, 8))
    weights = net.state_dict()
    assert weights.keys() == dict(net.named_parameters()).keys()
    with torch.device("meta"):
        again = HourglassTransformer(net.cfg, vocab_size=VOCAB, grid=net.grid)
    again.load_state_dict(weights, assign=True)
    again.reset_tables()
    tokens = tokens_for(net)
    assert torch.equal(again.eval()(tokens), net(tokens))


# -- gradient checkpointing -----------------------------------------------------------------------


def backward(net: HourglassTransformer, **inputs: Tensor | None) -> dict[str, Tensor]:
    """Gradients of a loss, by parameter; dropout is the same in every call."""
    torch.manual_seed(0)
    net.zero_grad()
    logits = net(tokens_for(net), **inputs)
    nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), tokens_for(net, seed=1).flatten()
    ).backward()
    return {
        name: parameter.grad.clone()
        for name, parameter in net.named_parameters()
        if parameter.grad is not None
    }


@pytest.mark.parametrize("amp", [False, True])
@EVERY_SHAPE
def test_recomputing_layers_changes_no_gradient(changes: dict[str, Any], amp: bool) -> None:
    net = network(attn_dropout=0.3, ff_dropout=0.3, emb_dropout=0.3, **changes).train()
    classes = classes_for(net)
    gradients = []
    for enabled in (False, True):
        net.set_gradient_checkpointing(enabled)
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            gradients.append(backward(net, classes=classes))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)


def saved_bytes(net: HourglassTransformer) -> int:
    """What autograd keeps of a forward pass, parameters and rotary tables aside."""
    kept: dict[int, int] = {}
    ours = {t.data_ptr() for t in (*net.parameters(), *net.buffers())}

    def note(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in ours:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        logits = net(tokens_for(net))
    assert logits.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("depth", [8, (2, 4, 2), (1, (1, 4, 1), 1)], ids=str)
def test_recomputing_layers_keeps_a_quarter_of_the_activations_or_less(depth: Any) -> None:
    net = network(depth=depth, dim=64, nb_heads=2, grid=(8, 8)).train()
    everything = saved_bytes(net)
    net.set_gradient_checkpointing(True)
    assert saved_bytes(net) < everything / 4
    with torch.no_grad():
        net(tokens_for(net))  # nothing to go back through, nothing to recompute


# -- classes --------------------------------------------------------------------------------------


def test_the_class_of_a_row_moves_the_logits_of_that_row_alone() -> None:
    net = network(num_classes=3)
    tokens = tokens_for(net)
    same, other = net(tokens, torch.tensor([0, 1])), net(tokens, torch.tensor([2, 1]))
    assert (same[0] - other[0]).abs().amax(-1).min() > 0.05
    assert torch.equal(same[1], other[1])


@pytest.mark.parametrize(
    ("num_classes", "classes", "message"),
    [(3, None, "needs classes"), (0, torch.tensor([0, 0]), "takes no classes")],
)
def test_classes_belong_to_conditional_networks(
    num_classes: int, classes: Tensor | None, message: str
) -> None:
    net = fresh(num_classes=num_classes)
    with pytest.raises(ValueError, match=message):
        net(tokens_for(net), classes)


# -- initialisation and shape ---------------------------------------------------------------------


@pytest.mark.parametrize("depth", [2, 24, (2, 12, 2)], ids=str)
@pytest.mark.parametrize("changes", [{}, {"use_scalenorm": True}, {"use_glu": True}], ids=str)
def test_the_residual_stream_starts_at_order_one_whatever_the_depth(
    depth: Any, changes: dict[str, Any]
) -> None:
    net = fresh(depth=depth, dim=64, **changes).eval()
    with torch.no_grad():
        spread = net.stage(net.token_embedding(tokens_for(net, batch=4))).std()
    assert 0.4 < spread < 2.5


def test_the_residual_stream_starts_at_order_one_at_every_width() -> None:
    net = fresh(
        depth=(2, (2, 6, 2), 2), dims=(32, 64, 128), dim=128, nb_heads=8, grid=(8, 8)
    ).eval()
    spreads: list[float] = []
    for module in net.modules():
        if type(module).__name__ in ("Stage", "Downsample"):
            module.register_forward_hook(lambda _, __, result: spreads.append(float(result.std())))
    with torch.no_grad():
        net(tokens_for(net, batch=4))
    assert len(spreads) == 5
    assert min(spreads) > 0.4 and max(spreads) < 2.5


def test_equal_widths_are_the_network_of_one_width() -> None:
    one, listed = network(dim=16), network(dim=16, dims=(16, 16))
    assert one.state_dict().keys() == listed.state_dict().keys()
    tokens = tokens_for(one)
    assert torch.equal(one(tokens), listed(tokens))


def test_heads_keep_their_width_on_every_grid() -> None:
    stage = fresh(depth=(1, (1, 1, 1), 1), grid=(4, 8), dims=(8, 24, 16)).stage
    outer, middle, valley = (s.before[0].attn for s in (stage, stage.valley, stage.valley.valley))
    assert [attention.heads for attention in (outer, middle, valley)] == [1, 3, 2]
    for attention in (outer, middle, valley):
        assert attention.to_out.in_features == 8 * attention.heads


def test_embedding_dropout_acts_in_training_only() -> None:
    net = network(emb_dropout=0.5)
    tokens = tokens_for(net)
    assert torch.equal(net(tokens), net(tokens))
    net.train()
    assert not torch.equal(net(tokens), net(tokens))


def test_the_number_of_layers_counts_the_longest_path() -> None:
    for depth, layers, levels in ((5, 5, 0), ((2, 8, 2), 14, 1), ((1, (2, 3, 4), 5), 19, 2)):
        cfg = small_nets.net_config(depth=depth)
        assert (cfg.num_layers, cfg.num_levels) == (layers, levels)
    net = fresh(**SHAPES["two factors"])
    assert [level.grid for level in net.cfg.levels(net.grid)] == [(6, 12), (3, 6), (1, 2)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 15}, "net.nb_heads: 2 does not divide net.dim = 15"),
        ({"resampling": "bilinear"}, "'linear' or 'average'"),
        ({"grid": (4, 5)}, "blocks of 2x2 tokens do not divide the 4x5 grid"),
        ({"grid": (8, 8), "window": 6}, "windows of 6x6 tokens do not divide the 8x8 grid"),
    ],
)
def test_a_network_that_cannot_be_built_says_why(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fresh(**changes)
