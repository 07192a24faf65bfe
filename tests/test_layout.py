"""Guards the arrows of the layout: who may import whom."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(path for path in ROOT.glob("*.py") if path.name != "utils.py")
STANDARD = sys.stdlib_module_names
LONGEST_SCRIPT = 150  # lines; logic belongs where a test can import it


def imports_of(path: Path, top_level_only: bool = False) -> set[str]:
    """Dotted names a file imports, relative ones resolved; functions' own imports included."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes: Iterator[ast.AST] | list[ast.stmt] = tree.body if top_level_only else ast.walk(tree)
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).parent.parts[: 1 - node.level or None]
            prefix = ".".join(package) if node.level else ""
            names.add(".".join(part for part in (prefix, node.module) if part))
    return names


def packages_of(path: Path) -> set[str]:
    """Top-level packages a file imports, without the standard library."""
    return {name.split(".")[0] for name in imports_of(path)} - STANDARD


# Each room of the library imports itself and rooms before it in this list.
ROOMS = (
    "common", "config", "data", "codec", "features", "prior", "training", "codec_training",
    "sampling", "editing", "evaluation", "datasets", "interactive",
)  # fmt: skip


def rooms_of(path: Path) -> set[str]:
    """Rooms of the library that a file imports."""
    return {name.split(".")[1] for name in imports_of(path) if name.startswith("sundae.")}


def module_name(path: Path) -> str:
    return path.stem.replace("-", "_")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import torch.nn as nn", {"torch.nn"}),
        ("def f():\n    from sundae.config.run_file import x", {"sundae.config.run_file"}),
        ("from . import a", {"sundae.vqgan"}),
        ("from .. import a", {"sundae"}),
        ("from ..codecs import a", {"sundae.codecs"}),
    ],
)
def test_the_guard_sees_every_kind_of_import(
    source: str, expected: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / "sundae" / "vqgan" / "x.py"
    path.parent.mkdir(parents=True)
    path.write_text(source)
    assert imports_of(path) == expected


def test_the_network_imports_torch_einops_and_pydantic_only() -> None:
    files = sorted((ROOT / "hourglass_transformer").rglob("*.py"))
    assert files
    for path in files:
        allowed = {"torch", "einops", "hourglass_transformer"}
        if path.name == "config.py":
            allowed = {"annotated_types", "pydantic"}
        assert not packages_of(path) - allowed, path.name


def test_the_library_imports_no_script_and_no_utils() -> None:
    files = sorted((ROOT / "sundae").rglob("*.py"))
    assert files
    forbidden = {"utils", "tests", "benchmarks", *map(module_name, SCRIPTS)}
    for path in files:
        assert not packages_of(path) & forbidden, path.name


def test_flags_are_made_in_one_module_of_the_library() -> None:
    parsing = {p for p in (ROOT / "sundae").rglob("*.py") if "argparse" in imports_of(p)}
    assert parsing == {ROOT / "sundae" / "config" / "flags.py"}


def test_every_module_of_the_library_is_in_a_room() -> None:
    library = ROOT / "sundae"
    assert [path.name for path in library.glob("*.py")] == ["__init__.py"]
    assert {path.parent.name for path in library.glob("*/__init__.py")} == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_rooms_before_them(room: str) -> None:
    files = sorted((ROOT / "sundae" / room).rglob("*.py"))
    assert files
    allowed = set(ROOMS[: ROOMS.index(room) + 1])
    for path in files:
        assert not rooms_of(path) - allowed, path


@pytest.mark.parametrize("room", ROOMS)
def test_the_docstring_of_a_room_says_what_it_imports(room: str) -> None:
    library = ROOT / "sundae" / room
    files = sorted(library.rglob("*.py"))
    rooms = {other for path in files for other in rooms_of(path)} - {room}
    network = any("hourglass_transformer" in packages_of(path) for path in files)
    expected = ["hourglass_transformer"] * network + [other for other in ROOMS if other in rooms]
    docstring = ast.get_docstring(ast.parse((library / "__init__.py").read_text("utf-8"))) or ""
    assert docstring.splitlines()[-1] == f"Imports: {', '.join(expected) or 'none'}."


def test_utils_imports_what_flags_and_messages_need_only() -> None:
    assert rooms_of(ROOT / "utils.py") == {"common", "config"}
    assert not packages_of(ROOT / "sundae" / "common" / "naming.py")  # as light as it was
    assert packages_of(ROOT / "utils.py") == {"numpy", "torch", "sundae"}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_short_and_import_no_other_script(path: Path) -> None:
    assert not packages_of(path) & {module_name(other) for other in SCRIPTS}
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_SCRIPT


def test_wandb_is_imported_only_when_it_is_used() -> None:
    for path in [*SCRIPTS, ROOT / "utils.py", *(ROOT / "sundae").rglob("*.py")]:
        assert "wandb" not in imports_of(path, top_level_only=True), path.name


def test_gradio_is_imported_only_when_the_page_is_used() -> None:
    modules = ("page", "results", "controls")
    page = {"gradio", "fastapi", "uvicorn", *(f"sundae.interactive.{name}" for name in modules)}
    for path in [*SCRIPTS, ROOT / "utils.py", *(ROOT / "sundae").rglob("*.py")]:
        if path.stem not in modules:
            assert not page & imports_of(path, top_level_only=True), path.name
    server = imports_of(ROOT / "sample-interactive.py", top_level_only=True)
    assert "sundae.interactive.server" not in server
