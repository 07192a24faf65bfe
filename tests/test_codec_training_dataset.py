from pathlib import Path

import pytest
import torch
from PIL import Image

from sundae.codec_training.dataset import ImageDataset, augment, open_images, recolour
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
    import numpy as np

    from sundae.data.dataset import Latents
    from sundae.data.splits import split_rows

    root = folder_of(40, tmp_path)
    train, held_out = open_images(root, size=8, load_size=9, eval_fraction=0.25, cache=False)
    assert (train.size, held_out.size) == (9, 8)
    sources = tuple(path.relative_to(root).as_posix() for path in sorted(root.rglob("*.png")))
    rows = np.arange(len(sources))
    tokens = np.zeros((len(sources), 1, 1), np.uint8)
    latents = Latents(root, tokens, rows, sources, None, None, None, None)
    wanted = [{root / sources[row] for row in side} for side in split_rows(latents, (0.75, 0.25))]
    assert [set(train.paths), set(held_out.paths)] == wanted
    assert 0 < len(held_out) < 20


def test_too_few_images_for_both_sides_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="training.eval_fraction"):
        open_images(folder_of(1, tmp_path), size=8, load_size=8, eval_fraction=0.1, cache=False)


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
