"""Optional packages: imported where they are used, missing ones named with the remedy."""

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from sundae.common.errors import UserError


def import_extra(module: str, requirements: str) -> Any:
    """Imports a module of an optional package.

    Args:
        module: dotted name.
        requirements: the file that lists the package, e.g. "requirements-evaluate.txt".

    Raises:
        UserError: the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = (error.name or module).partition(".")[0]
        raise UserError(f"{package} is missing: pip install -r {requirements}") from error


def package_folder(package: str, remedy: str) -> Path:
    """The folder of an installed package, for the files in it; nothing of it is run.

    Raises:
        UserError: it is not installed; ends with the remedy.
    """
    spec = importlib.util.find_spec(package.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"the package {package} is not installed: {remedy}")
    return Path(spec.submodule_search_locations[0])
