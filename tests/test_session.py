"""Settings, samplings and their records, which the terminal and the page share."""

from collections.abc import Callable, Iterator
from dataclasses import fields
from itertools import count, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import contents
from PIL import Image
from torch import Tensor, nn

from sundae.codec.interface import ChunkedCodec, PixelCodec
from sundae.common.animation import enlarged, save_animation, within
from sundae.common.errors import UserError
from sundae.common.images import load_image, save_image, to_tensor
from sundae.config.run_file import RunConfig, SamplingConfig
from sundae.interactive.painting import fitted, painted_mask, read_picture
from sundae.interactive.recording import Outcome, PollPolicy, View, new_folder, record
from sundae.interactive.session import Progress, Session
from sundae.interactive.settings import Settings
from sundae.sampling.output import write_samples
from sundae.sampling.prior import Prior
from sundae.sampling.sampler import BaseSampler

Config = Callable[..., RunConfig]
CPU = torch.device("cpu")
NAMES = ("zero", "one", "two")
WHOLE = 16  # tokens of a picture


class ClassNet(nn.Module):
    """Wants every token to have the number of the class, but is not certain."""

    def forward(self, tokens: Tensor, classes: Tensor | None) -> Tensor:
        assert classes is not None
        rows = 2.0 * torch.nn.functional.one_hot(classes, 5).float()
        return rows[:, None].expand(*tokens.shape, 5)


class SureNet(ClassNet):
    """The same, certain."""

    def forward(self, tokens: Tensor, classes: Tensor | None) -> Tensor:
        return 50 * super().forward(tokens, classes)


def session_of(config: Config, net: nn.Module | None = None, batch_size: int = 64) -> Session:
    cfg = config()
    return Session(Prior(net or SureNet(), cfg, CPU), PixelCodec(5), NAMES, batch_size=batch_size)


def changed(settings: Settings, **values: object) -> Settings:
    for name, value in values.items():
        settings = settings.changed(name, value)
    return settings


def finish(views: Iterator[View]) -> Outcome:
    *_, last = views
    assert last.outcome is not None
    return last.outcome


def levels(path: Path) -> list[int]:
    """Which of the five grey levels a picture has."""
    pixels = np.asarray(load_image(path))[..., 0]
    return sorted({round(value / 255 * 4) for value in pixels.flatten().tolist()})


# -- settings -------------------------------------------------------------------------------------


def test_every_key_of_sampling_can_be_set(config: Config) -> None:
    settings = Settings(config(), NAMES)
    keys = [field.name for field in fields(SamplingConfig) if field.name != "compile"]
    assert settings.names == [*keys, "class", "seed", "history"]
    for name in settings.names:  # what is shown can be typed in again
        assert settings.changed_by_text(name, settings.shown(name)) == settings, name


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("steps", " 7 ", 7),
        ("temperature", "0", 0.0),
        ("temperature", ".5", 0.5),
        ("end_temperature", "0.25", 0.25),
        ("early_stop", "no", False),
        ("early_stop", "TRUE", True),
        ("strategy", "halton", "halton"),
        ("seed", "0", 0),
        ("history", "yes", True),
        ("class", "two", ["two"]),
        ("class", "2, zero", ["two", "zero"]),
    ],
)
def test_a_typed_value_is_understood(config: Config, name: str, text: str, value: object) -> None:
    before = Settings(config(), NAMES)
    after = before.changed_by_text(name, text)
    assert after.value(name) == value
    assert all(after.value(other) == before.value(other) for other in after.names if other != name)


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("steps", "ten", "steps: expected an integer at least 1, got 'ten'"),
        ("steps", "2.5", "steps: expected an integer at least 1, got 2.5"),
        ("steps", "none", "steps: expected an integer at least 1, got 'none'"),
        ("temperature", "nan", "temperature: expected a number at least 0, got nan"),
        ("temperature", "0,5", "temperature: expected a number at least 0, got '0,5'"),
        ("sample_proportion", "1.1", "expected a number at least 0 and at most 1, got 1.1"),
        ("history", "2", "history: expected true or false, got 2"),
        ("seed", "-1", "seed: expected an integer from 0 to 4294967295, or 'new'"),
        ("class", "three", "class three: expected one of zero, one, two, or 0 to 2"),
        ("strategy", "haltn", "did you mean 'halton'?"),
        ("guidance", "3", "guidance: 3 needs a network that also learned to do without the class"),
    ],
)
def test_a_value_that_is_not_accepted_says_what_is(
    config: Config, name: str, text: str, complaint: str
) -> None:
    with pytest.raises(UserError) as refusal:
        Settings(config(), NAMES).changed_by_text(name, text)
    assert complaint in str(refusal.value)
    assert str(refusal.value).startswith(name)


def test_what_may_be_unset_can_be(config: Config) -> None:
    settings = changed(Settings(config(), NAMES), end_temperature=0.5, seed=3)
    settings = settings.changed_by_text("end_temperature", "none")
    assert settings.cfg.sampling.temperature_ramp == (1.0, 1.0)
    assert settings.changed_by_text("seed", "new").value("seed") is None
    assert changed(settings, **{"class": ["one"]}).changed_by_text("class", "all").classes == ()


def test_a_seed_stays_and_without_one_each_time_has_its_own(config: Config) -> None:
    settings = Settings(config(), NAMES)
    assert changed(settings, seed=0).resolved().value("seed") == 0
    assert settings.resolved().value("seed") != settings.resolved().value("seed")


def test_a_network_without_classes_has_no_class_to_set(config: Config) -> None:
    cfg = config({"net.conditional": False, "net.num_classes": 0})
    assert "class" not in Settings(cfg).names
    assert Settings(cfg).class_of(0) is None


def test_what_continues_a_picture_has_any_class_unless_one_is_chosen(config: Config) -> None:
    settings = Settings(config({"net.class_dropout": 0.1}), NAMES)
    assert (settings.wanted(), settings.class_of(1)) == ([0, 1, 2], "one")
    assert settings.wanted(any_unless_chosen=True) == [3]  # the number of "any"
    assert settings.class_of(1, any_unless_chosen=True) is None
    chosen = changed(settings, **{"class": ["two"]})
    assert chosen.wanted(any_unless_chosen=True) == [2]
    assert chosen.class_of(1, any_unless_chosen=True) == "two"
    assert Settings(config(), NAMES).wanted(any_unless_chosen=True) == [0, 1, 2]


# -- samplings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [2, 64])
def test_the_samples_are_those_of_sample_py(
    config: Config, tmp_path: Path, batch_size: int
) -> None:
    session = session_of(config, ClassNet(), batch_size)
    settings = changed(session.settings(), seed=4)
    ours = finish(record(session.sample(settings), tmp_path / "ours"))
    (tmp_path / "theirs").mkdir()
    sampler = BaseSampler(ClassNet(), PixelCodec(5), settings.cfg)
    write_samples(sampler.refine(5, seed=4), tmp_path / "theirs", 5, progress=False)
    theirs = contents(tmp_path / "theirs")
    assert {path.name: path.read_bytes() for path in ours.samples} == theirs
    assert ours.grid.read_bytes() == (tmp_path / "theirs-grid.png").read_bytes()


def test_classes_are_taken_in_turn(config: Config, tmp_path: Path) -> None:
    session = session_of(config, batch_size=2)
    settings = changed(session.settings(), seed=0, sample_proportion=1.0)
    outcome = finish(record(session.sample(settings), tmp_path / "all"))
    assert [levels(path) for path in outcome.samples] == [[0], [1], [2], [0], [1]]
    some = changed(settings, **{"class": ["two", "zero"]})
    outcome = finish(record(session.sample(some), tmp_path / "some"))
    assert [levels(path) for path in outcome.samples] == [[2], [0], [2], [0], [2]]
    assert [some.class_of(number) for number in range(3)] == ["two", "zero", "two"]


def test_inpainting_keeps_known_pixels_and_fills_the_hole(config: Config, tmp_path: Path) -> None:
    session = session_of(config)
    settings = changed(session.settings(), seed=0, sample_proportion=1.0, **{"class": ["two"]})
    image = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0))
    hidden = torch.zeros(4, 4, dtype=torch.bool)
    hidden[:, 2:] = True
    *_, last = session.inpaint(settings, image, hidden)
    answers = last.images()
    assert torch.equal(answers[..., :2], image[..., :2].expand(5, -1, -1, -1))
    assert torch.equal(answers[..., 3:], torch.full((5, 3, 4, 1), 0.5))  # class two of 0 to 4


def test_variations_differ_by_the_strength(config: Config) -> None:
    session = session_of(config)
    settings = changed(session.settings(), seed=0, sample_proportion=1.0, **{"class": ["zero"]})
    image = torch.ones(3, 4, 4)
    for strength, drawn in ((0.0, 0), (0.5, WHOLE // 2), (1.0, WHOLE)):
        *_, last = session.vary(settings, image, strength)
        black = (last.images()[:, 0] == 0).flatten(1).sum(dim=1)
        assert black.tolist() == [drawn] * 5


def test_no_more_is_decoded_at_once_than_fits() -> None:
    sizes = []

    class Large(PixelCodec):
        factor = 512

        def decode(self, tokens: Tensor) -> Tensor:
            sizes.append(len(tokens))
            return super().decode(tokens)

    tokens = torch.randint(5, (7, 2, 1))
    decoded = ChunkedCodec(Large(5)).decode(tokens)
    assert torch.equal(decoded, PixelCodec(5).decode(tokens))
    assert sizes == [2, 2, 2, 1]  # a megapixel at a time


# -- records --------------------------------------------------------------------------------------


def steps_of(batches: list[int], size: int = 2) -> Iterator[Progress]:
    """Batches of so many steps; a picture's grey is its step, in tenths."""
    for place, steps in enumerate(batches):
        for step in range(steps + 1):
            grey = torch.full((size, 3, 4, 4), step / 10)
            yield Progress(place * size, step, size, lambda grey=grey: grey)


def grey_of(path: Path) -> float:
    """Tenths of white of the upper left picture of a grid, or of a picture."""
    with Image.open(path) as image:
        return round(image.convert("L").getpixel((3, 3)) / 25.5)


def test_a_record_keeps_the_last_step_of_each_batch(tmp_path: Path) -> None:
    outcome = finish(record(steps_of([2, 4]), tmp_path / "0001"))
    assert [grey_of(path) for path in outcome.samples] == [2, 2, 4, 4]
    assert (outcome.steps, outcome.history, outcome.animation) == (4, [], None)
    assert set(contents(tmp_path)) == {
        f"0001/{name}.png" for name in ("00000", "00001", "00002", "00003", "grid")
    }


def test_a_history_has_each_step_of_the_first_batch_and_an_animation(tmp_path: Path) -> None:
    outcome = finish(record(steps_of([3, 5]), tmp_path / "0001", history=True))
    assert [(step, grey_of(path)) for step, path in outcome.history] == [(i, i) for i in range(4)]
    assert outcome.animation is not None
    with Image.open(outcome.animation) as played:
        assert played.n_frames == 4
        shown = []
        for frame in range(4):
            played.seek(frame)
            shown.append(round(played.convert("L").getpixel((8, 8)) / 25.5))
    assert shown == [0, 1, 2, 3]


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
    def states() -> Iterator[Progress]:
        yield from steps_of([1])
        raise torch.OutOfMemoryError

    with pytest.raises(UserError, match="lower nb_samples"):
        list(record(states(), tmp_path / "0001"))
    assert list(tmp_path.iterdir()) == []


def test_without_an_audience_only_the_ends_are_decoded(tmp_path: Path) -> None:
    shown = [view.images is not None for view in record(steps_of([3, 2]), tmp_path / "0001")]
    assert shown == [False, False, False, True, False, False, True, True]


def test_showing_takes_a_third_of_the_time_at_most(tmp_path: Path) -> None:
    now = 0.0

    def states() -> Iterator[Progress]:
        nonlocal now
        for state in steps_of([300], size=1):
            now += 0.01  # seconds a step
            yield Progress(0, state.step, 1, lambda state=state: slow(state.images))

    def slow(decode: Callable[[], Tensor]) -> Tensor:
        nonlocal now
        now += 0.2
        return decode()

    views = list(record(states(), tmp_path / "0001", live=True, clock=lambda: now))
    shown = [view.progress.step for view in views if view.images is not None and not view.outcome]
    assert shown[0] == 0 and shown[-1] == 300
    gaps = {later - sooner for sooner, later in pairwise(shown[:-1])}
    assert gaps == {40} or gaps == {40, 41}  # 0.4 s of steps for each 0.2 s of decoding


def test_showing_counts_what_the_caller_takes_for_it(tmp_path: Path) -> None:
    ticks = count()
    pace = PollPolicy(lambda: next(ticks) * 1.0)
    assert pace.due()
    pace.charge(3.0)  # at 0: not again before 6
    assert [pace.due() for _ in range(6)] == [False] * 5 + [True]


# -- pictures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_an_animation_plays_forever_and_rests_on_its_last_frame(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"a{suffix}"
    frames = [Image.new("RGB", (8, 6), (40 * i, 0, 0)) for i in range(3)]
    save_animation(frames, path, frame_ms=50, last_ms=700)
    with Image.open(path) as played:
        assert (played.n_frames, played.info["loop"], played.size) == (3, 0, (8, 6))
        durations = []
        for frame in range(3):
            played.seek(frame)
            played.load()
            durations.append(played.info["duration"])
    assert durations == [50, 50, 700]


def test_an_animation_of_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected an animation named \.webp or \.gif"):
        save_animation([Image.new("RGB", (2, 2))], tmp_path / "a.mp4")
    assert list(tmp_path.iterdir()) == []


def test_pictures_are_scaled_to_be_seen() -> None:
    assert within(Image.new("RGB", (400, 10)), 100).size == (100, 2)
    assert within(Image.new("RGB", (90, 10)), 100).size == (90, 10)
    assert enlarged(Image.new("RGB", (28, 30)), 192).size == (196, 210)
    assert enlarged(Image.new("RGB", (256, 190)), 192).size == (256, 190)


def test_whatever_a_brush_touches_is_hidden() -> None:
    layer = np.zeros((8, 8, 4), np.uint8)
    layer[2, 5] = 255, 0, 0, 1  # as lightly as can be
    assert painted_mask([layer], (8, 8)).nonzero().tolist() == [[2, 5]]
    assert painted_mask([layer], (4, 4)).nonzero().tolist() == [[1, 2]]
    assert painted_mask([layer], (16, 8)).nonzero().tolist() == [[4, 5], [5, 5]]
    assert not painted_mask([], (4, 4)).any()
    other = np.zeros_like(layer)
    other[7, 0, 3] = 255
    assert painted_mask([layer, other], (8, 8)).sum() == 2


@pytest.mark.parametrize(
    ("size", "keep_size", "expected"),
    [
        ((20, 20), False, (4, 4)),
        ((1, 1), False, (4, 4)),
        ((10, 300), False, (4, 4)),
        ((10, 30), True, (10, 30)),
        ((1, 1), True, (4, 4)),
        ((2, 3), True, (4, 6)),
    ],
)
def test_a_picture_of_any_size_fits(
    size: tuple[int, int], keep_size: bool, expected: tuple[int, int]
) -> None:
    picture = Image.new("RGB", (size[1], size[0]), (10, 20, 30))
    hidden = torch.zeros(size, dtype=torch.bool)
    hidden[size[0] // 2, size[1] // 2] = True
    image, mask = fitted(picture, hidden, (4, 4), keep_size=keep_size)
    assert image.shape == (3, *expected) and mask.shape == expected
    assert mask.any()
    assert torch.equal(image[:, ~mask], to_tensor(picture)[:, :1, 0].expand(3, int((~mask).sum())))


def test_a_picture_too_narrow_to_keep_is_refused() -> None:
    nothing = torch.zeros(1, 1000, dtype=torch.bool)
    with pytest.raises(UserError, match="a picture of 1000x1 is too narrow"):
        fitted(Image.new("RGB", (1000, 1)), nothing, (4, 4), keep_size=True)


def test_an_upload_that_is_no_picture_is_named_without_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "notes.png"
    path.write_text("not a picture")
    with pytest.raises(UserError, match="^notes.png cannot be read as a picture") as refusal:
        read_picture(path)
    assert str(tmp_path) not in str(refusal.value)


def test_a_huge_upload_is_scaled_down(tmp_path: Path) -> None:
    save_image(torch.zeros(3, 10, 4096), tmp_path / "wide.png")
    assert read_picture(tmp_path / "wide.png").size == (2048, 5)
