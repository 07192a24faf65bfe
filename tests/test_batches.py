"""The order of the training rows."""

from itertools import chain, islice, pairwise

import pytest
from torch.utils.data import DataLoader

from sundae.training.batches import derive_seed, shuffled_batches


def batches(count: int, rows: int = 20, batch_size: int = 4, **options: int) -> list[list[int]]:
    """The first `count` batches of one process."""
    return list(islice(shuffled_batches(rows, batch_size, **{"seed": 0, **options}), count))


@pytest.mark.parametrize("batch_size", [4, 6, 20, 33])
def test_every_epoch_has_every_row_once_also_where_batches_reach_across(batch_size: int) -> None:
    order = list(chain(*batches(60, batch_size=batch_size)))
    epochs = [order[start : start + 20] for start in range(0, len(order) - 19, 20)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)  # none like another
    assert all(len(batch) == batch_size for batch in batches(60, batch_size=batch_size))


@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("start", [1, 4, 17])
def test_a_resumed_run_goes_on_with_the_batches_of_an_unbroken_one(start: int, world: int) -> None:
    for rank in range(world):
        options = {"batch_size": 6, "rank": rank, "world": world}
        assert batches(30, **options)[start:] == batches(30 - start, start=start, **options)


def test_processes_get_disjoint_slices_of_what_one_process_would_get() -> None:
    apart = [batches(15, batch_size=2, rank=rank, world=3) for rank in range(3)]
    together = batches(15, batch_size=6)
    assert [a + b + c for a, b, c in zip(*apart, strict=True)] == together


def test_the_seed_decides_the_order() -> None:
    assert batches(5, seed=1) == batches(5, seed=1) != batches(5, seed=2)


def test_a_row_that_is_visited_again_has_another_index_where_visits_count() -> None:
    plain, counted = batches(15), batches(15, count_visits=True)
    assert [[index % 20 for index in batch] for batch in counted] == plain
    visits = list(chain(*counted))
    assert [visit // 20 for visit in visits] == [0] * 20 + [1] * 20 + [2] * 20
    assert batches(9, count_visits=True, start=6) == counted[6:]


def test_a_loader_takes_them_as_they_are() -> None:
    loader = DataLoader(range(20), batch_sampler=shuffled_batches(20, 4, seed=0))
    assert [batch.tolist() for batch in islice(loader, 7)] == batches(7)


def test_mixed_seeds_tell_numbers_and_their_places_apart() -> None:
    parts = [(run, step, mini) for run in range(5) for step in range(200) for mini in range(5)]
    # torch seeds its generator on a processor with the lower 32 bits.
    assert len({derive_seed(*part) & 0xFFFFFFFF for part in parts}) == len(parts)
    assert len({derive_seed(1, 2), derive_seed(2, 1), derive_seed(1), derive_seed(1, 2, 0)}) == 4
    assert all(0 <= derive_seed(*part) < 2**63 for part in parts)


def test_mixed_seeds_of_neighbouring_steps_have_nothing_in_common() -> None:
    seeds = [derive_seed(0, step) for step in range(4001)]
    for bit in range(32):
        flips = sum((one ^ other) >> bit & 1 for one, other in pairwise(seeds))
        assert abs(flips - 2000) < 150  # 4.7 standard deviations
