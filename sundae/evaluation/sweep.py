"""Quality of samples over settings and seeds, against what they cost."""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sundae.common.errors import UserError
from sundae.common.files import write_text
from sundae.config.sections import SamplingConfig
from sundae.config.values import parse_override
from sundae.evaluation.evaluation import Settings, class_labels
from sundae.evaluation.instrument import Instrument
from sundae.evaluation.sides import draw_samples
from sundae.evaluation.subject import Real, Subject
from sundae.sampling.sampler import BaseSampler

SWEEP_NAME = "sweep.json"

Point = dict[str, Any]  # key of [sampling] -> value
Row = dict[str, Any]


@dataclass(frozen=True)
class Sweep:
    """Points of a sweep and the seeds that each is drawn with.

    Attributes:
        keys: Keys of [sampling] that vary, in the order in which they were given.
        points: Every combination of their values.
    """

    keys: tuple[str, ...]
    points: tuple[Point, ...]
    seeds: tuple[int, ...]

    @classmethod
    def parse(cls, axes: Sequence[str], seeds: Sequence[int], sampler: BaseSampler) -> Sweep:
        """Make a sweep of `KEY=VALUE,VALUE` texts, one for each key.

        All steps are done unless early_stop is swept, so that samples of a point cost the same.

        Raises:
            UserError: A text of another form, no such key, or a value that the run does not allow.
        """
        values: dict[str, list[Any]] = {}
        for axis in axes:
            key, equals, some = axis.partition("=")
            if not equals or not some.strip(","):
                raise UserError(f"--sweep {axis}: expected KEY=VALUE,VALUE, as in steps=4,8,16")
            if key in values:
                raise UserError(f"--sweep {key} is given twice; list all its values in one")
            if key in ("nb_samples", "compile"):
                raise UserError(f"--sweep {key}: expected a key that changes what is sampled")
            values[key] = [parse_override(f"{key}={value}")[1] for value in some.split(",")]
        fixed = {} if "early_stop" in values else {"early_stop": False}
        combinations = itertools.product(*values.values())
        points = tuple(dict(zip(values, combination)) | fixed for combination in combinations)
        for point in points:
            sampler.settings(**point)
        return cls(tuple(values), points, tuple(dict.fromkeys(seeds)))


def evaluations(sampling: SamplingConfig) -> int:
    """Forward passes for one sample that does all steps; guidance takes two a step."""
    guidance = [
        sampling.guidance_at(step)
        for step in range(sampling.steps)
        if sampling.proportion_at(step) > 0
    ]
    return sum(1 if weight == 1 else 2 for weight in guidance)


def run_sweep(
    sweep: Sweep,
    subject: Subject,
    real: Real,
    instrument: Instrument,
    settings: Settings,
    protocol: Mapping[str, Any],
    folder: Path,
) -> list[Row]:
    """Score every point with every seed; rows that the folder holds already stay as they are.

    FOLDER/sweep.json is written after each point, so that the same command goes on where it was
    stopped.

    Returns:
        One row a point and seed: point, seed, evaluations, seconds (a sample), figures.

    Raises:
        UserError: The folder holds a sweep with another protocol.
    """
    assert subject.sampler is not None and settings.num_samples is not None
    rows = _rows_of(folder / SWEEP_NAME, protocol)
    done = [(row["point"], row["seed"]) for row in rows]
    work = [(point, seed) for point in sweep.points for seed in sweep.seeds]
    labels = class_labels(subject, real, settings)
    draw = {"labels": labels, "batch_size": settings.batch_size}
    if any(item not in done for item in work):  # the first samples pay for what is set up once
        warm_up = min(settings.num_samples, settings.batch_size)
        draw_samples(subject.sampler, warm_up, seed=0, steps=1, **draw)
    floor = instrument.floor().figures
    for point, seed in tqdm(work, unit="point", disable=True if settings.quiet else None):
        if (point, seed) in done:
            continue
        begin = time.perf_counter()
        samples = draw_samples(subject.sampler, settings.num_samples, seed=seed, **draw, **point)
        seconds = (time.perf_counter() - begin) / settings.num_samples
        rows.append({
            "point": point,
            "seed": seed,
            "evaluations": evaluations(subject.sampler.settings(**point)),
            "seconds": seconds,
            "figures": instrument.samples(samples).figures,
        })  # fmt: skip
        found = {"protocol": protocol, "floor": floor, "rows": rows}
        write_text(folder / SWEEP_NAME, json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    return [row for row in rows if (row["point"], row["seed"]) in work]


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and standard deviation, 0 of a single value."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _rows_of(path: Path, protocol: Mapping[str, Any]) -> list[Row]:
    """Rows of an earlier call with the same protocol."""
    if not path.exists():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        rows, before = list(found["rows"]), dict(found["protocol"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read; remove it, or choose another --out-dir") from error
    now = json.loads(json.dumps(protocol))
    different = [key for key in now if before.get(key) != now[key] and key not in _MAY_DIFFER]
    if different:
        raise UserError(
            f"{path} is of a sweep with another {different[0]}; choose another --out-dir, or pass "
            "--overwrite"
        )
    return rows


_MAY_DIFFER = {"command", "date"}
