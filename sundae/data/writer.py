"""Writing token data in the packed format: at once, or by batches in a job that may be killed."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from sundae.common.errors import UserError
from sundae.common.files import atomic_path, make_folder, write_text, writing_to
from sundae.data.format import (
    MANIFEST_NAME,
    SHARDS_NAME,
    SKIPPED_NAME,
    TOKENS_NAME,
    Manifest,
    token_dtype,
    write_manifest,
)

Settings = dict[str, Any]


def is_finished(root: Path) -> bool:
    """Whether a folder holds complete packed latents."""
    return (root / MANIFEST_NAME).is_file()


def _refuse_finished(root: Path) -> None:
    if is_finished(root):
        raise UserError(
            f"{root} already holds finished latents; choose another folder or pass --overwrite"
        )


def write_latents(
    root: Path, tokens: np.ndarray, manifest: Manifest, *, overwrite: bool = False
) -> None:
    """Writes a whole data set that fits in memory, and creates its folder.

    Args:
        tokens: (manifest.rows, h, w) integer in [0, manifest.codebook_size).
        overwrite: replace finished latents instead of refusing.

    Raises:
        UserError: the folder is finished and overwrite is off, or it cannot be written to.
        ValueError: tokens and manifest disagree.
    """
    if tokens.shape != (manifest.rows, *manifest.latent_shape):
        raise ValueError(f"tokens are {tokens.shape}, the manifest says {manifest.rows} rows")
    if tokens.size and not 0 <= tokens.min() <= tokens.max() < manifest.codebook_size:
        raise ValueError(f"tokens must be in [0, {manifest.codebook_size})")
    if not overwrite:
        _refuse_finished(root)
    _write(make_folder(root), [tokens], manifest)


def _write(root: Path, parts: Iterable[np.ndarray], manifest: Manifest) -> None:
    """Writes the rows of all parts, which follow each other, and then the manifest."""
    (root / MANIFEST_NAME).unlink(missing_ok=True)  # from here to the end the folder is unfinished
    dtype = token_dtype(manifest.codebook_size)
    header = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": (manifest.rows, *manifest.latent_shape),
    }
    with atomic_path(root / TOKENS_NAME) as partial, partial.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            file.write(part.astype(dtype, copy=False).tobytes())
    write_manifest(root, manifest)


class ShardWriter:
    """Packed latents written a batch at a time; a killed job goes on after its last whole shard.

    Each batch becomes a file of its own in ROOT/shards. `finish` joins them.

    Attributes:
        num_shards: batches that are written already.
    """

    def __init__(self, root: Path, settings: Settings, *, overwrite: bool = False) -> None:
        """Starts, or goes on where an earlier writer with the same settings stopped.

        Args:
            root: the folder, which the caller has locked.
            settings: JSON values that decide the result.
            overwrite: drop what the folder holds, finished or not.

        Raises:
            UserError: root holds finished latents, was begun with other settings, or cannot be
                written to.
        """
        self.root, self._shards = root, root / SHARDS_NAME
        self._settings = self._shards / "settings.json"
        with writing_to(root):
            if overwrite:
                self._remove_shards()
                for name in (MANIFEST_NAME, TOKENS_NAME, SKIPPED_NAME):
                    (root / name).unlink(missing_ok=True)
            if self._settings.exists():
                self._require_same(settings)
            else:
                self._remove_shards()
                _refuse_finished(root)
                self._shards.mkdir()
                write_text(self._settings, json.dumps(settings))
        self.num_shards = sum(1 for _ in self._shards.glob("[0-9]*.npz"))

    def _require_same(self, settings: Settings) -> None:
        try:
            begun = json.loads(self._settings.read_text(encoding="utf-8"))
        except ValueError as error:
            raise self._damaged(error) from error
        for key, value in json.loads(json.dumps(settings)).items():
            if begun.get(key) != value:
                name, old = key.replace("_", " "), begun.get(key)
                raise UserError(
                    f"{self.root} was begun with another {name} ({old}, now {value}); "
                    "go on with the old one or pass --overwrite"
                )

    def append(self, tokens: np.ndarray, skipped: dict[int, str]) -> None:
        """Writes the next batch: (rows, h, w) tokens; skipped: index of an image -> the reason."""
        content = {"tokens": tokens, "skipped": np.array(json.dumps(skipped))}
        with atomic_path(self._shard(self.num_shards)) as partial, partial.open("wb") as file:
            np.savez(file, **content)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())  # a machine that fails must not leave the name without the rows
        self.num_shards += 1

    def skipped(self) -> dict[int, str]:
        """Reason by image index, of all images that gave no rows."""
        merged: dict[int, str] = {}
        for part in self._read("skipped"):
            merged |= {int(index): reason for index, reason in json.loads(str(part)).items()}
        return merged

    def finish(self, manifest: Manifest | None, report: str) -> None:
        """Joins the shards to finished latents; can be killed and repeated at any point.

        Args:
            manifest: description of the rows; None leaves nothing but the report.
            report: text of skipped.txt; "" when nothing was skipped.
        """
        with writing_to(self.root):
            (self.root / SKIPPED_NAME).unlink(missing_ok=True)
            if report:
                write_text(self.root / SKIPPED_NAME, report)
            if manifest is not None:
                _write(self.root, self._read("tokens"), manifest)
            self._remove_shards()

    def _shard(self, index: int) -> Path:
        return self._shards / f"{index:08d}.npz"

    def _read(self, name: str) -> Iterator[np.ndarray]:
        for index in range(self.num_shards):
            try:
                with np.load(self._shard(index), allow_pickle=False) as shard:
                    yield shard[name]
            except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
                raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> UserError:
        return UserError(
            f"{self.root} is damaged and cannot be continued ({error}); pass --overwrite"
        )

    def _remove_shards(self) -> None:
        self._settings.unlink(missing_ok=True)  # without it, what is left is not gone on with
        if self._shards.exists():
            shutil.rmtree(self._shards)
