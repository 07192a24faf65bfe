"""Settings that the terminal and the page share, and what is sampled with them."""

from collections.abc import Callable
from dataclasses import fields

import numpy as np
import pytest
import torch
from PIL import Image
from small_nets import ClassNet

from sundae.codec.interface import PixelCodec
from sundae.common.errors import UserError
from sundae.common.images import to_pil, to_tensor
from sundae.config.run_file import RunConfig
from sundae.config.sections import SamplingConfig
from sundae.editing.request import EditRequest
from sundae.editing.sampler import Sampler
from sundae.interactive.settings import Settings

Config = Callable[..., RunConfig]
NAMES = ("zero", "one", "two")


def settings_of(config: Config, changes: dict[str, object] | None = None) -> Settings:
    cfg = config(changes or {})
    sampler = Sampler(ClassNet(), PixelCodec(5), cfg, class_names=NAMES)
    return Settings(sampler, cfg.sampling)


def levels(image: Image.Image) -> list[int]:
    """Which of the five grey levels an image has."""
    return sorted(
        {round(value / 255 * 4) for value in np.asarray(image)[..., 0].flatten().tolist()}
    )


def finished(states) -> list[Image.Image]:  # type: ignore[no-untyped-def]
    return [image for state in states if state.is_final for image in state.images()]


def test_every_key_of_sampling_can_be_set(config: Config) -> None:
    settings = settings_of(config)
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
    before = settings_of(config)
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
        settings_of(config).changed_by_text(name, text)
    assert complaint in str(refusal.value)
    assert str(refusal.value).startswith(name)


def test_what_may_be_unset_can_be(config: Config) -> None:
    settings = settings_of(config).changed(end_temperature=0.5, seed=3)
    settings = settings.changed_by_text("end_temperature", "none")
    assert settings.sampling.temperature_ramp == (1.0, 1.0)
    assert settings.changed_by_text("seed", "new").value("seed") is None
    chosen = settings.changed(**{"class": ["one"]})
    assert chosen.changed_by_text("class", "all").classes == ()


def test_a_seed_stays_and_without_one_each_time_has_its_own(config: Config) -> None:
    settings = settings_of(config)
    assert settings.changed(seed=0).resolved().value("seed") == 0
    assert settings.resolved().value("seed") != settings.resolved().value("seed")


def test_a_network_without_classes_has_no_class_to_set(config: Config) -> None:
    settings = settings_of(config, {"net.conditional": False, "net.num_classes": 0})
    assert "class" not in settings.names
    assert settings.captions() == [None] * 5


def test_edits_have_the_null_class_unless_one_is_chosen(config: Config) -> None:
    settings = settings_of(config, {"net.class_dropout": 0.1})
    assert settings.captions() == ["zero", "one", "two", "zero", "one"]
    assert settings.captions(edits=True) == [None] * 5
    chosen = settings.changed(**{"class": ["two"]})
    assert chosen.captions(edits=True) == ["two"] * 5
    assert settings_of(config).captions(edits=True) == settings.captions()


def test_several_settings_that_fit_together_are_changed_at_once(config: Config) -> None:
    settings = settings_of(config)
    with pytest.raises(UserError, match="^steps: "):
        settings.changed(temperature=0.5, steps=0)
    with pytest.raises(UserError, match="^steps: expected an integer at least 1"):
        settings.changed(steps=None)
    assert settings.changed(steps=7, seed=2, history=True).value("steps") == 7


def test_classes_are_taken_in_turn(config: Config) -> None:
    settings = settings_of(config).changed(seed=0, sample_proportion=1.0)
    assert [levels(image) for image in finished(settings.sample())] == [[0], [1], [2], [0], [1]]
    some = settings.changed(**{"class": ["two", "zero"]})
    assert [levels(image) for image in finished(some.sample())] == [[2], [0], [2], [0], [2]]
    assert some.captions() == ["two", "zero", "two", "zero", "two"]


def test_an_edit_has_the_chosen_class(config: Config) -> None:
    settings = settings_of(config).changed(seed=0, sample_proportion=1.0, **{"class": ["two"]})
    image = to_pil(torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0)))
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[:, 2:] = True
    images = finished(settings.edit(image, EditRequest(mask=mask)))
    assert len(images) == 5
    for sample in map(to_tensor, images):
        assert torch.equal(sample[..., :2], to_tensor(image)[..., :2])
        assert levels(to_pil(sample[..., 3:])) == [2]


def test_guidance_waits_for_a_class(config: Config) -> None:
    """The null class gives it no direction; sample.py and inpaint.py refuse it then."""
    settings = settings_of(config, {"net.class_dropout": 0.1}).changed(seed=0, guidance=3.0)
    settings.sampler.network.forward = lambda tokens, classes: torch.zeros(*tokens.shape, 5)
    request, image = EditRequest(strength=0.5), Image.new("RGB", (4, 4))
    assert len(finished(settings.edit(image, request))) == 5
    assert len(finished(settings.changed(**{"class": ["two"]}).edit(image, request))) == 5
