"""The Python example of the README, with the bundled model and few steps."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sundae
from sundae import Sampler
from sundae.editing.masks import ClassicMask

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    return Sampler.from_pretrained(overrides=["sampling.steps=2"], device="cpu", precision="fp32")


def test_the_example_of_the_readme_runs(sampler: Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    (example,) = [block for block in blocks if "from sundae import Sampler" in block]
    monkeypatch.setattr(Sampler, "from_pretrained", lambda: sampler)
    steps: list[int] = []
    refine: Callable[..., Any] = sampler.refine

    def watched(*args: Any, **options: Any) -> Any:
        steps.append(options.pop("steps", 0))
        return refine(*args, **options)

    monkeypatch.setattr(sampler, "refine", watched)
    names: dict[str, Any] = {}
    exec(example, names)
    assert steps == [0, 40]  # those of `sample` and of the example's own loop
    assert isinstance(names["photo"], Image.Image)
    assert names["photo"].size == (64, 64)
    assert len(names["images"]) == 9


def test_masked_pixels_alone_change(sampler: Sampler) -> None:
    photo = sampler.sample(1, classes="food-drink", seed=7)[0]
    options: dict[str, Any] = {"n": 2, "seed": 3}
    samples = sampler.inpaint(photo, ClassicMask(share=0.5), **options)
    side = photo.width
    hole = np.zeros((side, side), bool)
    hole[side // 4 : -side // 4, side // 4 : -side // 4] = True
    for sample in samples:
        changed = (np.asarray(sample) != np.asarray(photo)).any(axis=-1)
        assert not (changed & ~hole).any() and changed[hole].mean() > 0.1
    assert sampler.inpaint(photo, hole, **options) == samples
    wider = sampler.outpaint(photo, n=1, right=16)[0]
    assert wider.crop((0, 0, side, side)) == photo


def test_the_front_door_loads_on_first_use() -> None:
    code = "import sys, sundae; assert 'torch' not in sys.modules; print(sundae.Sampler.__name__)"
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ended.stdout == "Sampler\n"
    with pytest.raises(AttributeError, match="no attribute 'Smapler'"):
        _ = sundae.Smapler
