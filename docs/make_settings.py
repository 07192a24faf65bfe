"""Write docs/settings.md from the declarations of the keys: python docs/make_settings.py"""

import inspect
import json
import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sundae.codec_training.config import TrainingConfig
from sundae.config.keys import Key, keys_of
from sundae.config.run_file import SECTIONS

PAGE = Path(__file__).with_name("settings.md")
HEAD = """# Settings

Every key of the run files. `make docs` writes this page from the declarations in
`sundae/config/sections.py`, `hourglass_transformer/config.py` and
`sundae/codec_training/config.py`, which also make the flags and the checks. Any key can be set for
one command with `--set section.key=value`; an absent key has its default.

A run file of `train.py` is TOML: `unroll_steps`, the Markov unroll steps in training (1 to 3), and
the sections below. The run file of `train-vqgan.py` is YAML: taming's `model:`, `training:` and
`wandb:`."""


def page() -> str:
    """The text of docs/settings.md."""
    own = [name for name in TrainingConfig.__annotations__ if name != "section"]
    tables = [section_table(cls) for cls in SECTIONS.values()]
    return "\n\n".join([HEAD, *tables, section_table(TrainingConfig, own)]) + "\n"


def section_table(cls: type, names: Iterable[str] = ()) -> str:
    """A heading, the section's docstring and a Markdown table of its keys.

    Args:
        cls: the section.
        names: of its keys; all unless given.
    """
    keys = keys_of(cls)
    title, _, meaning = (cls.__doc__ or "").partition(": ")
    meaning = inspect.cleandoc(meaning[:1].upper() + meaning[1:])
    rows = "\n".join(_row(keys[name]) for name in names or keys)
    head = "| key | value | default | meaning |\n|---|---|---|---|"
    return f"## {title}\n\n{meaning}\n\n{head}\n{rows}"


def _row(key: Key) -> str:
    default = "unset" if key.default is None else f"`{json.dumps(key.default, default=str)}`"
    cells = [f"`{key.name}`", key.expected, "required" if key.required else default]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in [*cells, key.description]) + " |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
