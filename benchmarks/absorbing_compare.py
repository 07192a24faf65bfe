"""Ours beside the baseline: the same numbers of network evaluations, figures, seconds, a plot."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sundae.common.errors import UserError
from sundae.common.files import atomic_path, write_json, write_text
from sundae.common.images import save_grid
from sundae.config.values import parse_override
from sundae.evaluation.evaluation import Settings, class_labels, open_instrument
from sundae.evaluation.instrument import Instrument
from sundae.evaluation.protocol import shared_protocol
from sundae.evaluation.report import figure_title
from sundae.evaluation.sides import draw_samples
from sundae.evaluation.subject import Real, Subject
from sundae.evaluation.sweep import (
    SWEEP_NAME,
    Point,
    Row,
    Sweep,
    evaluations,
    mean_and_spread,
    run_sweep,
)
from sundae.features.interface import FeatureNetwork
from sundae.sampling.sampler import BaseSampler

FIGURES = ("distance", "manifold", "classes")
NAME = "comparison"
_TABLE = ("frechet_distance", "class_accuracy", "coverage", "precision", "recall")
_SHOWN = 100  # samples of a grid

Given = dict[str | None, Point]  # strategy, or None for all -> keys of [sampling]


class Variant(NamedTuple):
    """One side, "ours" or "baseline", with one strategy."""

    side: str
    strategy: str

    def __str__(self) -> str:
        return f"{self.side}, {self.strategy}"


@dataclass(frozen=True)
class Side:
    """A model and how it is sampled.

    Attributes:
        subject: with its sampler.
        strategies: each is a variant.
        given: settings beyond those of its run file.
    """

    name: str
    subject: Subject
    strategies: Sequence[str]
    given: Given

    @property
    def sampler(self) -> BaseSampler:
        """Of the subject."""
        assert self.subject.sampler is not None
        return self.subject.sampler

    def point(self, strategy: str, cost: int, **settings: Any) -> Point:
        """Settings with which a sample takes `cost` network evaluations, or as nearly below."""
        chosen = {**self.given.get(None, {}), **self.given.get(strategy, {}), **settings}
        chosen |= {"strategy": strategy, "early_stop": False}
        for steps in range(cost, 0, -1):
            point = {**chosen, "steps": steps}
            if evaluations(self.sampler.settings(**point)) <= cost:
                return point
        raise UserError(
            f"--steps {cost}: guidance takes two evaluations a step; expected 2 or more"
        )


def parse_settings(texts: Sequence[str], strategies: Sequence[str], flag: str) -> Given:
    """KEY=VALUE, a key of [sampling] for all strategies of a side, or STRATEGY.KEY=VALUE for one.

    Raises:
        UserError: a text of another form, or a key that the comparison sets itself.
    """
    given: Given = {}
    for text in texts:
        name, dot, rest = text.partition(".")
        strategy = name if dot and name in strategies else None
        key, value = parse_override(rest if strategy else text)
        if key in ("steps", "strategy", "early_stop", "nb_samples", "compile"):
            raise UserError(f"{flag} {text}: expected another key of [sampling], such as guidance")
        given.setdefault(strategy, {})[key] = value
    return given


def parse_ramp(text: str) -> tuple[float, float]:
    """A temperature, or START:END of a ramp.

    Raises:
        ValueError: of another form.
    """
    start, _, end = text.partition(":")
    return float(start), float(end or start)


@dataclass(frozen=True)
class Grid:
    """What is tried for each strategy and number of evaluations, with a seed of its own.

    Attributes:
        temperatures: of the first and last step.
        choice_temperatures: for "confidence".
        costs: network evaluations at which it is tried; other costs take the best of the nearest.
    """

    temperatures: Sequence[tuple[float, float]]
    choice_temperatures: Sequence[float]
    costs: Sequence[int]
    seed: int

    def settings(self, strategy: str) -> Iterator[Point]:
        """Every combination for a strategy."""
        choices: Sequence[float | None] = (None,)
        if strategy == "confidence":
            choices = self.choice_temperatures
        for (start, end), choice in itertools.product(self.temperatures, choices):
            point = {"temperature": start, "end_temperature": end}
            yield point if choice is None else {**point, "choice_temperature": choice}


@dataclass(frozen=True)
class Comparison:
    """Scores of both sides beside the same real images.

    Attributes:
        costs: network evaluations of a sample.
        folder: rows are written there as they come, so that the same command goes on.
    """

    real: Real
    instrument: Instrument
    network: FeatureNetwork
    settings: Settings
    costs: Sequence[int]
    seeds: Sequence[int]
    folder: Path
    command: str

    @classmethod
    def open(
        cls, real: Real, network: FeatureNetwork, settings: Settings, **rest: Any
    ) -> Comparison:
        """Look at the real images once, for both sides."""
        return cls(real, open_instrument(real, network, settings), network, settings, **rest)

    def points(self, side: Side, grid: Grid | None) -> list[tuple[int, Point]]:
        """(cost, settings) of each strategy and cost: as given, or the best of a grid."""
        pairs = list(itertools.product(side.strategies, self.costs))
        if grid is None:
            return [(cost, side.point(strategy, cost)) for strategy, cost in pairs]
        tried = {
            (strategy, cost, number): side.point(strategy, cost, **some)
            for strategy in side.strategies
            for cost in grid.costs
            for number, some in enumerate(grid.settings(strategy))
        }
        rows = self.score(side, [*tried.values()], [grid.seed], "tuning")
        chosen = []
        for strategy, cost in pairs:
            nearest = min(grid.costs, key=lambda other: abs(math.log(other / cost)))
            settings = [*enumerate(grid.settings(strategy))]
            scores = [_distance(rows, tried[strategy, nearest, number]) for number, _ in settings]
            _, best = settings[scores.index(min(scores))]
            chosen.append((cost, side.point(strategy, cost, **best)))
        return chosen

    def score(
        self, side: Side, points: Sequence[Point], seeds: Sequence[int], name: str
    ) -> list[Row]:
        """Rows of `run_sweep`, in FOLDER/name-side."""
        folder = self.folder / f"{name}-{side.name}"
        folder.mkdir(parents=True, exist_ok=True)
        unique = [point for i, point in enumerate(points) if point not in points[:i]]
        sweep = Sweep(("strategy", "steps"), tuple(unique), tuple(seeds))
        about = shared_protocol(
            side.subject, self.instrument, self.network, self.settings, command=self.command
        )
        labels = class_labels(side.subject, self.real, self.settings)
        return run_sweep(sweep, side.subject, self.instrument, self.settings, labels, about, folder)

    def lines(self, side: Side, grid: Grid | None) -> list[Row]:
        """One line a strategy and cost: means and standard deviations over the seeds."""
        points = self.points(side, grid)
        rows = self.score(side, [point for _, point in points], self.seeds, "rows")
        return [
            _line(side.name, cost, point, [row for row in rows if row["point"] == point])
            for cost, point in points
        ]

    def report(self, lines: Sequence[Row]) -> list[str]:
        """Write FOLDER/comparison.md, .json and .png; returns the lines of the first."""
        floor = self.instrument.floor().figures
        text = [
            *table(lines, floor, self.network),
            "",
            "The best of each side within the same seconds:",
            "",
            *equal_seconds(lines, self.network),
        ]
        path = self.folder / NAME
        write_text(path.with_suffix(".md"), "\n".join(text) + "\n")
        about = {"command": self.command, "floor": floor, "seeds": list(self.seeds)}
        about["images on each side of a distance"] = self.instrument.count
        write_json(path.with_suffix(".json"), {**about, "lines": list(lines)})
        plot(lines, floor, self.network, path.with_suffix(".png"))
        return text

    def show(self, side: Side, lines: Sequence[Row]) -> list[Path]:
        """Write a grid of samples of each strategy, at the most evaluations."""
        paths = []
        for strategy in side.strategies:
            own = [x for x in lines if (x["side"], x["strategy"]) == (side.name, strategy)]
            point = max(own, key=lambda line: line["evaluations"])["point"]
            labels = None if not side.sampler.class_names else np.array(side.sampler.class_names)
            images = draw_samples(side.sampler, _SHOWN, seed=self.seeds[0], labels=labels, **point)
            paths.append(self.folder / f"{side.name}-{strategy}.png")
            save_grid(images.pixels().float() / 255, paths[-1])
        return paths


def clear(folder: Path) -> None:
    """Drop the rows of another comparison."""
    for path in folder.glob(f"*/{SWEEP_NAME}"):
        path.unlink()


def _distance(rows: Sequence[Row], point: Point) -> float:
    found: float = next(row for row in rows if row["point"] == point)["figures"]["frechet_distance"]
    return found


def _line(side: str, cost: int, point: Point, rows: Sequence[Row]) -> Row:
    names = [name for name in _TABLE if name in rows[0]["figures"]]
    figures = {name: mean_and_spread([row["figures"][name] for row in rows]) for name in names}
    return {
        "side": side,
        "strategy": point["strategy"],
        "budget": cost,
        "evaluations": rows[0]["evaluations"],
        "seconds per 100": mean_and_spread([100 * row["seconds"] for row in rows]),
        "figures": figures,
        "point": point,
    }


def table(lines: Sequence[Row], floor: Mapping[str, float], network: FeatureNetwork) -> list[str]:
    """A Markdown table, by network evaluations; ± is the standard deviation over seeds."""
    names = list(lines[0]["figures"])
    titles = [figure_title(name, network) for name in names]
    rows = []
    for line in sorted(lines, key=lambda line: line["budget"]):
        cells = [_pair(line["figures"][name]) for name in names]
        seconds = _pair(line["seconds per 100"])
        rows.append([str(line["evaluations"]), line["side"], line["strategy"], *cells, seconds,
                     _described(line["point"])])  # fmt: skip
    cells = [f"{floor[name]:.3g}" if name in floor else "" for name in names]
    rows.append(["", "floor", "", *cells, "", ""])
    return _markdown(["evaluations", "model", "strategy", *titles, "s per 100", "settings"], rows)


def equal_seconds(lines: Sequence[Row], network: FeatureNetwork) -> list[str]:
    """For the seconds of each number of evaluations, the best distance of each side within them."""
    rows = []
    for cost in sorted({line["budget"] for line in lines}):
        limit = max(line["seconds per 100"][0] for line in lines if line["budget"] == cost)
        cells = [f"{limit:.3g}"]
        for side in ("ours", "baseline"):
            within = [
                line
                for line in lines
                if line["side"] == side and line["seconds per 100"][0] <= limit
            ]
            if within:
                best = min(within, key=lambda line: line["figures"]["frechet_distance"][0])
                distance = _pair(best["figures"]["frechet_distance"])
                cells += [f"{best['strategy']}, {best['evaluations']} evaluations", distance]
            else:
                cells += ["", ""]
        rows.append(cells)
    title = figure_title("frechet_distance", network)
    return _markdown(["s per 100", "ours", title, "baseline", title], rows)


def plot(
    lines: Sequence[Row], floor: Mapping[str, float], network: FeatureNetwork, path: Path
) -> None:
    """Distance against network evaluations and against seconds, a line for each variant.

    Raises:
        UserError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    costs = {
        "network evaluations": lambda line: line["evaluations"],
        "seconds per 100": lambda line: line["seconds per 100"][0],
    }
    variants = dict.fromkeys(Variant(line["side"], line["strategy"]) for line in lines)
    for ax, (title, cost) in zip(figure.subplots(1, 2), costs.items()):
        for variant in variants:
            own = [x for x in lines if (x["side"], x["strategy"]) == variant]
            own.sort(key=cost)
            ys, errors = zip(*(line["figures"]["frechet_distance"] for line in own))
            style = "-" if variant.side == "ours" else "--"
            ax.errorbar([cost(line) for line in own], ys, errors, linestyle=style, marker="o",
                        markersize=4, capsize=3, label=str(variant))  # fmt: skip
        if "frechet_distance" in floor:
            ax.axhline(floor["frechet_distance"], color="grey", linewidth=1, label="floor")
        ax.set(xlabel=title, ylabel=figure_title("frechet_distance", network))
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter("{x:.3g}")
        ax.grid(alpha=0.3)
    figure.axes[0].legend(fontsize="small")
    with atomic_path(path) as partial:
        figure.savefig(partial, dpi=120)


def _described(point: Point) -> str:
    """The settings of a point that are not said by the other columns."""
    known = ("strategy", "steps", "early_stop")
    return ", ".join(f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}"
                     for key, value in point.items() if key not in known)  # fmt: skip


def _pair(pair: Sequence[float]) -> str:
    mean, spread = pair
    return f"{mean:.3g}" + (f" ±{spread:.2g}" if spread else "")


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def with_sampler(subject: Subject, sampler: BaseSampler, path: Path) -> Subject:
    """The same images and codec with another model."""
    return replace(subject, sampler=sampler, path=path)
