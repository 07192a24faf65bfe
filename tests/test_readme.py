"""The README and the pages of docs/: links lead somewhere; commands, flags and keys exist."""

import contextlib
import dataclasses
import functools
import io
import re
import runpy
import sys
from pathlib import Path
from typing import get_args, get_type_hints
from unittest import mock

import pytest

from sundae.codec_training.config import TrainingConfig
from sundae.config.run_file import RunConfig

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("README.md", "docs/*.md", "pretrained/*/README.md", "benchmarks/*.md")
    for path in ROOT.glob(pattern)
)
# Files whose comments or recipes hold commands.
OTHERS = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("Makefile", "config/**/*.toml", "config/**/*.yaml")
    for path in ROOT.glob(pattern)
)
FLAG = r"(?<![\w-])--[a-z][\w-]*\w"


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8").replace("$(SIZE)", "64")


def anchors(text: str) -> set[str]:
    """Names that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in headings}


def commands(text: str) -> list[tuple[str, list[str]]]:
    """(script, its flags) of every command that runs a script of this repository."""
    lines = re.sub(r"\\\n(\s*#)?\s*", " ", text)
    found = re.findall(
        r"\b(?:python|accelerate launch [^`\n]*?) ?([\w/-]+\.py)\b([^`\n|;&]*)", lines
    )
    return [(name, re.findall(FLAG, rest.split("  #")[0])) for name, rest in found]


@functools.cache
def flags_of(name: str) -> set[str]:
    """Flags that `python NAME --help` prints."""
    out = io.StringIO()
    with (
        mock.patch.object(sys, "argv", [name, "--help"]),
        contextlib.redirect_stdout(out),
        contextlib.suppress(SystemExit),
    ):
        runpy.run_path(str(ROOT / name), run_name="__main__")
    return set(re.findall(FLAG, out.getvalue()))


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere_and_images_have_a_description(page: str) -> None:
    text = read(page)
    assert "@@" not in text
    for description, target in re.findall(r"\[([^]]*)\]\(([^):]+)\)", text):
        assert description, target
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text(encoding="utf-8")), target


@pytest.mark.parametrize("page", PAGES + OTHERS)
def test_commands_name_scripts_flags_files_and_targets_that_exist(page: str) -> None:
    text = read(page)
    for name, flags in commands(text):
        assert (ROOT / name).exists(), name
        assert set(flags) <= flags_of(name), name
    folders = "config|benchmarks|sundae|tests|pretrained"
    for path in re.findall(rf"(?<![\w/])((?:{folders})/[\w/.-]*\w)", text):
        assert (ROOT / path).exists(), path
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE)) <= targets


@pytest.mark.parametrize("page", PAGES)
def test_each_flag_in_the_text_is_one_of_a_script(page: str) -> None:
    scripts = [path.name for path in ROOT.glob("*.py") if "__main__" in path.read_text()]
    known = set().union(*(flags_of(name) for name in scripts))
    known |= {flag for name, _ in commands(read(page)) for flag in flags_of(name)}
    ours = re.sub(r"accelerate launch [^`\n]*? (?=\w+\.py)", "", read(page))
    assert set(re.findall(FLAG, ours)) - known == set()


@functools.cache
def keys() -> set[str]:
    """section.key of everything that a run file may hold."""
    sections = get_type_hints(RunConfig) | {"training": TrainingConfig}
    found = set()
    for section, declared in sections.items():
        for candidate in (declared, *get_args(declared)):
            if dataclasses.is_dataclass(candidate):
                found |= {f"{section}.{field.name}" for field in dataclasses.fields(candidate)}
    return found


@pytest.mark.parametrize("page", PAGES + OTHERS)
def test_each_key_of_a_run_file_exists(page: str) -> None:
    sections = {key.split(".")[0] for key in keys()}
    named = re.findall(r"(?:--set |`)([a-z]+)\.(?!json|safetensors)([a-z_]+)(?![\w.])", read(page))
    assert {f"{section}.{key}" for section, key in named if section in sections} <= keys()
