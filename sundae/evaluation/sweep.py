"""Quality of samples over settings and seeds, against what they cost."""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from sundae.common.errors import UserError
from sundae.common.files import write_json
from sundae.config.sections import SamplingConfig
from sundae.config.values import parse_override
from sundae.evaluation.evaluation import Settings
from sundae.evaluation.instrument import Instrument
from sundae.evaluation.sides import draw_samples
from sundae.evaluation.subject import Subject
from sundae.sampling.sampler import BaseSampler

SWEEP_NAME = "sweep.json"
_MAY_DIFFER = {"command", "date", "versions"}  # between the calls that fill one folder

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
            parsed = [parse_override(f"{key}={value}")[1] for value in some.split(",")]
            values[key] = [v for i, v in enumerate(parsed) if v not in parsed[:i]]  # each once
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
    instrument: Instrument,
    settings: Settings,
    labels: np.ndarray | None,
    protocol: Mapping[str, Any],
    folder: Path,
) -> list[Row]:
    """Score every point with every seed; rows that the folder holds already stay as they are.

    FOLDER/sweep.json is written after each point, so that the same command goes on where it was
    stopped.

    Args:
        labels: Classes that the samples take in turn, see `draw_samples`.

    Returns:
        One row a point and seed: point, seed, evaluations, seconds (a sample), figures.

    Raises:
        UserError: The folder holds a sweep with another protocol.
    """
    assert subject.sampler is not None and settings.num_samples is not None
    sampler, count = subject.sampler, settings.num_samples
    rows = _rows_of(folder / SWEEP_NAME, protocol)
    work = [(point, seed) for point in sweep.points for seed in sweep.seeds]
    done = [(row["point"], row["seed"]) for row in rows]
    left = [item for item in work if item not in done]
    draw = partial(draw_samples, sampler, labels=labels, batch_size=settings.batch_size)
    if left:  # the first samples pay for what is set up once
        draw(min(count, settings.batch_size), seed=0, steps=1)
    for point, seed in tqdm(left, unit="point", disable=True if settings.quiet else None):
        begin = time.perf_counter()
        samples = draw(count, seed=seed, **point)
        seconds = (time.perf_counter() - begin) / count
        cost = {"evaluations": evaluations(sampler.settings(**point)), "seconds": seconds}
        figures = instrument.samples(samples).figures
        rows.append({"point": point, "seed": seed, **cost, "figures": figures})
        write_json(folder / SWEEP_NAME, {"protocol": protocol, "rows": rows})
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
