"""What the checks of `gpu_smoke.py` and `gpu_showcase.py` work with: scripts, images, findings."""

from __future__ import annotations

import csv
import importlib.util
import json
import runpy
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sundae.common.files import make_folder, write_text
from sundae.common.images import load_image, save_image, to_tensor

ROOT = Path(__file__).resolve().parents[1]

# Scripts that have no --no-cuda.
_WITHOUT_DEVICE = ("generate-discrete-mnist",)


@dataclass
class Bench:
    """One part of a stage while it runs.

    Attributes:
        device: where networks compute.
        tiny: everything as small as it can be, to prove the command itself.
        folder: scratch space of this part.
        result: JSON file that holds the findings; rewritten with each of them, so that a part that
            dies later keeps those it has.
    """

    device: torch.device
    tiny: bool
    folder: Path
    result: Path
    checks: list[dict[str, Any]] = field(default_factory=list)
    images: list[dict[str, str]] = field(default_factory=list)

    def check(self, name: str, passed: bool, found: object, expected: str = "") -> None:
        """Note something that has to hold, and print it.

        Args:
            found: the number or text that decided.
            expected: the expectation, for the reader.
        """
        entry = {"name": name, "passed": bool(passed), "found": str(found), "expected": expected}
        self.checks.append(entry)
        note = f" ({expected})" if expected else ""
        print(f"{'ok  ' if passed else 'FAIL'} {name}: {found}{note}")
        self._write()

    def show(self, title: str, path: Path) -> None:
        """Note an image for the report."""
        self.images.append({"title": title, "path": str(path.resolve())})
        self._write()

    def _write(self) -> None:
        write_text(self.result, json.dumps({"checks": self.checks, "images": self.images}))

    @property
    def passed(self) -> bool:
        """Whether there are checks, and all of them hold."""
        return bool(self.checks) and all(entry["passed"] for entry in self.checks)

    def script(self, name: str, *words: object, on_cpu: bool = False) -> None:
        """Run a script of the project with this device, in this process.

        Raises:
            RuntimeError: it ended with an exit code other than 0.
        """
        line = [f"{name}.py", *map(str, words)]
        if name not in _WITHOUT_DEVICE and (on_cpu or self.device.type == "cpu"):
            line.append("--no-cuda")
        print("$ python", *line, flush=True)
        before, sys.argv = sys.argv, line
        try:
            runpy.run_path(str(ROOT / line[0]), run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise RuntimeError(f"{line[0]} ended with exit code {end.code}") from None
        finally:
            sys.argv = before


def photos(count: int, side: int) -> Tensor:
    """(count, 3, side, side) float32 in [0, 1]: squares of the two photos in scikit-learn."""
    package = importlib.util.find_spec("sklearn")  # not imported: that takes seconds
    assert package is not None and package.origin is not None
    squares = []
    for path in sorted((Path(package.origin).parent / "datasets" / "images").glob("*.jpg")):
        tiles = to_tensor(load_image(path)).unfold(1, side, side).unfold(2, side, side)
        squares.append(tiles.permute(1, 2, 0, 3, 4).flatten(0, 1))
    tiles = torch.cat(squares)
    return tiles[torch.linspace(0, len(tiles) - 1, count).long()]


def write_photos(folder: Path, count: int, side: int) -> Tensor:
    """Write `photos` as PNG files and return them."""
    images = photos(count, side)
    make_folder(folder)
    for number, image in enumerate(images):
        save_image(image, folder / f"{number:03d}.png")
    return images


def curve(run: Path, name: str) -> list[float]:
    """A column of a run's curves.csv, such as "eval/loss", in order; empty before there is one."""
    path = run / "curves.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def equal_share(first: Tensor, second: Tensor) -> float:
    """Share of equal elements."""
    return (first.cpu() == second.cpu()).float().mean().item()
