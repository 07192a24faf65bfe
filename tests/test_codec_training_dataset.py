from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sundae.codec_training.config import TrainingConfig
from sundae.codec_training.dataset import (
    CropDataset,
    ImageDataset,
    WholeImages,
    augment,
    open_images,
    recolour,
    split_images,
)
from sundae.common.errors import UserError
from sundae.common.images import load_image, resize_and_crop, save_image, to_tensor


def folder_of(count: int, root: Path, side: int = 12) -> Path:
    generator = torch.Generator().manual_seed(0)
    for index in range(count):
        path = root / f"class{index % 2}" / f"{index:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_image(torch.rand(3, side, side + 4, generator=generator), path)
    return root


def test_batches_hold_the_images_scaled_and_cut(tmp_path: Path) -> None:
    paths = sorted(folder_of(4, tmp_path).rglob("*.png"))
    data = ImageDataset(paths, 8)
    images = data.__getitems__([2, 0])["images"]
    wanted = [to_tensor(resize_and_crop(load_image(paths[i]), 8)) for i in (2, 0)]
    torch.testing.assert_close(images, torch.stack(wanted))


def test_the_cache_gives_the_same_and_reads_once(tmp_path: Path) -> None:
    paths = sorted(folder_of(2, tmp_path).rglob("*.png"))
    data = ImageDataset(paths, 8, cache=True)
    before = data.__getitems__([0, 1])["images"]
    before_again = before.clone()
    before.zero_()  # what a caller does to a batch does not reach the cache
    for path in paths:
        path.unlink()
    torch.testing.assert_close(data.__getitems__([0, 1])["images"], before_again)


def test_a_broken_image_is_one_line_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="bad.png"):
        ImageDataset([tmp_path / "bad.png"], 8).__getitems__([0])


def test_held_out_images_are_those_of_the_token_data(tmp_path: Path) -> None:
    """The prior must not be judged on images that its codec was trained on."""
    from sundae.data.dataset import Latents
    from sundae.data.splits import split_rows

    root = folder_of(40, tmp_path)
    train, held_out = split_images(root, 0.25)
    sources = tuple(path.relative_to(root).as_posix() for path in sorted(root.rglob("*.png")))
    rows = np.arange(len(sources))
    tokens = np.zeros((len(sources), 1, 1), np.uint8)
    latents = Latents(root, tokens, rows, sources, None, None, None, None)
    wanted = [{root / sources[row] for row in side} for side in split_rows(latents, (0.75, 0.25))]
    assert [set(train), set(held_out)] == wanted
    assert 0 < len(held_out) < 20


def test_too_few_images_for_both_sides_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="training.eval_fraction"):
        split_images(folder_of(1, tmp_path), 0.1)


def settings(**values: object) -> TrainingConfig:
    return TrainingConfig(**{"batch_size": 1, "size": 8, **values})


def test_scaled_images_leave_training_room_for_a_random_crop(tmp_path: Path) -> None:
    root, cfg = folder_of(20, tmp_path), settings(random_crop=1.125)
    train, held_out = (data.__getitems__([0])["images"] for data in open_images(root, cfg, 2))
    assert train.shape[2:] == (9, 9) and held_out.shape[2:] == (8, 8)


def places(path: Path, height: int, width: int) -> Path:
    """An image that says at each pixel where it is: row in red, column in green."""
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack((rows, columns, rows ^ columns), 2).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_crops_are_the_pixels_of_the_file(tmp_path: Path) -> None:
    sizes = ((9, 20), (30, 8))
    paths = [places(tmp_path / f"{width}.png", height, width) for height, width in sizes]
    data = CropDataset(paths, 8, crops=3)
    crops = data.__getitems__([1, 0])["images"]
    for number, crop in enumerate(crops):
        image = to_tensor(load_image(paths[1 - number // 3]))
        top, left = (int(255 * value + 0.5) for value in crop[:2, 0, 0])
        assert torch.equal(crop, image[:, top : top + 8, left : left + 8])


@pytest.mark.parametrize("cache", [False, True])
def test_crops_depend_on_the_visit_and_reach_every_place(tmp_path: Path, cache: bool) -> None:
    data = CropDataset([places(tmp_path / "a.png", 10, 9)], 8, cache=cache)
    crops = data.__getitems__(range(100))["images"]
    assert torch.equal(data.__getitems__([7])["images"][0], crops[7])
    found = {tuple((255 * crop[:2, 0, 0]).round().int().tolist()) for crop in crops}
    assert found == {(row, column) for row in range(3) for column in range(2)}


def test_whole_images_lose_nothing_but_what_is_no_patch(tmp_path: Path) -> None:
    paths = [places(tmp_path / "a.png", 17, 24), places(tmp_path / "b.png", 12, 12)]
    data, scaled = WholeImages(paths, 4), WholeImages(paths, 4, 8)
    images = [data.__getitems__([index])["images"][0] for index in range(2)]
    assert torch.equal(images[0], to_tensor(load_image(paths[0]))[:, :16])
    assert torch.equal(images[1], to_tensor(load_image(paths[1])))
    expected = to_tensor(resize_and_crop(load_image(paths[0]), 8))
    assert torch.equal(scaled.__getitems__([0])["images"][0], expected)
    resolutions = [data.resolution, scaled.resolution, WholeImages(paths[1:], 5).resolution]
    assert resolutions == [None, 8, 10]


def test_an_image_smaller_than_a_crop_is_refused_before_the_work(tmp_path: Path) -> None:
    root, cfg = folder_of(20, tmp_path), settings(full_resolution=True)
    open_images(root, cfg, 2)
    places(root / "class0" / "small.png", 20, 7)
    with pytest.raises(UserError, match=r"small.png has 20x7 pixels, .*training.size = 8; remove"):
        open_images(root, cfg, 2)
    (root / "class0" / "small.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"cannot read .*small.png"):
        open_images(root, cfg, 2)


def test_augmentation_follows_its_generator_alone() -> None:
    images = torch.rand(16, 3, 10, 12, generator=torch.Generator().manual_seed(1))

    def draw(seed: int) -> torch.Tensor:
        return augment(images, 8, mirror=True, generator=torch.Generator().manual_seed(seed))

    torch.testing.assert_close(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))


def test_augmented_images_are_windows_some_mirrored() -> None:
    images = torch.rand(64, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    cut = augment(images, 4, mirror=True, generator=torch.Generator().manual_seed(0))
    found = set()
    for image, result in zip(images, cut, strict=True):
        options = {
            (row, column, turned): window.flip(2) if turned else window
            for row in range(2)
            for column in range(2)
            for turned in (False, True)
            for window in [image[:, row : row + 4, column : column + 4]]
        }
        (which,) = [name for name, window in options.items() if torch.equal(window, result)]
        found.add(which)
    assert len(found) == 8


def test_without_a_generator_the_centre_is_cut_and_nothing_turned() -> None:
    images = torch.arange(3 * 6 * 6.0).view(1, 3, 6, 6)
    torch.testing.assert_close(
        augment(images, 4, mirror=True, generator=None), images[:, :, 1:5, 1:5]
    )
    assert augment(images, 6, mirror=False, generator=None) is images


def test_colours_keep_their_channel(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (255, 0, 51)).save(tmp_path / "a.png")
    image = ImageDataset([tmp_path / "a.png"], 4).__getitems__([0])["images"][0]
    torch.testing.assert_close(image[:, 0, 0], torch.tensor([1.0, 0.0, 0.2]))


def test_recolouring_shuffles_channels_of_a_share_of_the_images_and_nothing_else() -> None:
    images = torch.rand(4000, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    made = recolour(images, 0.6, torch.Generator().manual_seed(0))
    assert torch.equal(made.sort(dim=1).values, images.sort(dim=1).values)
    changed = (made != images).flatten(1).any(1).float().mean()
    assert abs(float(changed) - 0.6 * 5 / 6) < 0.03  # one shuffle in six changes nothing
    assert torch.equal(recolour(images, 0.0, torch.Generator().manual_seed(0)), images)
