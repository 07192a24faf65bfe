"""What the README shows and names exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "pretrained/emoji/README.md", "benchmarks/GPU.md"]


@pytest.mark.parametrize("page", PAGES)
def test_pictures_and_links_lead_somewhere_and_nothing_is_left_to_fill_in(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert "@@" not in text
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert ((ROOT / page).parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES)
def test_scripts_and_config_files_in_commands_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    named = re.findall(r"python ([\w/-]+\.py)", text) + re.findall(r"(config/[\w/-]+\.\w+)", text)
    for path in named:
        assert (ROOT / path).exists(), path
