"""What `gpu.py` writes after every part: results.json, report.md, efficiency.json, images.png."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from efficiency import efficiency_of
from gpu_run import Outcome

from sundae.common.files import atomic_path, write_text

# Characters of a log in results.json, and lines of a failed part's in report.md.
_LOG, _TAIL = 40_000, 25

# The files that are written.
IMAGES = "images.png"
RESULTS = ("results.json", "report.md", "efficiency.json", IMAGES)

_COLUMNS = 3

# Size of the fast run file's rows. The planner takes one share for all networks, that of the plain
# layout.
FAST = "config/ffhq1024/fast.toml"

Row = dict[str, Any]


@dataclass(frozen=True)
class Goal:
    """A number that was promised.

    Attributes:
        found: what was measured, or None.
        expected: limit; `at_least` says on which side of it.
    """

    name: str
    found: float | None
    expected: float
    unit: str
    at_least: bool = True

    @property
    def met(self) -> bool | None:
        """None where nothing was measured."""
        if self.found is None:
            return None
        return self.found >= self.expected if self.at_least else self.found <= self.expected


def write_report(
    out: Path, about: dict[str, Any], outcomes: Sequence[Outcome], *, redraw: bool = True
) -> None:
    """Write everything that is known so far.

    Args:
        about: machine, versions and command, in the order in which they are shown.
        outcomes: of the parts that ended, in order.
        redraw: whether there are new images.
    """
    goals = goals_of(rows_of(outcomes))
    content = {
        "about": about,
        "goals": [asdict(goal) | {"met": goal.met} for goal in goals],
        "parts": [asdict(outcome) | {"log": outcome.log[-_LOG:]} for outcome in outcomes],
    }
    write_text(out / "results.json", json.dumps(content, indent=1) + "\n")
    measured = [outcome.result for outcome in outcomes
                if outcome.result.get("rows") and outcome.result.get("size") != FAST]  # fmt: skip
    if measured:
        efficiency = efficiency_of(measured, "benchmarks/gpu.py")
        write_text(out / "efficiency.json", json.dumps(efficiency, indent=2) + "\n")
    if redraw:
        images = [image for outcome in outcomes for image in outcome.result.get("images", ())]
        draw_images([image for image in images if Path(image["path"]).exists()], out / IMAGES)
    write_text(out / "report.md", "\n".join(report(about, goals, outcomes)) + "\n")


# -- goals ----------------------------------------------------------------------------------------


def rows_of(outcomes: Iterable[Outcome]) -> list[Row]:
    """All rows that `speed.py` wrote."""
    return [row for outcome in outcomes for row in outcome.result.get("rows", ())]


def goals_of(rows: Sequence[Row]) -> list[Goal]:
    """The goals of GPU.md with what was measured at megapixel size."""
    size = "ffhq1024"
    train = best_share(rows, size, "train")
    at_32 = best_share(rows, size, "sampling", 32)
    decode = fastest(rows, size, "decode")
    return [
        Goal("training, share of the matrix product's peak", train, 0.45, ""),
        Goal("sampling at batch 32, share of the peak", at_32, 0.40, ""),
        Goal("a 1024x1024 image, 100 steps, with decoding, batch 32",
             added(fastest(rows, size, "sampling", 32), decode), 0.25, " s", at_least=False),
        Goal("the same with the fast run file, 16 steps",
             added(fastest(rows, FAST, "sampling", 32), decode), 0.04, " s", at_least=False),
        Goal("aMUSEd-512 at equal parameters and evaluations, images a second",
             against_amused(rows, "its parameters"), 1.0, "x"),
        Goal("aMUSEd-512 at equal arithmetic and evaluations, images a second",
             against_amused(rows, "its FLOP"), 1.5, "x"),
    ]  # fmt: skip


def ours(rows: Iterable[Row], size: str, track: str, images: int | None = None) -> list[Row]:
    """Our own rows of a track, of one batch size if it is given."""
    return [
        row
        for row in rows
        if row["size"] == size
        and row["track"] == track
        and row["path"].startswith("ours")
        and images in (None, row["images"])
    ]


def best_share(
    rows: Iterable[Row], size: str, track: str, images: int | None = None
) -> float | None:
    """Of the fastest matrix product."""
    return max((row["share"] for row in ours(rows, size, track, images)), default=None)


def fastest(rows: Iterable[Row], size: str, track: str, images: int | None = None) -> float | None:
    """Seconds an image, the median of the fastest variant."""
    return min(map(seconds_an_image, ours(rows, size, track, images)), default=None)


def against_amused(rows: Sequence[Row], how: str) -> float | None:
    """How many times as many images a second as aMUSEd without guidance, each at its fastest."""
    amused = [row for row in rows if row["track"] == "amused"]
    own = [seconds_an_image(row) for row in amused if how in row["path"]]
    theirs = [seconds_an_image(row) for row in amused if "no guidance" in row["path"]]
    return min(theirs) / min(own) if own and theirs else None


def seconds_an_image(row: Row) -> float:
    """The median."""
    return float(statistics.median(row["seconds"]) / row["images"])


def added(*values: float | None) -> float | None:
    """The sum, or None where a part is missing."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


# -- the page -------------------------------------------------------------------------------------


def report(about: dict[str, Any], goals: Sequence[Goal], outcomes: Sequence[Outcome]) -> list[str]:
    """Lines of Markdown."""
    bad = [outcome.key for outcome in outcomes if not outcome.good]
    passed = sum(outcome.state == "passed" for outcome in outcomes)
    verdict = f"**{passed} of {len(outcomes)} parts passed**"
    verdict += f"; look at {', '.join(bad)}" if bad else ""
    lines = [
        "# GPU report",
        "",
        f"{verdict}.",
        "",
        *(f"- {name}: {value}" for name, value in about.items()),
        "",
    ]
    lines += ["| part | state | seconds | what it shows |", "|---|---|---|---|"]
    lines += [f"| {o.key} | {state(o)} | {o.seconds:.0f} | {o.shows} |" for o in outcomes]
    if any(goal.met is not None for goal in goals):
        lines += ["", "## Goals", "", "| goal | measured | expected | met |", "|---|---|---|---|"]
        lines += map(goal_line, goals)
    for outcome in outcomes:
        lines += part_lines(outcome)
    if any(outcome.result.get("images") for outcome in outcomes):
        lines += ["", "## Images", "", f"![images of all parts]({IMAGES})"]
    return lines


def state(outcome: Outcome) -> str:
    """With the exit code where there is something to learn from it."""
    shown = outcome.state == "passed" or outcome.code is None
    return outcome.state if shown else f"**{outcome.state}** (exit code {outcome.code})"


def goal_line(goal: Goal) -> str:
    """A row of the table."""
    found = "-" if goal.found is None else f"{goal.found:.3g}{goal.unit}"
    side = "at least" if goal.at_least else "at most"
    met = {None: "not measured", True: "yes", False: "**no**"}[goal.met]
    return f"| {goal.name} | {found} | {side} {goal.expected:g}{goal.unit} | {met} |"


def part_lines(outcome: Outcome) -> list[str]:
    """What a part found; the end of its output where it did not pass."""
    checks, rows = outcome.result.get("checks", []), outcome.result.get("rows", [])
    skipped = outcome.result.get("skipped", {})
    log = [line for line in outcome.log.splitlines()
           if line.strip() and not line.startswith("Extension modules")]  # fmt: skip
    tail = log[-_TAIL:] if outcome.state != "passed" else []
    if not (checks or rows or skipped or tail):
        return []
    lines = ["", f"## {outcome.key}", ""]
    if checks:
        lines += ["| check | found | expected | holds |", "|---|---|---|---|"]
        lines += map(check_line, checks)
    if rows:
        lines += [_ROW_HEAD, "|---" * 8 + "|", *map(row_line, rows)]
    lines += [f"- skipped: {name} ({reason})" for name, reason in skipped.items()]
    if tail:
        lines += ["", "```text", *tail, "```"]
    return lines


def check_line(check: dict[str, Any]) -> str:
    """A row of a table of checks."""
    holds = "yes" if check["passed"] else "**no**"
    cells = (check["name"], check["found"], check["expected"], holds)
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


_ROW_HEAD = "| track | variant | images | seconds | evaluations | TFLOP/s | of the peak | memory |"


def row_line(row: Row) -> str:
    """A row of `speed.py`."""
    share = "-" if row["share"] is None else f"{row['share']:.0%}"
    tflops = "-" if row["tflops"] is None else f"{row['tflops']:.3g}"
    memory = "-" if row["extra_bytes"] is None else f"{row['extra_bytes'] / 2**30:.2f} GiB"
    seconds = f"{statistics.median(row['seconds']):.4g}"
    return (f"| {row['track']} | {row['path']} | {row['images']} | {seconds} | "
            f"{row['evaluations'] or '-'} | {tflops} | {share} | {memory} |")  # fmt: skip


def draw_images(images: Sequence[dict[str, str]], path: Path) -> None:
    """All images that parts left, as one."""
    if not images:
        return
    from matplotlib.figure import Figure
    from PIL import Image

    rows = -(-len(images) // _COLUMNS)
    figure = Figure(figsize=(5 * _COLUMNS, 5 * rows), layout="constrained")
    for place, image in enumerate(images, 1):
        axes = figure.add_subplot(rows, _COLUMNS, place)
        axes.set_title(image["title"])
        axes.axis("off")
        with suppress(OSError):  # a broken image must not end the run
            axes.imshow(Image.open(image["path"]).convert("RGB"))
    with atomic_path(path) as partial:
        figure.savefig(partial, dpi=100)
