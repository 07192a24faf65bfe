"""What a layer is made of, against formulas written out and seen through its gradients."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_nets import net_config
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from hourglass_transformer import layers
from hourglass_transformer.config import Level, NetConfig
from hourglass_transformer.layers import (
    Attention,
    FeedForward,
    Layer,
    ScaleNorm,
    attend,
    axial_rotation,
    grid_positions,
    rotate,
)
from sundae.common import precision
from sundae.common.precision import Precision


def config(**changes: Any) -> tuple[NetConfig, Level]:
    """A plain transformer, two heads of width 8, and its only level."""
    cfg = net_config(**{"depth": 1} | changes)
    return cfg, *cfg.levels((4, 6))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def attended(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor, Tensor]]:
    """The (q, k, v) of every attention that is computed during the test."""
    calls: list[tuple[Tensor, Tensor, Tensor]] = []
    kernel: Callable[..., Tensor] = layers.attend

    def record(q: Tensor, k: Tensor, v: Tensor, *options: Any) -> Tensor:
        calls.append((q, k, v))
        return kernel(q, k, v, *options)

    monkeypatch.setattr(layers, "attend", record)
    return calls


# -- rotary position ------------------------------------------------------------------------------


def score(q: Tensor, k: Tensor, at: tuple[int, int], seen_from: tuple[int, int]) -> float:
    """Product of k at one place of a 9x16 grid and q at another."""

    def placed(x: Tensor, place: tuple[int, int]) -> Tensor:
        row, column = torch.tensor(place).float().split(1)
        return rotate(x, axial_rotation(row, column, (9, 16), x.shape[-1]))

    return float((placed(k, at) * placed(q, seen_from)).sum())


@pytest.mark.parametrize("width", [4, 8, 64])
def test_rotary_scores_depend_on_the_offset_in_two_dimensions_and_on_nothing_else(
    width: int,
) -> None:
    q, k = noise(1, width, seed=1), noise(1, width, seed=2)
    for offset in ((0, 0), (1, 0), (0, 1), (3, -2)):
        scores = [
            score(q, k, (row + offset[0], column + offset[1]), (row, column))
            for row, column in ((0, 2), (5, 13), (2, 7))
        ]
        assert scores == pytest.approx(scores[:1] * 3, abs=1e-4)
    offsets = [(i, j) for i in range(3) for j in range(3)]
    different = {round(score(q, k, (4 + i, 4 + j), (4, 4)), 4) for i, j in offsets}
    assert len(different) == len(offsets)


def test_rotation_keeps_lengths_and_leaves_the_origin_alone() -> None:
    x = noise(24, 8)
    turned = rotate(x, axial_rotation(*grid_positions((4, 6)), (4, 6), 8))
    assert torch.allclose(turned.norm(dim=-1), x.norm(dim=-1), atol=1e-5)
    assert torch.equal(turned[0], x[0])
    assert (turned[1:] - x[1:]).norm(dim=-1).min() > 0.1


@pytest.mark.parametrize("grid", [(4, 4), (32, 32), (8, 28)])
def test_rotary_frequencies_run_from_a_radian_a_token_to_half_a_turn_a_grid(
    grid: tuple[int, int],
) -> None:
    one = torch.ones(1)
    cos, sin = axial_rotation(one, one, grid, 32)
    by_row, by_column = torch.atan2(sin, cos)[0, :16].chunk(2)
    for frequencies, size in zip((by_row, by_column), grid, strict=True):
        assert frequencies[0].item() == pytest.approx(1)
        assert frequencies[-1].item() == pytest.approx(math.pi / size, rel=1e-4)
        ratios = frequencies[1:] / frequencies[:-1]
        assert torch.allclose(ratios, ratios[:1].expand(7), atol=1e-4)


def test_positions_are_in_raster_order_and_coarse_ones_at_the_centres_of_their_cells() -> None:
    rows, columns = grid_positions((2, 3))
    assert rows.tolist() == [0, 0, 0, 1, 1, 1]
    assert columns.tolist() == [0, 1, 2, 0, 1, 2]
    rows, columns = grid_positions((2, 3), spacing=2)
    assert rows.tolist() == [0.5, 0.5, 0.5, 2.5, 2.5, 2.5]
    assert columns.tolist() == [0.5, 2.5, 4.5] * 2


def test_rotary_reaches_every_head(attended: list[tuple[Tensor, Tensor, Tensor]]) -> None:
    torch.manual_seed(0)
    attention, x = Attention(*config(nb_heads=4, dim=32)), noise(2, 24, 32)
    tables = axial_rotation(*grid_positions((4, 6)), (4, 6), 8)
    attention(x)
    attention(x, q_rotation=tables, k_rotation=tables)
    (plain_q, plain_k, plain_v), (q, k, v) = attended
    assert q.shape == (2, 4, 24, 8)  # batch, heads, tokens, width
    for head in range(4):
        assert torch.equal(q[:, head], rotate(plain_q[:, head], tables))
        assert torch.equal(k[:, head], rotate(plain_k[:, head], tables))
        assert not torch.allclose(q[:, head], plain_q[:, head], atol=0.1)
    assert torch.equal(v, plain_v)


def test_rotary_stays_accurate_under_bfloat16(
    attended: list[tuple[Tensor, Tensor, Tensor]],
) -> None:
    """An angle of 60 radians kept in bfloat16 would be wrong by a quarter of a radian."""
    torch.manual_seed(0)
    grid = (1, 64)
    attention, x = Attention(*config(nb_heads=2, dim=32)), noise(1, 64, 32)
    tables = axial_rotation(*grid_positions(grid), grid, 16)
    with torch.autocast("cpu", torch.bfloat16):
        attention(x)
        attention(x, q_rotation=tables, k_rotation=tables)
    (plain_q, plain_k, _), (q, k, _) = attended
    assert q.dtype == k.dtype == torch.bfloat16
    for turned, plain in ((q, plain_q), (k, plain_k)):
        exact = rotate(plain.float(), tables)
        assert (turned.float() - exact).abs().max() <= 2**-7 * exact.abs().max()


# -- attention ------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [6, layers._SHORT + 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_every_kernel_computes_the_same_attention(
    keys: int, dtype: torch.dtype, masked: bool
) -> None:
    q, k, v = noise(2, 3, 5, 8), noise(2, 3, keys, 8), noise(2, 3, keys, 8)
    mask = (noise(5, keys, seed=1) > 0) if masked else None
    scores = q @ k.mT / math.sqrt(8)
    if mask is not None:
        mask[:, 0] = True
        scores[:, :, ~mask] = -torch.inf
    made = attend(q.to(dtype), k.to(dtype), v.to(dtype), mask)
    expected = scores.softmax(-1) @ v
    assert made.dtype == dtype
    tolerance = {} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.02}
    torch.testing.assert_close(made.float(), expected, **tolerance)


@pytest.mark.parametrize(("queries", "keys", "fused"), [(1, 4, 0), (1, 16, 0), (64, 16, 1)])
def test_cells_on_a_gpu_need_no_kernel(
    queries: int, keys: int, fused: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is limited to 65,535 sequences."""
    calls: list[Tensor] = []

    def kernel(q: Tensor, *others: Tensor, **options: Any) -> Tensor:
        calls.append(q)
        return q

    monkeypatch.setattr(F, "scaled_dot_product_attention", kernel)
    with FakeTensorMode():  # no GPU, and none of its memory
        q, k = (torch.empty(2**16, 2, count, 8, device="cuda") for count in (queries, keys))
        made = attend(q, k, k)
    assert made.shape == q.shape and made.device.type == "cuda"
    assert len(calls) == fused


def test_cudnn_attention_is_left_out() -> None:
    """It plans anew for every number of queries, and its gradients can be NaN under a mask."""
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_dropout_leaves_out_weights_of_short_bfloat16_sequences_too() -> None:
    torch.manual_seed(0)
    ones = torch.ones(1, 1, 400, 8, dtype=torch.bfloat16)
    made = attend(ones, ones, ones, dropout=0.5)[..., 0].float()
    assert made.std() > 0.01
    assert made.mean().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(attend(ones, ones, ones), attend(ones, ones, ones))


def written_out(attention: Attention, x: Tensor, context: Tensor) -> Tensor:
    """Softmax attention, head by head, in double precision."""
    inner = attention.to_out.in_features
    if attention.crosses:
        weight = torch.cat((attention.to_q.weight, attention.to_kv.weight))
    else:
        weight = attention.to_qkv.weight
    to_q, to_k, to_v = weight.double().split(inner)
    heads = []
    for rows in torch.arange(inner).chunk(attention.heads):
        q, k, v = x @ to_q[rows].T, context @ to_k[rows].T, context @ to_v[rows].T
        heads.append(torch.softmax(q @ k.mT / len(rows) ** 0.5, -1) @ v)
    return torch.cat(heads, -1) @ attention.to_out.weight.double().T


@pytest.mark.parametrize("dim_head", [None, 12])
@pytest.mark.parametrize("crosses", [False, True])
def test_attention_is_softmax_attention_of_every_head(crosses: bool, dim_head: int | None) -> None:
    torch.manual_seed(0)
    cfg, level = config(dim_head=dim_head)
    attention = Attention(cfg, level, context_level=level if crosses else None)
    x, other = noise(3, 5, 16, seed=1), noise(3, 9, 16, seed=2)
    result = attention(x, other) if crosses else attention(x)
    expected = written_out(attention, x.double(), (other if crosses else x).double())
    assert torch.allclose(result.double(), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("dim", "dim_head", "inner"), [(64, None, 64), (2048, None, 2048), (2048, 32, 512)]
)
def test_attention_width_follows_dim_unless_dim_head_is_given(
    dim: int, dim_head: int | None, inner: int
) -> None:
    with torch.device("meta"):
        attention = Attention(*config(dim=dim, nb_heads=16, dim_head=dim_head))
    assert attention.to_qkv.weight.shape == (3 * inner, dim)
    assert attention.to_out.weight.shape == (dim, inner)


@pytest.mark.parametrize("part", ["attn_dropout", "ff_dropout"])
def test_dropout_acts_in_training_only(part: str) -> None:
    torch.manual_seed(0)
    layer, x = Layer(*config(**{part: 0.5})), noise(1, 24, 16)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


# -- normalisation and feed-forward ---------------------------------------------------------------


@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e4])
def test_scalenorm_gives_every_token_the_same_length(factor: float) -> None:
    norm = ScaleNorm(16)
    lengths = norm(noise(2, 7, 16) * factor).norm(dim=-1)
    assert torch.allclose(lengths, torch.full((2, 7), 4.0), atol=1e-4)  # the root of dim
    norm.scale.data.fill_(0.5)
    assert torch.allclose(norm(noise(16)).norm(), torch.tensor(0.5))
    assert torch.equal(norm(torch.zeros(16)), torch.zeros(16))  # not a division by zero


def test_a_layer_normalises_what_it_looks_at_and_adds_to_what_it_was_given() -> None:
    torch.manual_seed(0)
    cfg, level = config()
    layer, x, context = (
        Layer(cfg, level, context_level=level),
        noise(2, 5, 16),
        noise(2, 7, 16, seed=1),
    )
    change = layer(x, context) - x
    assert torch.allclose(layer(x, 100 * context) - x, change, atol=1e-4)
    assert torch.allclose(layer(100 * x, context) - 100 * x, change, atol=0.5)
    for module in (layer.attn.to_out, layer.ff.down):
        nn.init.zeros_(module.weight)
    nn.init.zeros_(layer.ff.down.bias)
    assert torch.equal(layer(x, context), x)


def test_a_gated_feed_forward_is_swiglu_at_about_equal_parameters() -> None:
    torch.manual_seed(0)
    gated = FeedForward(*config(dim=96, nb_heads=4, use_glu=True))
    plain = FeedForward(*config(dim=96, nb_heads=4))
    count = [sum(p.numel() for p in net.parameters()) for net in (gated, plain)]
    assert count[0] == pytest.approx(count[1], rel=0.02)
    x = noise(3, 96)
    value, gate = (x @ gated.up.weight.T + gated.up.bias).chunk(2, -1)
    expected = (value * gate * torch.sigmoid(gate)) @ gated.down.weight.T + gated.down.bias
    assert torch.allclose(gated(x), expected, atol=1e-5)


# -- precision ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("has_bf16", "chosen", "dtype"),
    [
        (True, "auto", torch.bfloat16),
        (True, "fp32", torch.float32),
        (False, "auto", torch.float32),
        (False, "bf16", torch.bfloat16),
    ],
)
def test_auto_is_bfloat16_where_the_device_has_it(
    has_bf16: bool, chosen: Precision, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "has_bf16", lambda device: has_bf16)
    with precision.autocast(torch.device("cpu"), chosen):
        assert nn.Linear(4, 4)(torch.zeros(1, 4)).dtype == dtype


def test_a_processor_that_emulates_bfloat16_computes_in_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for capabilities, expected in (({"avx2": True}, False), ({"avx512_bf16": True}, True)):
        monkeypatch.setattr(
            torch.cpu, "get_capabilities", lambda found=capabilities: found, raising=False
        )
        assert precision.has_bf16(torch.device("cpu")) is expected
