"""Token data on disk: what is written is what training reads, and bad folders end in one line."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from sundae.common.errors import UserError
from sundae.data.dataset import (
    TokenDataset,
    check_agreement,
    collate_batched,
    open_latents,
)
from sundae.data.format import Manifest, token_dtype
from sundae.data.writer import write_latents

SHAPE = (2, 3)


def grids(rows: int, start: int = 0) -> np.ndarray:
    """Token grids that are all different: row r is 6r, 6r + 1, ..."""
    return np.arange(start, start + rows * 6).reshape(rows, *SHAPE)


def manifest(images: int, **changes: object) -> Manifest:
    values: dict[str, object] = {
        "codec": "fake-1",
        "codebook_size": 1000,
        "latent_shape": SHAPE,
        "mirrored": False,
        "classes": ("2", "10"),
        "sources": tuple(f"{i % 2}/{i}.png" for i in range(images)),
        "labels": tuple(i % 2 for i in range(images)),
    }
    return Manifest(**(values | changes))  # type: ignore[arg-type]


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """Four images, each followed by its mirror image."""
    write_latents(tmp_path / "packed", grids(8), manifest(4, mirrored=True))
    return tmp_path / "packed"


@pytest.mark.parametrize(
    ("codebook_size", "dtype"),
    [(2, "uint8"), (256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "uint32")],
)
def test_smallest_type_that_holds_the_codebook(codebook_size: int, dtype: str) -> None:
    assert token_dtype(codebook_size) == dtype


def test_packed_latents_come_back_mapped_not_loaded(packed: Path) -> None:
    latents = open_latents(packed)
    assert isinstance(latents.tokens, np.memmap)
    assert latents.tokens.dtype == np.uint16
    np.testing.assert_array_equal(latents.tokens, grids(8))
    assert latents.images.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert latents.classes == ("2", "10")
    assert (latents.codebook_size, latents.codec_identity) == (1000, "fake-1")
    assert latents.latent_shape == SHAPE


def test_loader_gives_rows_in_the_asked_order_with_the_label_of_their_image(packed: Path) -> None:
    data = TokenDataset(open_latents(packed), rows=np.array([7, 2, 0, 5]))
    batches = list(DataLoader(data, batch_size=3, collate_fn=collate_batched))
    expected = torch.from_numpy(grids(8).reshape(8, 6))
    assert torch.equal(batches[0]["tokens"], expected[[7, 2, 0]])
    assert batches[0]["classes"].tolist() == [1, 1, 0]
    assert torch.equal(batches[1]["tokens"], expected[[5]])
    assert batches[0]["tokens"].dtype == batches[0]["classes"].dtype == torch.int64
    assert torch.equal(data[1]["tokens"], expected[2])
    assert data[1]["classes"].shape == ()


def test_unconditional_data_has_no_classes_key(tmp_path: Path) -> None:
    write_latents(tmp_path / "x", grids(2), manifest(2, classes=None, labels=None))
    assert set(TokenDataset(open_latents(tmp_path / "x"))[0]) == {"tokens"}


def test_worker_processes_map_the_file_again_instead_of_receiving_a_copy(packed: Path) -> None:
    data = TokenDataset(open_latents(packed))
    sent = pickle.dumps(data)
    received = pickle.loads(sent)
    assert isinstance(received.latents.tokens, np.memmap)
    assert torch.equal(received[3]["tokens"], data[3]["tokens"])
    assert data.latents.tokens.tobytes() not in sent
    assert pickle.loads(pickle.dumps(collate_batched)) is collate_batched


def test_finished_latents_are_only_replaced_when_asked(packed: Path) -> None:
    with pytest.raises(UserError, match="--overwrite"):
        write_latents(packed, grids(1), manifest(1))
    assert len(open_latents(packed)) == 8
    write_latents(packed, grids(1), manifest(1), overwrite=True)
    assert len(open_latents(packed)) == 1


@pytest.mark.parametrize("tokens", [grids(3), grids(4) - 1, grids(4) + 990])
def test_writer_refuses_tokens_that_its_manifest_denies(tmp_path: Path, tokens: np.ndarray) -> None:
    with pytest.raises(ValueError, match="tokens"):
        write_latents(tmp_path / "x", tokens, manifest(4))
    assert not (tmp_path / "x").exists()


def test_manifest_is_readable_one_line_a_key(packed: Path) -> None:
    text = (packed / "latents.json").read_text()
    assert '\n  "classes": ["2", "10"],\n' in text
    assert len(text.splitlines()) == len(json.loads(text)) + 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "version 2, expected 1"),
        ({"format": "other"}, "does not describe latents"),
        ({"codec": None}, "'codec' is missing or mistyped"),
        ({"labels": [0, 1, 0]}, "3 labels for 4 sources"),
        ({"labels": [0, 1, 0, 2]}, "label 2 with 2 classes"),
        ({"labels": None}, "both be null"),
        ({"mirrored": False}, r"says \(4, 2, 3\)"),
        ({"latent_shape": [3, 2]}, r"says \(8, 3, 2\)"),
        ({"latent_shape": [6]}, "expected \\[height, width\\]"),
    ],
)
def test_manifest_that_contradicts_itself_or_the_array(
    packed: Path, changes: dict[str, object], message: str
) -> None:
    path = packed / "latents.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match=message):
        open_latents(packed)


def test_damaged_files_end_in_one_line(packed: Path) -> None:
    tokens, text = packed / "tokens.npy", packed / "latents.json"
    tokens.write_bytes(tokens.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"tokens\.npy cannot be read"):
        open_latents(packed)
    text.write_text(text.read_text()[:50])
    with pytest.raises(UserError, match=r"latents\.json cannot be read"):
        open_latents(packed)
    text.unlink()
    with pytest.raises(UserError, match="is unfinished"):
        open_latents(packed)


def test_folders_without_data(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        open_latents(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"holds no latents: .* generate-latents\.py"):
        open_latents(tmp_path)


@pytest.mark.parametrize("name", ["1.npy", "cats/1.npy"])
def test_one_file_per_image_is_refused_with_the_remedy(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    np.save(tmp_path / name, grids(1)[0])
    with pytest.raises(UserError, match=r"one \.npy per image.* generate-latents\.py"):
        open_latents(tmp_path)


def test_parent_of_two_packed_folders_is_not_taken_for_class_folders(tmp_path: Path) -> None:
    write_latents(tmp_path / "train", grids(2), manifest(2))
    with pytest.raises(UserError, match="holds the data sets train"):
        open_latents(tmp_path)


AGREES = {"vocab_size": 1000, "latent_shape": SHAPE, "num_classes": 2, "codec_identity": "fake-1"}


def test_data_that_agrees_with_the_run_passes(packed: Path) -> None:
    latents = open_latents(packed)
    check_agreement(latents, **AGREES)  # type: ignore[arg-type]
    check_agreement(latents, **(AGREES | {"num_classes": None, "codec_identity": None}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 512}, "codebook of 1000, data.vocab_size is 512: set data.vocab_size"),
        ({"latent_shape": (3, 2)}, r"shape \[2, 3\], the run file says \[3, 2\]"),
        ({"num_classes": 10}, r"2 classes, net.num_classes is 10: set net.num_classes = 2"),
        ({"codec_identity": "fake-2"}, "codec fake-1, vqgan.checkpoint is codec fake-2"),
    ],
)
def test_data_that_disagrees_names_both_values_and_the_key(
    packed: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        check_agreement(open_latents(packed), **(AGREES | changes))  # type: ignore[arg-type]


def test_class_conditional_run_on_data_without_classes(tmp_path: Path) -> None:
    write_latents(tmp_path / "x", grids(2), manifest(2, classes=None, labels=None))
    with pytest.raises(UserError, match="no classes, net.num_classes is 2: set net.conditional"):
        check_agreement(open_latents(tmp_path / "x"), **AGREES)  # type: ignore[arg-type]


def test_token_beyond_the_vocabulary_is_found_before_training(packed: Path) -> None:
    tokens = np.lib.format.open_memmap(packed / "tokens.npy", mode="r+")
    tokens[7, 1, 2] = 999
    tokens.flush()
    check_agreement(open_latents(packed), **AGREES)  # type: ignore[arg-type]
    tokens[7, 1, 2] = 1000
    tokens.flush()
    with pytest.raises(UserError, match="holds token 1000, data.vocab_size is 1000: generate"):
        check_agreement(open_latents(packed), **AGREES)  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [b"four", b"\0" * 48, None], ids=["longer", "rows", "shorter"])
def test_an_array_is_as_long_as_its_header_says(packed: Path, change: bytes | None) -> None:
    """Two writers, or a copy that broke off, leave another length; numpy reads the longer ones."""
    opened, path = open_latents(packed), packed / "tokens.npy"
    data = path.read_bytes()
    path.write_bytes(data[:-1] if change is None else data + change)
    with pytest.raises(UserError, match=r"tokens\.npy cannot be read \("):
        open_latents(packed)
    with pytest.raises(ValueError, match="its header says|mmap length"):  # in a reading process
        pickle.loads(pickle.dumps(opened))
