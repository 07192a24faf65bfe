"""Read the tensors of a checkpoint file without ever running code from it."""

import pickletools
import struct
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sundae.common.errors import UserError

Tensors = dict[str, Tensor]

# Names that trainers leave in checkpoints. They are replaced by inert objects, never imported.
_LEFTOVER_PACKAGES = ("pytorch_lightning.", "lightning.", "lightning_fabric.", "omegaconf.")
_LEFTOVER_NAMES = frozenset(
    "builtins.bool builtins.dict builtins.float builtins.int builtins.list builtins.object "
    "builtins.str builtins.tuple collections.defaultdict typing.Any argparse.Namespace "
    "pathlib.Path pathlib.PosixPath pathlib.PurePosixPath pathlib.WindowsPath "
    "copyreg._reconstructor numpy.dtype numpy.ndarray numpy.core.multiarray.scalar "
    "numpy._core.multiarray.scalar numpy.core.multiarray._reconstruct "
    "numpy._core.multiarray._reconstruct".split()
)
# Those whose items are set one by one; torch fills only real dictionaries.
_DICT_LIKE = frozenset({"builtins.dict", "collections.defaultdict"})
_DICT_LIKE_ENDING = ".AttributeDict"

_TORCH_KNOWS = frozenset(
    "collections.OrderedDict collections.Counter _codecs.encode builtins.bytearray builtins.set "
    "builtins.complex".split()
)

# Where trainers put the weights, in the order in which the projects' own loaders look.
_WRAPPERS = ("ema", "state_dict", "model", "module")

_WRAPPERS_DEEP = 2

# A legacy file is five pickles (magic, version, system, object, keys) before the raw tensors.
_LEGACY_PICKLES = 5


class _Inert:
    """Stands for an object that nothing needs: takes anything and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _InertDict:
    """Stands for a dictionary class: makes a plain one."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return OrderedDict()


def read_tensors(path: Path) -> Tensors:
    """All tensors of a checkpoint by name, on the CPU and memory-mapped where the format allows.

    Args:
        path: safetensors, or a file of torch.save, zip or legacy, holding a state_dict, possibly
            under one of the keys ema, state_dict, model, module.

    Raises:
        UserError: the file is missing, truncated, something else, or its pickle imports anything
            but torch's tensors and what trainers are known to leave behind.
    """
    head = _read_head(path)
    if len(head) > 8 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] < 2**32:
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise _damaged(path, error) from error
    if head.startswith(b"PK"):
        return _state_dict(_torch_load(path, _globals_of_zip(path), mmap=True), path)
    if head.startswith(b"\x80"):
        return _state_dict(_torch_load(path, _globals_of_legacy(path), mmap=False), path)
    raise UserError(
        f"{path} is neither safetensors nor a torch checkpoint (starts with {head[:8]!r})"
    )


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is truncated or damaged ({error}); download it again")


def _read_head(path: Path) -> bytes:
    if not path.exists():
        raise UserError(f"checkpoint {path} does not exist")
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if not head:
        raise UserError(f"checkpoint {path} is empty; download it again")
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a git-LFS pointer, not the weights; fetch them: git lfs pull")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise UserError(f"{path} is a web page, not a checkpoint; download the file itself")
    return head


def _torch_load(path: Path, imported: set[str], *, mmap: bool) -> Any:
    """torch.load, weights only: the vetting before it makes messages, this is what guards."""
    stand_ins: list[Any] = [
        (_InertDict if name in _DICT_LIKE or name.endswith(_DICT_LIKE_ENDING) else _Inert, name)
        for name in _vet(imported, path)
    ]
    try:
        with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    # Whatever a damaged file provokes in the reader, the file is what is wrong.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is damaged or not a plain checkpoint ({reason})") from error


def _vet(imported: set[str], path: Path) -> list[str]:
    """The names to replace by inert objects; UserError for a name that is not known as harmless."""
    module = "torch.nn.modules."
    foreign = [
        name
        for name in sorted(imported)  # torch accepts or refuses its own names by its own list
        if name not in _TORCH_KNOWS and (name.startswith(module) or not name.startswith("torch."))
    ]
    refused = [
        n for n in foreign if not n.startswith(_LEFTOVER_PACKAGES) and n not in _LEFTOVER_NAMES
    ]
    if not refused:
        return foreign
    message = f"refused to load {path}: its pickle imports {', '.join(refused[:3])}"
    if any(name.startswith(module) for name in refused):
        message += "; it holds a whole pickled module: save its state_dict() instead"
    raise UserError(message)


def _globals_of_zip(path: Path) -> set[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
                raise UserError(
                    f"{path} is a TorchScript program, not a checkpoint; export its state_dict() "
                    "with torch.save or safetensors"
                )
            pickles = [n for n in names if n.count("/") == 1 and n.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise UserError(f"{path} is a zip file without a torch checkpoint; unpack it first")
            with archive.open(pickles[0]) as file:
                return set(_imports(file))
    except UserError:
        raise
    except Exception as error:  # of pickletools and zipfile, by the byte that is wrong
        raise _damaged(path, error) from error


def _globals_of_legacy(path: Path) -> set[str]:
    names: set[str] = set()
    with path.open("rb") as file:
        try:
            for _ in range(_LEGACY_PICKLES):
                names |= set(_imports(file))
        except Exception as error:
            if not names:
                raise _damaged(path, error) from error
    return names


def _imports(file: IO[bytes]) -> Iterator[str]:
    """Every "module.name" that the next pickle in `file` imports; nothing is executed."""
    strings: list[str] = []
    for opcode, argument, _ in pickletools.genops(file):
        if isinstance(argument, str):
            strings.append(argument)
        if opcode.name in ("GLOBAL", "INST"):
            yield _modern_name(*str(argument).split(" ", 1))
        elif opcode.name == "STACK_GLOBAL":
            yield ".".join(strings[-2:]) or "an unnamed object"


def _modern_name(module: str, name: str) -> str:
    """The name a reader knows: pickles use Python 2's modules, and os by its platform's name."""
    module = "os" if module in ("posix", "nt") else module
    if (module, name) in NAME_MAPPING:
        return ".".join(NAME_MAPPING[module, name])
    return f"{IMPORT_MAPPING.get(module, module)}.{name}"


def _state_dict(content: Any, path: Path) -> Tensors:
    """Opens what trainers wrap around a state_dict, and takes only its tensors."""
    for _ in range(_WRAPPERS_DEEP):
        inner = [v for v in map(_values(content).get, _WRAPPERS) if _leads_to_tensors(v)]
        content = inner[0] if inner else content
    tensors = {
        name: value.detach()
        for name, value in _values(content).items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }
    if not tensors:
        raise UserError(f"{path} holds no named tensors; expected a state_dict")
    return tensors


def _values(content: Any) -> Mapping[Any, Any]:
    return content if isinstance(content, Mapping) else {}


def _leads_to_tensors(value: Any, depth: int = _WRAPPERS_DEEP) -> bool:
    # The depth is bounded because a pickle can hold a dictionary that contains itself.
    values = _values(value).values()
    if any(isinstance(v, Tensor) for v in values):
        return True
    return depth > 0 and any(_leads_to_tensors(v, depth - 1) for v in values)
