"""generate-latents: interrupted or not, with bad images or not, the same bytes come out."""

import json
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sundae.codec.encoding import EncodingReport, generate_latents
from sundae.common import locking, memory
from sundae.common.errors import UserError
from sundae.data.dataset import open_latents
from sundae.data.splits import split_rows

SCRIPT = Path(__file__).parent.parent / "generate-latents.py"


class FakeCodec:
    """A token is the red value of the top left pixel of its 2x2 patch."""

    factor = 2
    codebook_size = 256
    resolution = 8

    def __init__(self, identity: str = "fake", breaks_at_call: int | None = None) -> None:
        self.identity = identity
        self.breaks_at_call = breaks_at_call
        self.batch_sizes: list[int] = []

    def encode(self, images: Tensor) -> Tensor:
        if len(self.batch_sizes) == self.breaks_at_call:
            raise KeyboardInterrupt
        self.batch_sizes.append(len(images))
        return (images[:, 0, ::2, ::2] * 255).round().long()

    def decode(self, tokens: Tensor) -> Tensor:
        raise AssertionError("making latents decodes nothing")

    def to(self, device: torch.device | str) -> "FakeCodec":
        return self


def save_image(path: Path, red: int) -> None:
    """An 8x8 image whose red value grows from `red` by 1 a column."""
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    pixels[..., 0] = red + np.arange(8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Seven images in two classes."""
    root = tmp_path / "images"
    for index in range(7):
        save_image(root / ("10" if index % 2 else "2") / f"{index + 7}.png", 20 * index)
    return root


def encode(images: Path, out: Path, **changes: object) -> EncodingReport:
    settings: dict[str, object] = {"codec": FakeCodec(), "batch_size": 2, "use_class": True}
    settings |= changes
    codec = settings.pop("codec")
    return generate_latents(codec, images, out, **settings)  # type: ignore[arg-type]


def contents(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.iterdir()}


def test_rows_are_images_and_their_mirror_images_in_natural_order(
    images: Path, tmp_path: Path
) -> None:
    report = encode(images, tmp_path / "out")
    latents = open_latents(tmp_path / "out")
    assert latents.sources == tuple(
        [f"2/{name}.png" for name in (7, 9, 11, 13)] + [f"10/{name}.png" for name in (8, 10, 12)]
    )
    reds = [0, 40, 80, 120, 20, 60, 100]
    assert latents.tokens[::2, 0, 0].tolist() == reds
    assert latents.tokens[0].tolist() == [[0, 2, 4, 6]] * 4
    assert latents.tokens[1].tolist() == [[7, 5, 3, 1]] * 4
    assert latents.labels is not None
    assert (latents.classes, latents.labels.tolist()) == (("2", "10"), [0, 0, 0, 0, 1, 1, 1])
    assert (latents.codebook_size, latents.codec_identity) == (256, "fake")
    assert report == EncodingReport(num_images=7, rows=14, skipped={}, already_done=0)
    assert set(contents(tmp_path / "out")) == {"tokens.npy", "latents.json"}
    np.save(tmp_path / "plain.npy", latents.tokens)
    assert (tmp_path / "plain.npy").read_bytes() == contents(tmp_path / "out")["tokens.npy"]


def test_without_mirror_images_and_classes(images: Path, tmp_path: Path) -> None:
    encode(images, tmp_path / "out", mirror=False, use_class=False)
    latents = open_latents(tmp_path / "out")
    assert len(latents) == 7
    assert latents.classes is None
    assert all(len(side) for side in split_rows(latents, (5, 2)))


def test_a_batch_of_large_images_is_encoded_in_parts(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode(images, tmp_path / "whole", batch_size=4)
    monkeypatch.setattr(memory, "ENCODED_PIXELS", 3 * 8 * 8)
    codec = FakeCodec()
    encode(images, tmp_path / "parts", batch_size=4, codec=codec)
    assert codec.batch_sizes == [3, 1, 3, 1, 3, 3]
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


@pytest.mark.parametrize("breaks_at_call", [0, 1, 3, 6])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_interrupted_and_started_again_gives_the_same_bytes(
    images: Path, tmp_path: Path, breaks_at_call: int, num_workers: int
) -> None:
    (images / "2" / "9.png").write_bytes(b"not an image")
    encode(images, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        encode(images, tmp_path / "out", codec=FakeCodec(breaks_at_call=breaks_at_call))
    with pytest.raises(UserError, match="is unfinished"):
        open_latents(tmp_path / "out")
    codec = FakeCodec()
    report = encode(images, tmp_path / "out", codec=codec, num_workers=num_workers)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert report.already_done == breaks_at_call // 2 * 2  # two calls a batch, two images a batch
    assert codec.batch_sizes == [1, 1, 2, 2, 2, 2, 1, 1][breaks_at_call // 2 * 2 :]


class Killed(BaseException):
    """The end of a process, after which it does nothing more."""


def kill_at(patch: pytest.MonkeyPatch, step: int) -> None:
    """Lets the process die before its `step`-th change of the file system."""
    left = step

    def dying(change: Callable[..., None]) -> Callable[..., None]:
        def run(*arguments: object, **options: object) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            change(*arguments, **options)

        return run

    for name in ("replace", "unlink", "rmdir", "mkdir"):
        patch.setattr(os, name, dying(getattr(os, name)))
    patch.setattr(locking, "_held", set())


def test_killed_anywhere_and_started_again_gives_the_same_bytes(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (images / "2" / "9.png").write_bytes(b"not an image")
    encode(images, tmp_path / "whole")
    for step in range(100):
        out, killed = tmp_path / f"out{step}", False
        with monkeypatch.context() as patch:
            kill_at(patch, step)
            try:
                encode(images, out)
            except Killed:
                killed = True
        if not killed:
            break
        try:
            encode(images, out)
        except UserError as error:  # killed after all was done
            assert "already holds finished latents" in str(error)
        assert open_latents(out).sources == open_latents(tmp_path / "whole").sources
        left = {name: data for name, data in contents(out).items() if not name.startswith(".")}
        assert left == contents(tmp_path / "whole"), step
    assert 15 < step < 99


def test_a_finished_job_encodes_nothing_again(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("sundae.data.writer._write", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            encode(images, tmp_path / "out")
    codec = FakeCodec()
    assert encode(images, tmp_path / "out", codec=codec).already_done == 7
    assert codec.batch_sizes == []


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"codec": FakeCodec("other")}, "codec"),
        ({"batch_size": 3}, "batch size"),
        ({"mirror": False}, "mirrored"),
        ({"size": (16, 16)}, "size"),
        ({"use_class": False}, "classes"),
    ],
)
def test_going_on_with_other_settings_is_refused_until_overwritten(
    images: Path, tmp_path: Path, changes: dict[str, object], named: str
) -> None:
    with pytest.raises(KeyboardInterrupt):
        encode(images, tmp_path / "out", codec=FakeCodec(breaks_at_call=2))
    with pytest.raises(UserError, match=f"another {named} .*--overwrite"):
        encode(images, tmp_path / "out", **changes)
    assert encode(images, tmp_path / "out", overwrite=True, **changes).already_done == 0


def test_going_on_with_other_images_is_refused(images: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        encode(images, tmp_path / "out", codec=FakeCodec(breaks_at_call=2))
    save_image(images / "2" / "1.png", 0)
    with pytest.raises(UserError, match="another list of images"):
        encode(images, tmp_path / "out")


def test_lost_shards_are_noticed(images: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        encode(images, tmp_path / "out", codec=FakeCodec(breaks_at_call=4))
    shards = tmp_path / "out" / "shards"
    first = shards / "00000000.npz"
    for damage in (first.read_bytes()[:-9], b"", b"text"):
        first.write_bytes(damage)
        with pytest.raises(UserError, match="is damaged and cannot be continued"):
            encode(images, tmp_path / "out")
    (shards / "settings.json").write_bytes(b"\x00\x00\n")
    with pytest.raises(UserError, match="damaged"):
        encode(images, tmp_path / "out")
    assert encode(images, tmp_path / "out", overwrite=True).already_done == 0


def test_two_writers_at_once_are_refused(images: Path, tmp_path: Path) -> None:
    class Meanwhile(FakeCodec):
        def encode(self, images: Tensor) -> Tensor:
            with pytest.raises(UserError, match="out is being written by this process"):
                encode(root, tmp_path / "out")
            return super().encode(images)

    root = images
    assert encode(root, tmp_path / "out", codec=Meanwhile()).rows == 14


def test_finished_latents_are_only_replaced_when_asked(images: Path, tmp_path: Path) -> None:
    encode(images, tmp_path / "out")
    with pytest.raises(UserError, match="--overwrite"):
        encode(images, tmp_path / "out")
    save_image(images / "2" / "1.png", 0)
    assert encode(images, tmp_path / "out", overwrite=True).num_images == 8


def test_bad_images_are_listed_and_cost_only_their_own_rows(images: Path, tmp_path: Path) -> None:
    for name in ("2/9.png", "10/8.png", "10/10.png"):
        (images / name).write_bytes((images / name).read_bytes()[:50])
    report = encode(images, tmp_path / "out")
    latents = open_latents(tmp_path / "out")
    assert latents.tokens[::2, 0, 0].tolist() == [0, 80, 120, 100]
    assert latents.sources == ("2/7.png", "2/11.png", "2/13.png", "10/12.png")
    assert latents.labels is not None
    assert latents.labels.tolist() == [0, 0, 0, 1]
    listed = (tmp_path / "out" / "skipped.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in listed] == ["2/9.png", "10/8.png", "10/10.png"]
    assert list(report.skipped) == ["2/9.png", "10/8.png", "10/10.png"]


def test_file_names_that_are_not_utf8_do_not_stop_the_job(tmp_path: Path) -> None:
    strange = os.fsdecode(b"caf\xe9.png")
    (tmp_path / "images").mkdir()
    try:
        (tmp_path / "images" / strange).write_bytes(b"")
    except OSError:
        pytest.skip("this file system has no such names")
    save_image(tmp_path / "images" / f"1{strange}", 5)
    encode(tmp_path / "images", tmp_path / "out", use_class=False)
    assert open_latents(tmp_path / "out").sources == (f"1{strange}",)
    assert b"caf\xe9.png\t" in (tmp_path / "out" / "skipped.txt").read_bytes()


def test_strict_stops_at_a_bad_image_and_goes_on_once_it_is_repaired(
    images: Path, tmp_path: Path
) -> None:
    encode(images, tmp_path / "whole")
    good = (images / "2" / "13.png").read_bytes()
    (images / "2" / "13.png").write_bytes(good[:50])
    with pytest.raises(UserError, match=r"cannot read .*2/13\.png"):
        encode(images, tmp_path / "out", strict=True)
    (images / "2" / "13.png").write_bytes(good)
    assert encode(images, tmp_path / "out", strict=True).already_done == 2
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_folders_that_cannot_be_encoded(images: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no"):
        encode(tmp_path / "empty", tmp_path / "out")
    (images / "7").mkdir()
    with pytest.raises(UserError, match="class '7' has no images"):
        encode(images, tmp_path / "out")
    save_image(images / "stray.png", 0)
    with pytest.raises(UserError, match=r"stray\.png belongs to no class"):
        encode(images, tmp_path / "out")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "1.png").write_bytes(b"")
    with pytest.raises(UserError, match="none of the images"):
        encode(tmp_path / "bad", tmp_path / "out", use_class=False)
    assert set(contents(tmp_path / "out")) == {"skipped.txt"}


def test_places_and_sizes_that_cannot_work(images: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write to"):
        encode(images, tmp_path / "file" / "out")
    for size in ((0, 8), (8, 7)):
        with pytest.raises(UserError, match="multiples of 2"):
            encode(images, tmp_path / "out", size=size)
    assert not (tmp_path / "out").exists()


def run_script(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Runs the script with the fake codec in place of a checkpoint and returns its exit code."""
    vqgan = ModuleType("sundae.codec.vqgan")
    vqgan.load_vqgan = lambda *_, **rules: FakeCodec()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sundae.codec.vqgan", vqgan)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--ckpt-path", "x", *map(str, arguments)])
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_script_says_where_the_latents_are(
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (images / "2" / "9.png").write_bytes(b"")
    flags = ["--dataset-in", images, "--latents-out", tmp_path / "out", "--use-class"]
    flags += ["--no-aug", "--size", "8x16", "--batch-size", "3", "--no-cuda", "--legacy-cfg"]
    assert run_script(monkeypatch, *flags) == 0
    printed = capsys.readouterr()
    assert f"wrote {tmp_path / 'out'}: 7 images, 6 rows, 1 skipped (see" in printed.out
    assert printed.err == ""
    assert json.loads((tmp_path / "out" / "latents.json").read_text())["latent_shape"] == [4, 8]
    assert run_script(monkeypatch, *flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
