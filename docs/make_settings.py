"""Write docs/settings.md from the declarations of the keys: python docs/make_settings.py"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sundae.codec_training.config import TrainingConfig
from sundae.config.reference import section_table
from sundae.config.run_file import SECTIONS

PAGE = Path(__file__).with_name("settings.md")
HEAD = """# Settings

Every key of the run files. `make docs` writes this page from the declarations in
`sundae/config/sections.py`, `hourglass_transformer/config.py` and
`sundae/codec_training/config.py`, which also make the flags and the checks. Any key can be set for
one command with `--set section.key=value`; an absent key has its default.

A run file of `train.py` is TOML: `unroll_steps`, the Markov unroll steps in training (2 or 3), and
the sections below. The run file of `train-vqgan.py` is YAML: taming's `model:`, `training:` and
`wandb:`."""


def page() -> str:
    """The text of docs/settings.md."""
    own = [name for name in TrainingConfig.__annotations__ if name != "section"]
    tables = [section_table(cls) for cls in SECTIONS.values()]
    return "\n\n".join([HEAD, *tables, section_table(TrainingConfig, own)]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
