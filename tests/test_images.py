"""Images of every kind read as what a viewer shows; what is written is what was given."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sundae.common.errors import UserError
from sundae.common.images import (
    BadImage,
    enlarged,
    image_size,
    list_images,
    load_image,
    make_grid,
    resize_and_crop,
    save_grid,
    save_image,
    to_pil,
    to_tensor,
    within,
)

RED = (255, 0, 0)


def pixel(path: Path, at: tuple[int, int] = (0, 0)) -> tuple[int, ...]:
    image = load_image(path)
    assert image.mode == "RGB"
    value = image.getpixel(at)
    assert isinstance(value, tuple)
    return value


def test_images_are_listed_in_natural_order_without_what_is_hidden_or_no_image(
    tmp_path: Path,
) -> None:
    names = ["2/9.png", "2/10.JPG", "10/1.webp", "10/deep/1.png"]
    for name in [*names, "2/notes.txt", ".cache/1.png", "2/._9.png"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "10" / "circle").symlink_to(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)] == names


def test_folders_without_images(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        list_images(tmp_path / "nowhere")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match="holds no images"):
        list_images(tmp_path)


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGB", RED, RED),
        ("L", 7, (7, 7, 7)),
        ("1", 1, (255, 255, 255)),
        ("RGBA", (*RED, 255), RED),
        ("RGBA", (*RED, 0), (255, 255, 255)),
        ("RGBA", (0, 0, 0, 51), (204, 204, 204)),
        ("LA", (0, 0), (255, 255, 255)),
        ("I;16", 65535, (255, 255, 255)),
        ("I;16", 257 * 99, (99, 99, 99)),
        ("I;16", 200, (1, 1, 1)),
    ],
)
def test_png_of_every_mode(
    tmp_path: Path, mode: str, colour: int | tuple[int, ...], expected: tuple[int, ...]
) -> None:
    Image.new(mode, (2, 2), colour).save(tmp_path / "x.png")
    assert pixel(tmp_path / "x.png") == expected


@pytest.mark.parametrize(
    ("dtype", "value", "expected"),
    [
        ("<u2", 65535, 255),
        (">u2", 257 * 99, 99),
        ("<i4", 65535, 255),
        ("<f4", 0.6, 153),
        ("<f4", 153.0, 153),
        ("<f4", 65535.0, 255),
    ],
)
def test_deep_grey_tiff_is_scaled_not_cut_off(
    tmp_path: Path, dtype: str, value: float, expected: int
) -> None:
    Image.fromarray(np.full((2, 2), value, dtype=dtype)).save(tmp_path / "x.tif")
    assert pixel(tmp_path / "x.tif") == (expected,) * 3


@pytest.mark.parametrize("value", [1e9, np.nan])
def test_floats_of_no_known_range_are_refused(tmp_path: Path, value: float) -> None:
    Image.fromarray(np.full((2, 2), value, dtype=np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(BadImage, match="grey values up to"):
        load_image(tmp_path / "x.tif")


def test_palette_with_a_transparent_entry_shows_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "see-through.png", transparency=1)
    assert [pixel(tmp_path / "plain.png", (x, 0)) for x in (0, 1)] == [RED, (0, 0, 255)]
    see_through = [pixel(tmp_path / "see-through.png", (x, 0)) for x in (0, 1)]
    assert see_through == [RED, (255, 255, 255)]


def test_cmyk_jpeg(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "x.jpg", quality=100)
    assert np.allclose(pixel(tmp_path / "x.jpg"), RED, atol=6)


def test_rotated_camera_image_stands_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (16, 8), "black")
    image.paste(RED, (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated clockwise by 90 degrees
    image.save(tmp_path / "x.png", exif=exif)
    assert load_image(tmp_path / "x.png").size == (8, 16)
    assert image_size(tmp_path / "x.png") == (16, 8)  # height first
    assert [pixel(tmp_path / "x.png", at) for at in ((4, 2), (4, 14))] == [RED, (0, 0, 0)]


def test_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert pixel(tmp_path / "x.gif") == RED


@pytest.mark.parametrize("keep", [0, 8, 40, -200])
def test_truncated_files_are_bad_images(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "x.png"
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(BadImage) as error:
        load_image(path)
    assert error.value.path == path
    assert "\n" not in error.value.reason
    survived = pickle.loads(pickle.dumps(error.value))
    assert (survived.path, survived.reason) == (path, error.value.reason)


def test_other_files_and_missing_ones_are_bad_images(tmp_path: Path) -> None:
    (tmp_path / "page.jpg").write_text("<html>not found</html>")
    for name in ("page.jpg", "missing.jpg"):
        with pytest.raises(BadImage):
            load_image(tmp_path / name)


def coordinates(height: int, width: int) -> Image.Image:
    """Red grows by 1 a column and green by 1 a row."""
    rows, columns = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([columns, rows, 0 * rows], -1).astype(np.uint8))


@pytest.mark.parametrize("shape", [(8, 13), (12, 8), (8, 8)])
def test_an_image_of_the_right_scale_is_only_cut(shape: tuple[int, int]) -> None:
    image = coordinates(*shape)
    top, left = (shape[0] - 8) // 2, (shape[1] - 8) // 2
    expected = np.asarray(image)[top : top + 8, left : left + 8]
    np.testing.assert_array_equal(np.asarray(resize_and_crop(image, 8)), expected)


@pytest.mark.parametrize("size", [(16, 16), (8, 24), (100, 50), (1, 1)])
def test_resizing_keeps_the_centre_and_fills_the_size(size: tuple[int, int]) -> None:
    cropped = np.asarray(resize_and_crop(coordinates(61, 101), size)).astype(float)
    assert cropped.shape[:2] == size
    centre = cropped[..., :2].mean(axis=(0, 1))
    np.testing.assert_allclose(centre, (50, 30), atol=1.0)  # a gradient's mean is its centre


def test_downscaling_averages_instead_of_picking_pixels() -> None:
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    small = np.asarray(resize_and_crop(Image.fromarray(stripes), 8)).astype(float)
    np.testing.assert_allclose(small[2:-2, 2:-2], 127.5, atol=6)


def test_tensor_and_image_are_each_others_inverse() -> None:
    image = coordinates(5, 7)
    tensor = to_tensor(image)
    assert tensor.dtype == torch.float32
    assert tensor[:, 3, 6].tolist() == pytest.approx([6 / 255, 3 / 255, 0])
    np.testing.assert_array_equal(np.asarray(to_pil(tensor)), np.asarray(image))
    assert to_pil(torch.tensor([-1.0, 0.5, 2.0]).view(3, 1, 1)).getpixel((0, 0)) == (0, 128, 255)


def test_saved_images_are_whole_and_leave_no_partial_file(tmp_path: Path) -> None:
    tensor = to_tensor(coordinates(5, 7))
    save_image(tensor, tmp_path / "x.png")
    assert torch.equal(to_tensor(load_image(tmp_path / "x.png")), tensor)
    with pytest.raises(UserError, match="cannot write to"):
        save_image(tensor, tmp_path / "nowhere" / "x.png")
    assert os.listdir(tmp_path) == ["x.png"]


def test_grid_places_images_row_by_row_on_white(tmp_path: Path) -> None:
    images = torch.arange(5.0).div(8).view(5, 1, 1, 1).expand(5, 3, 2, 3)
    grid = make_grid(images, columns=3, scale=2, gap=1)
    assert grid.shape == (3, 2 * 5 + 1, 3 * 7 + 1)
    centres = grid[0, 2::5, 3::7]
    assert centres.tolist() == [[0, 1 / 8, 2 / 8], [3 / 8, 4 / 8, 1]]
    assert bool((grid[:, ::5] == 1).all()) and bool((grid[:, :, ::7] == 1).all())
    save_grid(images, tmp_path / "grid.png")
    size = (3 * (3 * 32 + 2) + 2, 2 * (2 * 32 + 2) + 2)  # as square as can be, 64 pixels high
    assert load_image(tmp_path / "grid.png").size == size


def test_images_are_scaled_to_be_seen() -> None:
    assert within(Image.new("RGB", (400, 10)), 100).size == (100, 2)
    assert within(Image.new("RGB", (90, 10)), 100).size == (90, 10)
    assert enlarged(Image.new("RGB", (28, 30)), 192).size == (196, 210)
    assert enlarged(Image.new("RGB", (256, 190)), 192).size == (256, 190)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_size_of_an_image_that_lies_on_its_side_is_that_which_is_shown(
    tmp_path: Path, suffix: str, orientation: int
) -> None:
    path, exif = tmp_path / f"image{suffix}", Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (30, 20)).save(path, exif=exif)
    assert image_size(path) == load_image(path).size[::-1]
    assert image_size(path) == ((30, 20) if orientation > 4 else (20, 30))
