"""Animations, and images scaled to be seen."""

from pathlib import Path

import pytest
from PIL import Image

from sundae.common.animation import enlarged, save_animation, within
from sundae.common.errors import UserError


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


def test_images_are_scaled_to_be_seen() -> None:
    assert within(Image.new("RGB", (400, 10)), 100).size == (100, 2)
    assert within(Image.new("RGB", (90, 10)), 100).size == (90, 10)
    assert enlarged(Image.new("RGB", (28, 30)), 192).size == (196, 210)
    assert enlarged(Image.new("RGB", (256, 190)), 192).size == (256, 190)
