"""Shortening and lengthening a grid: which tokens belong together, and what attention can learn."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_nets import net_config
from torch import Tensor

from hourglass_transformer import NetConfig
from hourglass_transformer.layers import axial_rotation, rotate
from hourglass_transformer.resampling import Downsample, Upsample, from_cells, to_cells

GRID, DIM = (4, 6), 16
CELLS = [  # of a 4x6 grid, numbers in raster order; 4 raster neighbours would be 0 1 2 3
    {0, 1, 6, 7},
    {2, 3, 8, 9},
    {4, 5, 10, 11},
    {12, 13, 18, 19},
    {14, 15, 20, 21},
    {16, 17, 22, 23},
]
EVERY_KIND = pytest.mark.parametrize(
    ("resampling", "attends"),
    [("linear", True), ("linear", False), ("average", True), ("average", False)],
)


def config(resampling: str = "linear", attends: bool = True, **changes: Any) -> NetConfig:
    return net_config(resampling=resampling, attn_resampling=attends, **changes)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def down(x: Tensor, cfg: NetConfig, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    module = Downsample(cfg, *cfg.levels(GRID))
    return module(x, module.rotations() if cfg.use_rotary else None)


def up(coarse: Tensor, residual: Tensor, cfg: NetConfig, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    module = Upsample(cfg, *cfg.levels(GRID))
    return module(coarse, residual, module.rotations() if cfg.use_rotary else None)


def influence(outputs: Tensor, inputs: Tensor) -> list[set[int]]:
    """For every output token, the input tokens that it depends on; both (1, tokens, dim)."""
    reached = []
    for token in range(outputs.shape[1]):
        weights = noise(outputs.shape[-1], seed=token)
        (slope,) = torch.autograd.grad(
            (outputs[0, token] * weights).sum(), inputs, retain_graph=True
        )
        reached.append(set(slope[0].norm(dim=-1).nonzero()[:, 0].tolist()))
    return reached


@pytest.mark.parametrize(("grid", "side"), [((4, 6), 2), ((6, 9), 3), ((2, 2), 2), ((8, 4), 4)])
def test_cells_are_square_blocks_and_go_back_to_where_they_came_from(
    grid: tuple[int, int], side: int
) -> None:
    x = torch.arange(grid[0] * grid[1]).view(1, -1, 1).expand(2, -1, 3)
    cells = to_cells(x, grid, side)
    image = x[0, :, 0].view(grid)
    for number, cell in enumerate(cells[0, :, :, 0]):
        top, left = (side * place for place in divmod(number, grid[1] // side))
        assert torch.equal(cell.view(side, side), image[top : top + side, left : left + side])
    assert torch.equal(from_cells(cells, grid, side), x)


@EVERY_KIND
def test_a_coarse_token_sees_its_two_by_two_cell_and_not_four_raster_neighbours(
    resampling: str, attends: bool
) -> None:
    x = noise(1, 24, DIM).requires_grad_()
    assert influence(down(x, config(resampling, attends)), x) == CELLS


@EVERY_KIND
def test_lengthening_gives_a_coarse_token_back_to_the_same_cell(
    resampling: str, attends: bool
) -> None:
    coarse, residual = noise(1, 6, DIM).requires_grad_(), noise(1, 24, DIM, seed=1)
    seen = influence(up(coarse, residual, config(resampling, attends)), coarse)
    everything = set(range(6))  # what attention chooses from
    for number, cell in enumerate(CELLS):
        for token in cell:
            assert seen[token] == (everything if attends else {number})


@EVERY_KIND
def test_the_residual_goes_around_the_valley_token_by_token(resampling: str, attends: bool) -> None:
    coarse, residual = noise(1, 6, DIM), noise(1, 24, DIM, seed=1).requires_grad_()
    seen = influence(up(coarse, residual, config(resampling, attends)), residual)
    assert seen == [{token} for token in range(24)]


def test_averaging_and_repeating_are_what_they_say() -> None:
    cfg = config("average", attends=False)
    x = noise(2, 24, DIM)
    image = x.view(2, 4, 6, DIM)
    coarse = down(x, cfg).view(2, 2, 3, DIM)
    assert torch.allclose(coarse[:, 1, 2], image[:, 2:4, 4:6].mean((1, 2)), atol=1e-6)
    back = up(coarse.flatten(1, 2), x, cfg).view(2, 4, 6, DIM) - image
    expected = coarse.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.allclose(back, expected, atol=1e-6)


def test_the_plain_variant_has_no_parameters_at_all() -> None:
    cfg = config("average", attends=False)
    for module in (Downsample(cfg, *cfg.levels(GRID)), Upsample(cfg, *cfg.levels(GRID))):
        assert list(module.parameters()) == []


@EVERY_KIND
def test_all_cells_are_shortened_alike(resampling: str, attends: bool) -> None:
    """The rotary tables of the first cell have to serve every other cell."""
    cfg = config(resampling, attends)
    x = noise(1, 4, 6, DIM)
    shifted = x.roll((2, 4), dims=(1, 2))
    coarse = down(x.flatten(1, 2), cfg).view(1, 2, 3, DIM)
    again = down(shifted.flatten(1, 2), cfg).view(1, 2, 3, DIM)
    assert torch.allclose(again, coarse.roll((1, 2), dims=(1, 2)), atol=1e-5)


@pytest.mark.parametrize("direction", ["down", "up"])
@pytest.mark.parametrize("use_rotary", [True, False])
def test_queries_and_keys_of_attention_across_levels_receive_gradient(
    direction: str, use_rotary: bool
) -> None:
    """With a single key, the softmax would be constant and neither would ever learn."""
    cfg = config(use_rotary=use_rotary)
    torch.manual_seed(0)
    module = (
        Downsample(cfg, *cfg.levels(GRID))
        if direction == "down"
        else Upsample(cfg, *cfg.levels(GRID))
    )
    inputs = (noise(2, 24, DIM),) if direction == "down" else (noise(2, 6, DIM), noise(2, 24, DIM))
    outputs = module(*inputs, module.rotations() if use_rotary else None)
    (outputs * noise(*outputs.shape, seed=1)).sum().backward()
    assert module.layer is not None and module.layer.attn.crosses
    keys, values = module.layer.attn.to_kv.weight.grad.chunk(2)
    for slope in (module.layer.attn.to_q.weight.grad, keys):
        assert slope.norm() > 1e-3 * values.norm()


def test_shortening_looks_at_the_tokens_of_a_cell_from_its_middle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda q, k, v, **_: (seen.append((q, k)), q)[1]
    )
    x = noise(1, 24, DIM)
    down(x, config(use_rotary=False))
    down(x, config())
    (plain_q, plain_k), (q, k) = seen
    places = [torch.tensor([[0.0, 0, 1, 1], [0, 1, 0, 1]]), torch.tensor([[0.5], [0.5]])]
    for turned, plain, (rows, columns) in zip((k, q), (plain_k, plain_q), places, strict=True):
        expected = rotate(plain, axial_rotation(rows, columns, GRID, 8))
        assert torch.allclose(turned, expected, atol=1e-6)  # the same in each of the 6 cells
        assert not torch.allclose(turned, plain, atol=0.1)


def test_attention_across_levels_measures_true_distances() -> None:
    """A coarse token stands in the middle of its cell: the four corners are equally far."""
    cfg = config()
    fine, coarse = Upsample(cfg, *cfg.levels(GRID)).rotations()

    def alike(f: int, c: int) -> float:
        """Cosine of the angle by which equal vectors at the two places are turned apart."""
        turns = [
            torch.atan2(table[1][place], table[0][place])
            for table, place in ((fine, f), (coarse, c))
        ]
        return float((turns[0] - turns[1]).cos().mean())

    for number, cell in enumerate(CELLS):
        own = [alike(token, number) for token in cell]
        assert own == pytest.approx(own[:1] * 4, abs=1e-5)
        others = [alike(token, number) for token in range(24) if token not in cell]
        assert min(own) > max(others)
