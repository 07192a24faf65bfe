"""Read a YAML file with the interpolations of omegaconf; nothing in it is executed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sundae.common.errors import UserError

# Every call of a resolver, such as ${oc.env:HOME} or ${${name}:HOME}, has a colon in its braces.
_RESOLVER = re.compile(r"\$\{.*:.*\}", re.DOTALL)


def read_yaml(path: Path | str) -> dict[Any, Any]:
    """Plain values of a YAML file, interpolations such as `${model.params.embed_dim}` resolved.

    Numbers without a point, such as 1e-4, are numbers, which YAML 1.1 takes for text.

    Raises:
        UserError: the file cannot be read, is no YAML mapping, holds Python objects, calls a
            resolver (environment, files, code), or refers to a key that it does not have.
    """
    try:
        content = OmegaConf.create(Path(path).read_text(encoding="utf-8"))
        for value in _strings(OmegaConf.to_container(content)):
            if _RESOLVER.search(value):
                raise UserError(
                    f"{path}: {value} is refused: only references to other keys of the file are "
                    "read, such as ${model.params.embed_dim}"
                )
        values = OmegaConf.to_container(content, resolve=True)
    except OSError as error:
        raise UserError(f"{path}: cannot read the file: {error.strerror}") from None
    except yaml.constructor.ConstructorError as error:
        reason = f"objects beyond plain values, or a key given twice: {error.problem}"
        raise UserError(f"{path}: holds {reason}") from None
    except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
        raise UserError(f"{path}: not a valid YAML file: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: not a valid YAML file: expected a mapping")
    return values


def _strings(values: Any) -> Iterator[str]:
    if isinstance(values, str):
        yield values
    elif isinstance(values, (dict, list)):
        for value in values.values() if isinstance(values, dict) else values:
            yield from _strings(value)
