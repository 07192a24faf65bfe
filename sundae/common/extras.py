"""Optional packages: imported where they are used, missing ones named with the remedy."""

import importlib
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
