"""generate-latents: interrupted or not, with bad pictures or not, the same bytes come out."""

import json
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sundae.codec.encoding import EncodingReport, generate_latents
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


def save_picture(path: Path, red: int) -> None:
    """An 8x8 picture whose red value grows from `red` by 1 a column."""
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    pixels[..., 0] = red + np.arange(8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Seven pictures in two classes."""
    root = tmp_path / "pictures"
    for index in range(7):
        save_picture(root / ("10" if index % 2 else "2") / f"{index + 7}.png", 20 * index)
    return root


def encode(pictures: Path, out: Path, **changes: object) -> EncodingReport:
    settings: dict[str, object] = {"codec": FakeCodec(), "batch_size": 2, "use_class": True}
    settings |= changes
    codec = settings.pop("codec")
    return generate_latents(codec, pictures, out, **settings)  # type: ignore[arg-type]


def contents(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.iterdir()}


def test_rows_are_pictures_and_their_mirror_images_in_natural_order(
    pictures: Path, tmp_path: Path
) -> None:
    report = encode(pictures, tmp_path / "out")
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
    assert report == EncodingReport(pictures=7, rows=14, skipped={}, already_done=0)
    assert set(contents(tmp_path / "out")) == {"tokens.npy", "latents.json"}
    np.save(tmp_path / "plain.npy", latents.tokens)
    assert (tmp_path / "plain.npy").read_bytes() == contents(tmp_path / "out")["tokens.npy"]


def test_without_mirror_images_and_classes(pictures: Path, tmp_path: Path) -> None:
    encode(pictures, tmp_path / "out", mirror=False, use_class=False)
    latents = open_latents(tmp_path / "out")
    assert len(latents) == 7
    assert not latents.mirrored
    assert latents.classes is None
    assert all(len(side) for side in split_rows(latents, (5, 2)))


@pytest.mark.parametrize("breaks_at_call", [0, 1, 3, 6])
@pytest.mark.parametrize("nb_workers", [0, 1])
def test_interrupted_and_started_again_gives_the_same_bytes(
    pictures: Path, tmp_path: Path, breaks_at_call: int, nb_workers: int
) -> None:
    (pictures / "2" / "9.png").write_bytes(b"not a picture")
    encode(pictures, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        encode(pictures, tmp_path / "out", codec=FakeCodec(breaks_at_call=breaks_at_call))
    with pytest.raises(UserError, match="is unfinished"):
        open_latents(tmp_path / "out")
    codec = FakeCodec()
    report = encode(pictures, tmp_path / "out", codec=codec, nb_workers=nb_workers)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert report.already_done == breaks_at_call // 2 * 2  # two calls a batch, two pictures a batch
    assert codec.batch_sizes == [1, 1, 2, 2, 2, 2, 1, 1][breaks_at_call // 2 * 2 :]


def kill_while_writing_rows(out: Path) -> None:
    with (out / "tokens.partial").open("ab") as rows:
        rows.write(b"half a row")


def kill_while_writing_the_journal(out: Path) -> None:
    kill_while_writing_rows(out)
    with (out / "progress.jsonl").open("ab") as journal:
        journal.write(b'{"pictures": 6, "ro')


def kill_before_the_first_row(out: Path) -> None:
    for path in out.iterdir():
        path.write_bytes(path.read_bytes()[:10])


@pytest.mark.parametrize(
    "kill",
    [kill_while_writing_rows, kill_while_writing_the_journal, kill_before_the_first_row],
)
def test_what_a_kill_left_half_written_is_written_again(
    pictures: Path, tmp_path: Path, kill: Callable[[Path], None]
) -> None:
    encode(pictures, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        encode(pictures, tmp_path / "out", codec=FakeCodec(breaks_at_call=5))
    kill(tmp_path / "out")
    encode(pictures, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("step", ["_write_tokens", "_remove_traces"])
def test_killed_while_finishing(
    pictures: Path, tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: object) -> None:
        raise KeyboardInterrupt

    encode(pictures, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(f"sundae.data.resumable_writer.ResumableWriter.{step}", killed)
        with pytest.raises(KeyboardInterrupt):
            encode(pictures, tmp_path / "out")
    codec = FakeCodec()
    encode(pictures, tmp_path / "out", codec=codec)
    assert codec.batch_sizes == []
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"codec": FakeCodec("other")}, "codec"),
        ({"batch_size": 3}, "batch size"),
        ({"mirror": False}, "mirrored"),
        ({"size": (16, 16)}, "latent shape"),
        ({"use_class": False}, "classes"),
    ],
)
def test_going_on_with_other_settings_is_refused_until_overwritten(
    pictures: Path, tmp_path: Path, changes: dict[str, object], named: str
) -> None:
    with pytest.raises(KeyboardInterrupt):
        encode(pictures, tmp_path / "out", codec=FakeCodec(breaks_at_call=2))
    with pytest.raises(UserError, match=f"another {named} .*--overwrite"):
        encode(pictures, tmp_path / "out", **changes)
    assert encode(pictures, tmp_path / "out", overwrite=True, **changes).already_done == 0


def test_going_on_with_other_pictures_is_refused(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        encode(pictures, tmp_path / "out", codec=FakeCodec(breaks_at_call=2))
    save_picture(pictures / "2" / "1.png", 0)
    with pytest.raises(UserError, match="another list of pictures"):
        encode(pictures, tmp_path / "out")


def test_lost_rows_are_noticed(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        encode(pictures, tmp_path / "out", codec=FakeCodec(breaks_at_call=4))
    (tmp_path / "out" / "tokens.partial").write_bytes(b"")
    with pytest.raises(UserError, match="damaged"):
        encode(pictures, tmp_path / "out")
    (tmp_path / "out" / "progress.jsonl").write_bytes(b"\x00\x00\n")
    with pytest.raises(UserError, match="damaged"):
        encode(pictures, tmp_path / "out")


def test_finished_latents_are_only_replaced_when_asked(pictures: Path, tmp_path: Path) -> None:
    encode(pictures, tmp_path / "out")
    with pytest.raises(UserError, match="--overwrite"):
        encode(pictures, tmp_path / "out")
    save_picture(pictures / "2" / "1.png", 0)
    assert encode(pictures, tmp_path / "out", overwrite=True).pictures == 8


def test_bad_pictures_are_listed_and_cost_only_their_own_rows(
    pictures: Path, tmp_path: Path
) -> None:
    for name in ("2/9.png", "10/8.png", "10/10.png"):
        (pictures / name).write_bytes((pictures / name).read_bytes()[:50])
    report = encode(pictures, tmp_path / "out")
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
    (tmp_path / "pictures").mkdir()
    try:
        (tmp_path / "pictures" / strange).write_bytes(b"")
    except OSError:
        pytest.skip("this file system has no such names")
    save_picture(tmp_path / "pictures" / f"1{strange}", 5)
    encode(tmp_path / "pictures", tmp_path / "out", use_class=False)
    assert open_latents(tmp_path / "out").sources == (f"1{strange}",)
    assert b"caf\xe9.png\t" in (tmp_path / "out" / "skipped.txt").read_bytes()


def test_strict_stops_at_a_bad_picture_and_goes_on_once_it_is_repaired(
    pictures: Path, tmp_path: Path
) -> None:
    encode(pictures, tmp_path / "whole")
    good = (pictures / "2" / "13.png").read_bytes()
    (pictures / "2" / "13.png").write_bytes(good[:50])
    with pytest.raises(UserError, match=r"cannot read .*2/13\.png"):
        encode(pictures, tmp_path / "out", strict=True)
    (pictures / "2" / "13.png").write_bytes(good)
    assert encode(pictures, tmp_path / "out", strict=True).already_done == 2
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_folders_that_cannot_be_encoded(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no pictures"):
        encode(tmp_path / "empty", tmp_path / "out")
    (pictures / "7").mkdir()
    with pytest.raises(UserError, match="class '7' has no pictures"):
        encode(pictures, tmp_path / "out")
    save_picture(pictures / "stray.png", 0)
    with pytest.raises(UserError, match=r"stray\.png belongs to no class"):
        encode(pictures, tmp_path / "out")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "1.png").write_bytes(b"")
    with pytest.raises(UserError, match="none of the pictures"):
        encode(tmp_path / "bad", tmp_path / "out", use_class=False)
    assert set(contents(tmp_path / "out")) == {"skipped.txt"}


def test_places_and_sizes_that_cannot_work(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write to"):
        encode(pictures, tmp_path / "file" / "out")
    for size in ((0, 8), (8, 7)):
        with pytest.raises(UserError, match="multiples of 2"):
            encode(pictures, tmp_path / "out", size=size)
    assert not (tmp_path / "out").exists()


def run_script(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Runs the script with the fake codec in place of a checkpoint and returns its exit code."""
    vqgan = ModuleType("sundae.codec.vqgan")
    vqgan.load_vqgan = lambda checkpoint, config: FakeCodec()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sundae.codec.vqgan", vqgan)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--ckpt-path", "x", *map(str, arguments)])
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_script_says_where_the_latents_are(
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (pictures / "2" / "9.png").write_bytes(b"")
    flags = ["--dataset-in", pictures, "--latents-out", tmp_path / "out", "--use-class"]
    flags += ["--no-aug", "--size", "8x16", "--batch-size", "3", "--no-cuda", "--legacy-cfg"]
    assert run_script(monkeypatch, *flags) == 0
    printed = capsys.readouterr()
    assert f"wrote {tmp_path / 'out'}: 7 pictures, 6 rows, 1 skipped (see" in printed.out
    assert printed.err == ""
    assert json.loads((tmp_path / "out" / "latents.json").read_text())["latent_shape"] == [4, 8]
    assert run_script(monkeypatch, *flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
