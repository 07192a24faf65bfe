"""Code, comments, messages and documents use the field's words."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = "sundae hourglass_transformer tests benchmarks config docs pretrained".split()
SUFFIXES = (".py", ".md", ".toml", ".yaml", ".txt", ".json", ".css", ".js", ".html")

# Words of earlier versions, by what stands in their place, and what may hold them: keys of files.
WORDS = {
    "picture": ("image", r'\bnb_pictures\b|"pictures":'),
    "in the box": ("bundled", None),
}


def text_files() -> list[Path]:
    """What people read, without data and weights."""
    files = [path for path in ROOT.iterdir() if path.suffix in SUFFIXES or path.name == "Makefile"]
    for folder in FOLDERS:
        files += [path for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES]
    return [path for path in files if path != Path(__file__)]


@pytest.mark.parametrize("word", WORDS)
def test_the_fields_word_stands_in_place_of(word: str) -> None:
    better, allowed = WORDS[word]
    found = []
    for path in text_files():
        if word in path.name:
            found.append(f"{path.relative_to(ROOT)}: name")
        text = path.read_text(encoding="utf-8")
        for number, line in enumerate(text.splitlines(), 1):
            if word in (re.sub(allowed, "", line) if allowed else line).lower():
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not found, f"say '{better}':\n" + "\n".join(found)
