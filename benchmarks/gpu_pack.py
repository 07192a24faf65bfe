"""`gpu.py --pack`: gathers what must travel to a GPU machine that reaches no network."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from email.parser import HeaderParser
from pathlib import Path

from gpu_run import ROOT
from packaging.markers import default_environment
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from sundae.common.errors import UserError
from sundae.common.folders import atomic_folder
from sundae.config.run_file import RunConfig, load_config

# What the GPU machine has: its Python, and packages that need not travel. Those that they need are
# there, too.
PYTHON = "3.12"
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
PRESENT = frozenset(
    "torch torchvision triton accelerate einops safetensors torchmetrics tqdm pillow scikit-learn"
    " numpy matplotlib transformers pyyaml packaging filelock huggingface-hub requests httpx regex"
    " typing-extensions psutil tokenizers jinja2 networkx sympy fsspec zipp".split()
)

# Files with what the stages need; the second is for the comparison with aMUSEd.
REQUIREMENTS = ("requirements.txt", "requirements-bench.txt")

# Bytes of everything that travels.
LIMIT = 60_000_000


def pack(folder: Path, train: str | None, overrides: Sequence[str]) -> None:
    """Fill a folder with wheels and data, and print the command to type on the GPU machine.

    Args:
        folder: to create; wheels/ and data/ are in it.
        train: run file of the showcase, whose token grids and codec travel.
        overrides: KEY=VALUE for that run file.

    Raises:
        UserError: the folder exists, data is missing, a wheel cannot be downloaded, or it is all
            larger than the limit.
    """
    if folder.exists():
        raise UserError(f"{folder} exists; choose another folder for --pack, or delete it")
    files = []
    if train:
        files = needed_files(load_config(train, overrides), Path(train))
        train = str(Path(train).resolve().relative_to(ROOT))
    with atomic_folder(folder) as partial:
        (partial / "wheels").mkdir()
        wheels = download_missing(partial / "wheels")
        for path in files:
            copy_into(path, partial / "data")
        size = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())
        if size > LIMIT:
            raise UserError(f"{size / 1e6:.1f} MB are more than {LIMIT / 1e6:.0f} MB: "
                            f"{largest(partial)} are the largest; use smaller data")  # fmt: skip
    print(f"{folder}: {size / 1e6:.1f} MB, {len(wheels)} wheels ({', '.join(wheels)}), "
          f"{len(files)} files and folders of data")  # fmt: skip
    print("take the repository and this folder along; there, in the folder of the repository:\n")
    print(command(folder, train, overrides))


def command(folder: Path, train: str | None, overrides: Sequence[str]) -> str:
    """What to type on the GPU machine, with this folder at the same place."""
    pack, site = shlex.quote(str(folder)), shlex.quote(str(folder / "site"))
    words = [f"--train {shlex.quote(train)}"] if train else []
    words += [f"--set {shlex.quote(setting)}" for setting in overrides]
    return (
        f"python3 -m pip install -q --no-index --no-deps --target {site} {pack}/wheels/*.whl &&\n"
        f"  {{ [ ! -d {pack}/data ] || cp -r {pack}/data/. .; }} &&\n"
        f"  PYTHONPATH={site} python3 benchmarks/gpu.py --minutes 9 --out out/gpu "
        + " ".join(words)
    ).rstrip()


def largest(folder: Path) -> str:
    """Names and sizes of the three largest files."""
    files = sorted((p for p in folder.rglob("*") if p.is_file()), key=lambda p: -p.stat().st_size)
    return ", ".join(f"{p.relative_to(folder)} ({p.stat().st_size / 1e6:.1f} MB)"
                     for p in files[:3])  # fmt: skip


# -- data -----------------------------------------------------------------------------------------


def needed_files(cfg: RunConfig, *others: Path) -> list[Path]:
    """Those of `named_files`, and of others, that git does not hold.

    Raises:
        UserError: one is missing, or outside of the repository, where it would not be found again.
    """
    found = [*named_files(cfg), *(path.resolve() for path in others)]
    for path in found:
        if not path.is_relative_to(ROOT):
            raise UserError(f"{path} is outside of {ROOT}; name it by a path within")
    return [path for path in found if not is_tracked(path)]


def named_files(cfg: RunConfig) -> list[Path]:
    """Folders of token grids and the codec's files that a run file names.

    Raises:
        UserError: one is missing.
    """
    named = [cfg.data.root, cfg.data.train_root, cfg.data.eval_root]
    if cfg.vqgan is not None:
        named += [cfg.vqgan.checkpoint, cfg.vqgan.config]
    paths = [ROOT / path for path in named if path is not None]
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}, which the run file names, does not exist; make it first, or "
                            "name another with --set")  # fmt: skip
    return [path.resolve() for path in paths]


def is_tracked(path: Path) -> bool:
    """Whether git holds a file, or some file of a folder."""
    try:
        done = subprocess.run(["git", "ls-files", "--", str(path)], cwd=ROOT,
                              capture_output=True, text=True)  # fmt: skip
    except OSError as error:
        raise UserError(f"git does not run ({error.strerror}); --pack needs it") from None
    return bool(done.stdout.strip())


def copy_into(path: Path, data: Path) -> None:
    """Copy a file or folder to where it has the same path within `data` as in the repository."""
    target = data / path.relative_to(ROOT)
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.copytree(path, target, dirs_exist_ok=True)
    else:
        shutil.copyfile(path, target)
        beside = path.with_suffix(".json")  # what a converted codec is
        if beside.exists():
            shutil.copyfile(beside, target.with_suffix(".json"))


# -- wheels ---------------------------------------------------------------------------------------


def download_missing(folder: Path) -> list[str]:
    """Download a wheel for each requirement that is not present there, and for what those need.

    Returns:
        the file names, sorted.

    Raises:
        UserError: pip could not get one.
    """
    waiting = [need for name in REQUIREMENTS for need in read_requirements(ROOT / name)]
    seen = set(PRESENT)
    while waiting:
        need = waiting.pop()
        name = canonicalize_name(need.name)
        if name in seen:
            continue
        seen.add(name)
        waiting += needs_of(download(need, folder))
    return sorted(path.name for path in folder.glob("*.whl"))


def read_requirements(path: Path) -> Iterator[Requirement]:
    """The requirements of a file, comments left out."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if text := line.split("#")[0].strip():
            yield Requirement(text)


def download(need: Requirement, folder: Path) -> Path:
    """One wheel that fits the GPU machine; returns its path.

    Where there is a source archive only, it is built here, which serves pure Python.
    """
    platforms = [f"--platform={name}" for name in PLATFORMS]
    fetch = ["download", "--only-binary=:all:", "--implementation=cp",
             f"--python-version={PYTHON}", *platforms, f"--dest={folder}"]  # fmt: skip
    build = ["wheel", f"--wheel-dir={folder}"]
    before, errors = set(folder.iterdir()), []
    for words in (fetch, build):
        pip = [sys.executable, "-m", "pip", words[0], "--quiet", "--disable-pip-version-check",
               "--no-deps", *words[1:], f"{need.name}{need.specifier}"]  # fmt: skip
        done = subprocess.run(pip, capture_output=True, text=True)
        new = set(folder.glob("*.whl")) - before
        if not done.returncode and len(new) == 1:
            (wheel,) = new
            if words is fetch or wheel.name.endswith("-none-any.whl"):
                return wheel
            wheel.unlink()
            errors.append(f"{wheel.name} is not pure Python")
        errors += done.stderr.strip().splitlines()[-1:]
    reason = errors[0] if errors else "no wheel"
    raise UserError(f"{need}: pip could not download it for Python {PYTHON} ({reason})")


def needs_of(wheel: Path) -> Iterator[Requirement]:
    """What a wheel needs on the GPU machine, without extras."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", n))
        metadata = HeaderParser().parsestr(archive.read(name).decode())
    environment = {**default_environment(), "python_version": PYTHON, "extra": "",
                   "python_full_version": f"{PYTHON}.0"}  # fmt: skip
    for text in metadata.get_all("Requires-Dist") or []:
        try:
            need = Requirement(text)
        except InvalidRequirement as error:
            raise UserError(f"{wheel.name}: cannot read what it needs ({error})") from None
        if need.marker is None or need.marker.evaluate(environment):
            yield need
