"""What an ablation trains: a TOML plan, and the settings of each run that follow from it."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sundae.common.errors import UserError, shown, suggestion
from sundae.config.run_file import RunConfig, load_config, parse_config
from sundae.config.values import parse_override, plain

EVALUATIONS = 20  # of a training, whose curve then tells when it reached a loss

_PLAN = ("base", "seeds", "steps", "seconds", "common", "evaluate", "variants")
_VARIANT = ("name", "base", "set", "samplers")
_FEWEST = 20  # steps of a training that is as long as its seconds allow
_NAME = re.compile(r"[A-Za-z0-9_.,+=-]*[A-Za-z0-9]")


@dataclass(frozen=True)
class Variant:
    """A run file with changes.

    Attributes:
        overrides: "section.key=value" each; the last of a key wins.
        samplers: overrides of [sampling], one tuple for each evaluation of the trained weights.
    """

    name: str
    overrides: tuple[str, ...] = ()
    samplers: tuple[tuple[str, ...], ...] = ((),)


@dataclass(frozen=True)
class Plan:
    """Variants that are trained on equal terms.

    Attributes:
        base: the run file.
        steps, seconds: how long each is trained, one of the two.
        evaluate: flags of evaluate.py without their dashes, and "reference"; None for losses only.
        variants: the first one is what the others are compared with.
    """

    base: Path
    seeds: tuple[int, ...]
    steps: int | None
    seconds: float | None
    evaluate: dict[str, Any] | None
    variants: tuple[Variant, ...] = field(default=())

    def config(self, variant: Variant) -> RunConfig:
        """A variant's run file as it was before its length was set; UserError where it is wrong."""
        cfg = load_config(self.base, variant.overrides)
        for words in variant.samplers:
            load_config(self.base, (*variant.overrides, *words))
        return cfg


def read_plan(path: Path, only: Collection[str] = ()) -> Plan:
    """Read a plan; `only` names variants to which a call is limited, and has to exist.

    Raises:
        UserError: the file cannot be read, or a key is unknown, missing or mistyped.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot read the plan: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path}: not a valid TOML file: {error}") from None
    check = _Checks(str(path))
    check.keys(values, _PLAN, "the plan")
    common = check.table(values, "common")
    check.keys(common, ("set",), "[common]")
    steps, seconds = values.get("steps"), values.get("seconds")
    if (steps is None) == (seconds is None):
        raise UserError(f"{path}: expected either steps or seconds, how long each is trained")
    check.that(
        steps is None or (type(steps) is int and steps >= 1), "steps", "an integer, 1 or more"
    )
    check.that(
        seconds is None or (type(seconds) in (int, float) and 0 < seconds < math.inf),
        "seconds", "a number above 0",
    )  # fmt: skip
    seeds = values.get("seeds", [0, 1])
    check.that(
        isinstance(seeds, list) and seeds and all(type(n) is int and n >= 0 for n in seeds)
        and len(set(seeds)) == len(seeds),
        "seeds", "a list of different integers, as [0, 1]",
    )  # fmt: skip
    check.that(isinstance(values.get("base"), str), "base", "the path of a run file")
    shared = check.words(common.get("set", []), "common.set")
    found = _variants(values.get("variants", []), shared, check)
    for name in only:
        if name not in found:
            raise UserError(f"--only {name}: no such variant{suggestion(name, found)}")
    evaluate = check.table(values, "evaluate") if "evaluate" in values else None
    return Plan(Path(values["base"]), tuple(seeds), steps, seconds, evaluate, tuple(found.values()))


class _Checks:
    """Refusals that name the plan and the key."""

    def __init__(self, source: str) -> None:
        self.source = source

    def that(self, holds: object, key: str, expected: str) -> None:
        if not holds:
            raise UserError(f"{self.source}: {key}: expected {expected}")

    def keys(self, table: dict[str, Any], known: Sequence[str], where: str) -> None:
        for key in table:
            if key not in known:
                raise UserError(
                    f"{self.source}: {key}: not a key of {where}{suggestion(key, known)}"
                )

    def table(self, values: dict[str, Any], name: str) -> dict[str, Any]:
        found = values.get(name, {})
        self.that(isinstance(found, dict), name, f"a section [{name}]")
        return dict(found)

    def words(self, value: Any, key: str) -> tuple[str, ...]:
        listed = isinstance(value, list) and all(isinstance(word, str) for word in value)
        self.that(listed, key, f'a list such as ["net.dim=512"], got {shown(value)}')
        for word in value:
            parse_override(word)
        return tuple(value)


def _variants(entries: Any, shared: tuple[str, ...], check: _Checks) -> dict[str, Variant]:
    """Variants by name, with the settings of those that they build on."""
    check.that(isinstance(entries, list) and entries, "variants", "at least one [[variants]]")
    named: dict[str, dict[str, Any]] = {}
    for entry in entries:
        check.keys(entry, _VARIANT, "[[variants]]")
        name = entry.get("name")
        check.that(
            isinstance(name, str) and _NAME.fullmatch(name), "variants.name",
            f"letters, digits, dashes and dots, got {shown(name)}",
        )  # fmt: skip
        check.that(name not in named, f"variants.name: {name}", "names that differ")
        named[name] = entry

    def overrides(name: str, above: tuple[str, ...] = ()) -> tuple[str, ...]:
        base, own = named[name].get("base"), f"variant {name}: set"
        words = check.words(named[name].get("set", []), own)
        if base is None:
            return (*shared, *words)
        known = base in named and base not in (*above, name)
        check.that(known, f"variant {name}: base", f"another variant, got {shown(base)}")
        return (*overrides(base, (*above, name)), *words)

    found = {}
    for name, entry in named.items():
        samplers = entry.get("samplers", [[]])
        key = f"variant {name}: samplers"
        check.that(isinstance(samplers, list) and samplers, key, "a list of lists of overrides")
        listed = tuple(check.words(words, key) for words in samplers)
        for word in (word for words in listed for word in words):
            check.that(word.startswith("sampling."), key, f"keys of [sampling], got {word}")
        found[name] = Variant(name, overrides(name), listed)
    return found


# -- the settings of a run ------------------------------------------------------------------------


def steps_for(seconds: float, steps_per_second: float) -> int:
    """Optimiser steps that a training of some seconds has."""
    return max(_FEWEST, round(seconds * steps_per_second))


def length_overrides(cfg: RunConfig, steps: int) -> list[str]:
    """Overrides that make a training last some steps, its schedule ending with it.

    The warm-up is at most a quarter of the steps. The held-out data is evaluated about
    `EVALUATIONS` times, and nothing that costs time is written beside it.
    """
    trainer = cfg.trainer
    accumulate = trainer.batch_size // (trainer.mini_batch_size or trainer.batch_size)
    between = max(1, steps // EVALUATIONS)
    where = "trainer.lr_scheduler_kwargs"
    found = [
        f"trainer.max_steps={steps}",
        f"trainer.nb_batches=[{between * accumulate}, {trainer.nb_batches[1]}]",
        f"trainer.checkpoint_frequency={5 * between}",
        "trainer.checkpoint_best=false",
        "trainer.keep_checkpoints=1",
        "trainer.save_outputs=true",
        "sampling.nb_samples=1",
    ]
    kwargs = trainer.lr_scheduler_kwargs
    if "nb_training_steps" in kwargs:
        found.append(f"{where}.nb_training_steps={steps}")
    if "nb_warmup_steps" in kwargs:
        found.append(f"{where}.nb_warmup_steps={min(kwargs['nb_warmup_steps'], steps // 4)}")
    return found


def settings_of(plan: Plan, cfg: RunConfig, seed: int) -> dict[str, Any]:
    """All that decides on a run, as plain values."""
    return {"config": plain(cfg), "seed": seed, "steps": plan.steps, "seconds": plan.seconds}


def difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The first setting in which a finished run differs from the plan, or "".

    Keys that came into the program since have their default in the run.
    """
    before = dict(before)
    try:
        before["config"] = parse_config(before["config"], "the finished run").to_dict()
    except UserError as error:  # of a version that had other keys
        return str(error)
    then, today = _flat(before), _flat(now)
    for key in [*today, *then]:
        if then.get(key) != today.get(key):
            name = key.removeprefix("config.")
            return f"{name} was {shown(then.get(key))} and is {shown(today.get(key))}"
    return ""


def _flat(table: dict[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in table.items():
        dotted = f"{above}{key}"
        found |= _flat(value, f"{dotted}.") if isinstance(value, dict) else {dotted: value}
    return found
