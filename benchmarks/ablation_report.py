"""The tables and the plot of an ablation, from what its runs left on disk."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ablation_jobs import Run
from ablation_plan import Plan, Variant
from matplotlib import colormaps
from matplotlib.figure import Figure

from sundae.common.files import atomic_path, make_folder, write_json, write_text
from sundae.evaluation.report import JSON_NAME, figure_title
from sundae.features.loading import feature_class

TABLE, RESULTS, CURVES = "table.md", "results.json", "curves.png"
LOSS = "eval/loss_1"
_RATE = "eval/loss_rate_"

Rows = list[dict[str, float]]
Number = dict[str, Any]  # {"mean", "spread", "values"}

# Columns of the first table: keys of a run's numbers, title, format.
_COLUMNS = (
    ("loss_1", "loss_1", ".4f"),
    ("accuracy_1", "accuracy_1", ".4f"),
    ("steps_ratio", "against base, steps", ".3f"),
    ("seconds_ratio", "against base, seconds", ".3f"),
    ("steps", "steps", ".0f"),
    ("seconds", "seconds", ".0f"),
    ("samples_per_s", "samples/s", ".4g"),
    ("parameters", "parameters", ",.0f"),
)
_NOTES = """\
loss_1, accuracy_1: of the first unroll step on held-out data at the end, averaged weights; the same
for any number of unroll steps. "against base": the share of {first}'s steps, or seconds of training
alone, after which a run's loss_1 is that of {first} at its end, interpolated between evaluations; a
dash where it never is. samples/s: of training alone, measured before; seconds: with evaluations.
Behind ±: half of the range over seeds ({seeds}).
"""


# -- numbers of a run -----------------------------------------------------------------------------


def read_curves(path: Path) -> Rows:
    """The rows of a run's curves.csv; none where there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def reached(rows: Rows, target: float) -> float | None:
    """The step at which held-out loss_1 first is `target` or less, linear between evaluations.

    None where it never is.
    """
    before: dict[str, float] | None = None
    for row in rows:
        if row[LOSS] <= target:
            if before is None:
                return row["step"]
            share = (before[LOSS] - target) / (before[LOSS] - row[LOSS])
            return before["step"] + share * (row["step"] - before["step"])
        before = row
    return None


def numbers_of(run: Run, against: Run | None) -> dict[str, float]:
    """All numbers of a finished run.

    Args:
        against: a finished run of the first variant with the same seed.
    """
    rows, state = read_curves(run.folder / "curves.csv"), run.state
    last = rows[-1]
    batch_size = state["settings"]["config"]["trainer"]["batch_size"]
    found: dict[str, float] = {
        "loss_1": last[LOSS],
        "accuracy_1": last["eval/accuracy_1"],
        "steps": last["step"],
        "seconds": last["seconds"],
        "samples_per_s": batch_size * run.rate,
        "parameters": state["parameters"],
    }
    found |= {name.removeprefix("eval/"): value for name, value in last.items()
              if name.startswith(_RATE)}  # fmt: skip
    if against is not None:
        base = read_curves(against.folder / "curves.csv")[-1]
        step = reached(rows, base[LOSS])
        if step is not None:
            found["steps_ratio"] = step / base["step"]
            found["seconds_ratio"] = found["steps_ratio"] * against.rate / run.rate
    return found


def figures_of(run: Run, number: int) -> tuple[dict[str, float], str]:
    """Figures of the samples of an evaluation by their titles, and why it failed."""
    folder = run.figures(number)
    known = folder.with_name(f"{folder.name}.json")
    error = json.loads(known.read_text(encoding="utf-8"))["error"] if known.exists() else ""
    if error or not known.exists():
        return {}, error
    content = json.loads((folder / JSON_NAME).read_text(encoding="utf-8"))
    network = feature_class(content["protocol"]["features"]["name"])
    samples = content["figures"].get("samples", {})
    return {
        figure_title(name, network): value
        for name, value in samples.items()
        if value is not None and not name.endswith("_std")
    }, ""


def over_seeds(runs: Sequence[Mapping[str, float]]) -> dict[str, Number]:
    """Mean and half of the range of each number, over the runs that have it.

    Ratios have no mean where a run never reached the loss.
    """
    found: dict[str, Number] = {}
    for name in dict.fromkeys(name for run in runs for name in run):
        values = [run[name] for run in runs if name in run]
        if name.endswith("_ratio") and len(values) < len(runs):
            continue
        spread = (max(values) - min(values)) / 2
        found[name] = {"mean": statistics.mean(values), "spread": spread, "values": values}
    return found


# -- the whole plan -------------------------------------------------------------------------------


def write_results(plan: Plan, out: Path) -> None:
    """Write table.md and results.json anew from what is there."""
    make_folder(out)
    first = plan.variants[0]
    variants = [_result(plan, variant, first, out) for variant in plan.variants]
    about = {"base": str(plan.base), "seeds": list(plan.seeds), "steps": plan.steps,
             "seconds": plan.seconds, "evaluate": plan.evaluate}  # fmt: skip
    write_json(out / RESULTS, {"plan": about, "variants": variants})
    write_text(out / TABLE, _markdown(plan, variants))


def _result(plan: Plan, variant: Variant, first: Variant, out: Path) -> dict[str, Any]:
    """A variant's entry of results.json."""
    runs = [Run(plan, variant, seed, out) for seed in plan.seeds]
    done = [run for run in runs if run.checkpoint is not None]
    errors = [f"seed {run.seed}: {error}" for run in runs if (error := run.state.get("error"))]
    numbers = []
    for run in done:
        other = Run(plan, first, run.seed, out)
        numbers.append(numbers_of(run, other if other.checkpoint is not None else None))
    samplers = []
    for number, overrides in enumerate(variant.samplers):
        found = [figures_of(run, number) for run in done]
        errors += [f"seed {run.seed}, evaluation: {e}" for run, (_, e) in zip(done, found) if e]
        figures = over_seeds([figures for figures, _ in found if figures])
        samplers.append({"set": list(overrides), "figures": figures})
    return {
        "name": variant.name,
        "set": list(variant.overrides),
        "seeds": [run.seed for run in done],
        "errors": errors,
        "numbers": over_seeds(numbers),
        "samplers": samplers,
    }


def _markdown(plan: Plan, variants: Sequence[dict[str, Any]]) -> str:
    length = f"{plan.steps} steps" if plan.steps else f"{plan.seconds:g} s"
    names = ", ".join(map(str, plan.seeds))
    lines = [f"{plan.base}, {length} a run, seeds {names}.", ""]
    lines += _table(variants, _COLUMNS, lambda v: [(v["name"], v["numbers"])])
    rates = _names(v["numbers"] for v in variants)
    bins = sorted(name for name in rates if name.startswith("loss_rate_"))
    if bins:
        lines += ["", "Held-out loss of the first unroll step by corruption rate:", ""]
        titled = [(name, name.removeprefix("loss_rate_"), ".4f") for name in bins]
        lines += _table(variants, titled, lambda v: [(v["name"], v["numbers"])])
    figures = _names(s["figures"] for v in variants for s in v["samplers"])
    if figures:
        lines += ["", "Figures of samples by evaluate.py:", ""]
        titled = [(name, name, ".4g") for name in figures]
        lines += _table(variants, titled, _sampled)
    lines += ["", _NOTES.format(first=plan.variants[0].name, seeds=names).rstrip()]
    failed = [f"- {v['name']}: {error}" for v in variants for error in v["errors"]]
    if failed:
        lines += ["", "Failed:", "", *failed]
    return "\n".join(lines) + "\n"


def _sampled(variant: dict[str, Any]) -> list[tuple[str, dict[str, Number]]]:
    """A line for each sampler of a variant."""
    return [
        (" ".join([variant["name"], *(s.removeprefix("sampling.") for s in sampler["set"])]),
         sampler["figures"])
        for sampler in variant["samplers"]
    ]  # fmt: skip


def _names(tables: Any) -> list[str]:
    return list(dict.fromkeys(name for table in tables for name in table))


def _table(
    variants: Sequence[dict[str, Any]],
    columns: Sequence[tuple[str, str, str]],
    lines_of: Callable[[dict[str, Any]], list[tuple[str, dict[str, Number]]]],
) -> list[str]:
    """A Markdown table with aligned columns."""
    lines = [["variant", *(title for _, title, _ in columns), "seeds"]]
    for variant in variants:
        state = str(len(variant["seeds"])) + (", failed" if variant["errors"] else "")
        for title, numbers in lines_of(variant):
            cells = [_cell(numbers.get(key), form) for key, _, form in columns]
            lines.append([title, *cells, state])
    widths = [max(map(len, column)) for column in zip(*lines)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    rows = [lines[0], rule, *lines[1:]]
    return [
        "| " + " | ".join([first.ljust(widths[0]),
                           *(c.rjust(w) for c, w in zip(rest, widths[1:]))]) + " |"
        for first, *rest in rows
    ]  # fmt: skip


def _cell(number: Number | None, form: str) -> str:
    if number is None:
        return "-"
    spread = f" ±{number['spread']:.2g}" if len(number["values"]) > 1 else ""
    return f"{number['mean']:{form}}" + (spread if number["spread"] else "")


def draw_curves(plan: Plan, out: Path) -> None:
    """Held-out loss_1 against steps and against seconds, a line a variant: mean over seeds."""
    figure = Figure(figsize=(16, 7), layout="constrained")
    panels = zip(figure.subplots(1, 2, sharey=True), ("step", "seconds"))
    for axes, axis in panels:
        for number, variant in enumerate(plan.variants):
            runs = [read_curves(Run(plan, variant, seed, out).folder / "curves.csv")
                    for seed in plan.seeds]  # fmt: skip
            runs = [rows for rows in runs if rows]
            if not runs:
                continue
            length = min(map(len, runs))
            step, loss = (
                np.mean([[row[key] for row in rows[:length]] for rows in runs], axis=0)
                for key in ("step", LOSS)
            )
            along = step if axis == "step" else step / Run(plan, variant, 0, out).rate
            style = "-" if number < 20 else "--"
            axes.plot(along, loss, style, color=colormaps["tab20"](number % 20), label=variant.name)
        axes.set(xlabel="optimiser steps" if axis == "step" else "seconds of training alone",
                 yscale="log",
                 ylabel="held-out loss, first unroll step")  # fmt: skip
        axes.grid(alpha=0.3, which="both")
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside right upper", fontsize="small")
    with atomic_path(out / CURVES) as partial:
        figure.savefig(partial, dpi=100)
