"""Samplings followed to their end: previews, files, histories."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from conftest import contents
from PIL import Image
from torch import Tensor

from sundae.common.errors import UserError
from sundae.interactive.recording import Recording, View, new_folder, record
from sundae.sampling.sampler import SampleBatch


def finish(views: Iterator[View]) -> Recording:
    *_, last = views
    assert last.recording is not None
    return last.recording


def batch_of(first: int, step: int, size: int, is_final: bool, pixels: Tensor) -> SampleBatch:
    tokens = torch.zeros(size, 4, 4, dtype=torch.int64)
    return SampleBatch(first, step, 300, size, is_final, tokens, lambda tokens: pixels)


def steps_of(batches: list[int], size: int = 2) -> Iterator[SampleBatch]:
    """Batches of so many steps; an image's grey is its step, in tenths."""
    for place, steps in enumerate(batches):
        for step in range(steps + 1):
            grey = torch.full((size, 3, 4, 4), step / 10)
            yield batch_of(place * size, step, size, step == steps, grey)


def grey_of(path: Path) -> float:
    """Tenths of white of the upper left image of a grid, or of an image."""
    with Image.open(path) as image:
        return round(image.convert("L").getpixel((3, 3)) / 25.5)


def test_a_record_keeps_the_last_step_of_each_batch(tmp_path: Path) -> None:
    recording = finish(record(steps_of([2, 4]), tmp_path / "0001"))
    assert [grey_of(path) for path in recording.samples] == [2, 2, 4, 4]
    assert (recording.num_steps, recording.history, recording.animation) == (4, [], None)
    assert set(contents(tmp_path)) == {
        f"0001/{name}.png" for name in ("00000", "00001", "00002", "00003", "grid")
    }


def test_a_history_has_each_step_of_the_first_batch_and_an_animation(tmp_path: Path) -> None:
    recording = finish(record(steps_of([3, 5]), tmp_path / "0001", history=True))
    assert [grey_of(recording.step_path(step)) for step in recording.history] == [0, 1, 2, 3]
    assert recording.animation is not None
    with Image.open(recording.animation) as played:
        assert (played.n_frames, played.info["loop"]) == (4, 0)
        shown, durations = [], []
        for frame in range(4):
            played.seek(frame)
            shown.append(round(played.convert("L").getpixel((8, 8)) / 25.5))
            durations.append(played.info["duration"])
    assert shown == [0, 1, 2, 3]
    assert durations == [100, 100, 100, 2000]


def test_a_sampling_that_is_given_up_leaves_nothing(tmp_path: Path) -> None:
    views = record(steps_of([3]), new_folder(tmp_path), history=True)
    next(views), next(views)
    views.close()
    assert list(tmp_path.iterdir()) == []


def test_each_sampling_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    assert new_folder(tmp_path).name == "0001"
    (tmp_path / "0003").mkdir()
    assert [new_folder(tmp_path).name for _ in range(2)] == ["0002", "0004"]


def test_too_little_memory_is_said_in_one_line(tmp_path: Path) -> None:
    def states() -> Iterator[SampleBatch]:
        yield from steps_of([1])
        raise torch.OutOfMemoryError

    with pytest.raises(UserError, match="lower nb_samples"):
        list(record(states(), tmp_path / "0001"))
    assert list(tmp_path.iterdir()) == []


def test_without_an_audience_only_the_ends_are_decoded(tmp_path: Path) -> None:
    shown = [view.pixels is not None for view in record(steps_of([3, 2]), tmp_path / "0001")]
    assert shown == [False, False, False, True, False, False, True, True]


def test_showing_takes_a_third_of_the_time_at_most(tmp_path: Path) -> None:
    now = 0.0

    def states() -> Iterator[SampleBatch]:
        nonlocal now
        for state in steps_of([300], size=1):
            now += 0.01  # seconds a step
            yield replace(state, _decode=lambda tokens, state=state: slow(state))

    def slow(state: SampleBatch) -> Tensor:
        nonlocal now
        now += 0.2
        return state.pixels()

    views = list(record(states(), tmp_path / "0001", live=True, clock=lambda: now))
    shown = [view.batch.step for view in views if view.pixels is not None and not view.recording]
    assert shown[0] == 0 and shown[-1] == 300
    gaps = {later - sooner for sooner, later in pairwise(shown[:-1])}
    assert gaps == {40} or gaps == {40, 41}  # 0.4 s of steps for each 0.2 s of decoding


def test_showing_counts_what_the_caller_takes_for_it(tmp_path: Path) -> None:
    now = 0.0
    shown = []

    def states() -> Iterator[SampleBatch]:
        nonlocal now
        for state in steps_of([20], size=1):
            now += 1.0  # seconds a step
            yield state

    def clock() -> float:
        return now

    for view in record(states(), tmp_path / "0001", live=True, clock=clock):
        if view.pixels is not None and not view.recording:
            shown.append(view.batch.step)
            now += 3.0  # not again within the next 6
    assert shown == [0, 6, 12, 18, 20]
