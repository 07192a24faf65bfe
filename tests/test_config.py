"""The run file: what it accepts, what it stores, and what it says about mistakes."""

import argparse
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from docs.make_settings import PAGE, page, section_table
from sundae.codec_training.config import TrainingConfig
from sundae.common.errors import UserError
from sundae.config import run_file
from sundae.config.flags import add_flags, values_of
from sundae.config.keys import keys_of
from sundae.config.run_file import RunConfig, dump_toml, load_config, parse_config, update_config
from sundae.config.sections import (
    STRICT,
    SamplingConfig,
    ScheduleName,
    TrainerConfig,
    schedule_keys,
)

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(ROOT.glob("config/**/*.toml"))

# The example of the file format, in the shortest form that is complete.
MINIMAL = """
unroll_steps = 2
[trainer]
batch_size = 32
[data]
train_root = "train"
eval_root = "eval"
vocab_size = 256
sequence_length = 784
[net]
dim = 64
nb_heads = 4
depth = [2, 8, 2]
"""


def parse(*overrides: str, **sections: Any) -> RunConfig:
    """MINIMAL with whole sections replaced, then overrides as on a command line."""
    return parse_config(tomllib.loads(MINIMAL) | sections, "run.toml", overrides)


def error_of(*overrides: str, **sections: Any) -> str:
    with pytest.raises(UserError) as caught:
        parse(*overrides, **sections)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_defaults_keep_the_meaning_of_a_minimal_file() -> None:
    cfg = parse()
    assert (cfg.trainer.optimizer_name, cfg.trainer.learning_rate) == ("adamw", 1e-4)
    assert (cfg.net.type, cfg.net.shorten_factors, cfg.net.depth) == ("hourglass", (4,), (2, 8, 2))
    assert cfg.vqgan is None
    assert cfg.grid_shape == (28, 28)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: str(p.relative_to(ROOT)))
def test_shipped_files_load_and_survive_toml_and_json(path: Path) -> None:
    cfg = load_config(path)
    assert parse_config(tomllib.loads(dump_toml(cfg)), "again") == cfg
    assert parse_config(json.loads(json.dumps(cfg.to_dict())), "again") == cfg


@pytest.mark.parametrize(
    ("name", "depth", "dim", "vocab", "grid", "steps", "classes"),
    [
        ("ffhq256", (2, 10, 2), 1024, 1024, (16, 16), 50, 0),
        ("ffhq1024", (2, 12, 2), 2048, 8192, (32, 32), 100, 0),
        ("celeba256", (2, 12, 2), 1024, 1024, (16, 16), 50, 0),
        ("imagenet", (2, 16, 2), 2048, 1024, (16, 16), 50, 1000),
        ("mnist", (2, 8, 2), 1024, 256, (28, 28), 50, 10),
        ("fashionmnist", (2, 8, 2), 1024, 256, (28, 28), 50, 10),
        ("kmnist", (2, 8, 2), 1024, 256, (28, 28), 50, 10),
    ],
)
def test_shipped_files_hold_the_published_sizes(
    name: str,
    depth: tuple[int, ...],
    dim: int,
    vocab: int,
    grid: tuple[int, int],
    steps: int,
    classes: int,
) -> None:
    cfg = load_config(ROOT / "config" / f"{name}.toml")
    assert (cfg.net.depth, cfg.net.dim, cfg.data.vocab_size) == (depth, dim, vocab)
    assert (cfg.grid_shape, cfg.sampling.steps, cfg.net.num_classes) == (grid, steps, classes)


def test_other_spellings_are_stored_as_one() -> None:
    cfg = parse(
        "net.type=vanilla",
        "net.depth=12",
        "trainer.optimizer_name=rms",
        "vqgan.checkpoint=a.ckpt",
        "vqgan.latent_shape=[1, 14, 56]",
    )
    assert (cfg.net.type, cfg.net.depth) == ("transformer", (12,))
    assert cfg.net.shorten_factors == ()
    assert cfg.trainer.optimizer_name == "rmsprop"
    assert cfg.grid_shape == (14, 56)
    assert parse_config(cfg.to_dict(), "again") == cfg


def test_a_nested_valley_gets_a_factor_for_each_level() -> None:
    nested = parse("net.depth=[2, [3, 4, 3], 2]")
    assert nested.net.depth == (2, (3, 4, 3), 2)
    assert nested.net.shorten_factors == (4, 4)
    listed = parse("net.depth=[2, [3, [4], 3], 2]", "net.shorten_factor=[4, 49]")
    assert (listed.net.depth, listed.net.shorten_factors) == ((2, (3, 4, 3), 2), (4, 49))


def test_use_amp_false_is_the_older_spelling_of_fp32() -> None:
    assert parse().trainer.arithmetic == "auto"
    assert parse("trainer.use_amp=false").trainer.arithmetic == "fp32"
    assert parse("trainer.precision=bf16").trainer.arithmetic == "bf16"
    assert "'bf16' contradicts trainer.use_amp = false" in error_of(
        "trainer.use_amp=false", "trainer.precision=bf16"
    )


def test_weight_decay_defaults_to_the_optimisers_own() -> None:
    assert parse().trainer.weight_decay == 0.01
    assert parse("trainer.optimizer_name=sgd").trainer.weight_decay == 0
    assert (
        parse("trainer.optimizer_name=sgd", "trainer.weight_decay=0.1").trainer.weight_decay == 0.1
    )


def test_sampling_ramps_are_flat_without_an_end_and_reach_an_end_of_zero() -> None:
    flat = parse("sampling.temperature=0.9").sampling
    assert (flat.temperature_ramp, flat.proportion_ramp) == ((0.9, 0.9), (0.5, 0.5))
    assert parse("sampling.end_temperature=0").sampling.temperature_ramp == (1.0, 0.0)


def test_overrides_are_toml_values_or_bare_words() -> None:
    cfg = parse(
        "net.dim = 128",
        "trainer.exp_name=a b",
        'trainer.exp_dir="1"',
        "trainer.betas=[0, 0.5]",
        "trainer.lr_scheduler_name=constant_with_warmup",
        "trainer.lr_scheduler_kwargs.nb_warmup_steps=10",
        "wandb.project=x=y",
    )
    assert cfg.net.dim == 128
    assert (cfg.trainer.exp_name, cfg.trainer.exp_dir) == ("a b", Path("1"))
    assert cfg.trainer.betas == (0.0, 0.5)
    assert cfg.trainer.lr_scheduler_kwargs == {"nb_warmup_steps": 10}
    assert cfg.wandb.project == "x=y"


def test_an_override_changes_only_its_own_key() -> None:
    values = tomllib.loads(MINIMAL)
    parse_config(values, "run.toml", ["net.dim=128"])
    assert values == tomllib.loads(MINIMAL)


def test_flags_win_and_an_explicit_zero_is_a_value() -> None:
    cfg = parse("sampling.temperature=0.7", "sampling.min_steps=5")
    changed = update_config(
        cfg,
        {"sampling.temperature": 0.0, "sampling.min_steps": 0, "sampling.early_stop": False}
        | {"sampling.steps": None},
    )
    assert (changed.sampling.temperature, changed.sampling.min_steps) == (0.0, 0)
    assert changed.sampling.early_stop is False
    assert changed.sampling.steps == cfg.sampling.steps
    with pytest.raises(UserError, match=r"^--nb-samples: expected an integer at least 1, got 0"):
        update_config(cfg, {"sampling.nb_samples": 0})


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("net.dmi=3", "--set net.dmi: not a key of [net]; did you mean 'dim'?"),
        ("sampling.strategy=hal", "expected one of 'auto', 'random', 'confidence', 'halton'"),
        (
            "sampling.guidance_curve=cos",
            "expected one of 'linear', 'cosine', 'constant', got 'cos'",
        ),
        ("sampling.top_p=0", "expected a number above 0 and at most 1, got 0"),
        ("sampling.top_k=-1", "expected an integer at least 0, got -1"),
        (
            "sampling.guidance=2",
            "--set sampling.guidance: 2 needs a network that also learned",
        ),
        ("sampling.end_guidance=0", "train one with net.class_dropout = 0.1, or leave it at 1"),
        ("net.steps=3", "--set net.steps: not a key of [net]; it belongs to [sampling]"),
        ("trianer.x=1", "--set trianer.x: no such section or key; did you mean 'trainer'?"),
        ("net.dim=true", "--set net.dim: expected an integer at least 1, got true"),
        ("net.dim=64.0", "--set net.dim: expected an integer at least 1, got 64.0"),
        ("net.dim=0", "--set net.dim: expected an integer at least 1, got 0"),
        ("net.type=hourgalss", "got 'hourgalss'; did you mean 'hourglass'?"),
        ("net.use_rotary=1", "--set net.use_rotary: expected true or false, got 1"),
        ("net.ff_dropout=1", "--set net.ff_dropout: expected a number at least 0 and below 1"),
        ("net.depth=[2, 8]", "--set net.depth: expected [pre, valley, post]"),
        ("net.window=-4", "--set net.window: expected an integer at least 0 or a list of integers"),
        ("net.dims=[0, 64]", "--set net.dims: expected a list of integers, each at least 1"),
        ("net.shorten_factor=2", "--set net.shorten_factor: expected a perfect square"),
        ("trainer.learning_rate=0", "--set trainer.learning_rate: expected a number above 0"),
        ("trainer.betas=[0.9]", "--set trainer.betas: expected a list of 2 numbers"),
        ("trainer.exp_name=7", "--set trainer.exp_name: expected a string, got 7"),
        ("sampling.temperature=nan", "--set sampling.temperature: expected a number at least 0"),
        ("sampling.sample_proportion=1.1", "expected a number at least 0 and at most 1, got 1.1"),
        ("unroll_steps=0", "--set unroll_steps: expected an integer at least 1"),
        ("unroll_steps.x=0", "--set unroll_steps.x: unroll_steps is no section"),
        ("trainer=1", "--set trainer: expected a section [trainer], got 1"),
        ("data.train_root=", "--set data.train_root: expected a path, got ''"),
        ("vqgan.config=x", "run.toml: vqgan.checkpoint is missing; expected a path"),
        ("net.dim", "--set net.dim: expected key=value"),
    ],
)
def test_a_wrong_key_or_value_names_the_place_the_expectation_and_the_nearest(
    override: str, expected: str
) -> None:
    assert expected in error_of(override)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["data.sequence_length=783"], "783 tokens make no square grid"),
        (["data.latent_shape=[16, 16]"], "256 tokens but data.sequence_length is 784"),
        (
            ["data.latent_shape=[14, 56]", "vqgan.checkpoint=x", "vqgan.latent_shape=[28, 28]"],
            "contradicts vqgan.latent_shape = [28, 28]",
        ),
        (["data.root=x"], "--set data.root: contradicts data.train_root"),
        (["trainer.mini_batch_size=5"], "5 does not divide trainer.batch_size = 32"),
        (["net.nb_heads=7"], "7 does not divide net.dim = 64"),
        (["net.nb_heads=32"], "heads are 2 wide but net.use_rotary needs a multiple of 4"),
        (["net.conditional=true"], "net.num_classes is missing or 0 but net.conditional is true"),
        (["net.num_classes=10"], "10 classes but net.conditional is false"),
        (["net.depth=12"], "net.type = 'hourglass' expects [pre, valley, post]"),
        (["net.type=transformer"], "net.type = 'transformer' expects one integer"),
        (["net.shorten_factor=9"], "blocks of 3x3 tokens do not divide the 28x28 grid"),
        (["net.depth=[1, [1, [1, 1, 1], 1], 1]"], "blocks of 8x8 tokens do not divide"),
        (["net.shorten_factor=[4, 4]"], "2 factors for the 1 levels of net.depth"),
        (["net.window=[14]"], "net.window: 1 sides for the 2 grids of net.depth"),
        (["net.window=7"], "net.window: expected an even side, got 7"),
        (["net.window=12"], "net.window: windows of 12x12 tokens do not divide the 28x28 grid"),
        (["net.window=[0, 4]"], "net.window: windows of 4x4 tokens do not divide the 14x14 grid"),
        (
            ["net.window=2"],
            "net.window: a window of 2x2 tokens must hold at least 2x2 whole blocks",
        ),
        (["net.window=14", "net.shorten_factor=16"], "choose a multiple of 4 from 8 up"),
        (["net.dims=[64]"], "net.dims: 1 widths for the 2 grids of net.depth"),
        (["net.dims=[64, 32]"], "net.dims: the valley is 32 wide but net.dim is 64"),
        (["net.dims=[40, 64]"], "when net.dim = 64 has net.nb_heads = 4; choose a multiple of 16"),
        (["net.dims=[32, 64]", "net.resampling=average"], "net.dims: net.resampling = 'average'"),
        (["trainer.metric_names=['loss_3']"], "from 'loss_1' to 'loss_2', got 'loss_3'"),
        (["trainer.metric_best=['loss', 'up']"], "expected [metric, 'des'] when less is better"),
        (["trainer.lr_scheduler_name=cosine"], "the schedule 'cosine' needs nb_training_steps"),
        (
            ["trainer.lr_scheduler_kwargs={nb_warmup_step=1}"],
            "not a key of the schedule 'constant'; it takes none",
        ),
        (
            [
                "trainer.lr_scheduler_name=linear_with_warmup",
                "trainer.lr_scheduler_kwargs={nb_warmup_steps=5, nb_training_steps=5}",
            ],
            "nb_warmup_steps = 5 must be below nb_training_steps = 5",
        ),
    ],
)
def test_contradicting_keys_are_both_named(overrides: list[str], expected: str) -> None:
    assert expected in error_of(*overrides)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({}, "data.root is missing; expected root and split_sizes, or train_root and eval_root"),
        ({"root": "x"}, "data.split_sizes is missing; data.root needs it"),
        ({"eval_root": "x"}, "data.train_root is missing; data.eval_root needs it"),
        ({"root": "x", "split_sizes": [0.9, 0.2]}, "add up to more than 1"),
        ({"root": "x", "split_sizes": [9, -2]}, "two fractions or two counts above 0"),
    ],
)
def test_data_comes_in_exactly_one_complete_style(data: dict[str, Any], expected: str) -> None:
    assert expected in error_of(data={"vocab_size": 256, "sequence_length": 784} | data)


def test_fractions_stay_fractions_and_counts_stay_counts() -> None:
    base = {"vocab_size": 256, "sequence_length": 784, "root": "x"}
    assert parse(data=base | {"split_sizes": [0.9, 0.1]}).data.split_sizes == (0.9, 0.1)
    counts = parse(data=base | {"split_sizes": [9, 1]}).data.split_sizes
    assert counts == (9, 1) and all(type(count) is int for count in counts)


def test_a_missing_section_or_key_is_named_with_the_file() -> None:
    values = tomllib.loads(MINIMAL)
    del values["net"]["dim"]
    with pytest.raises(UserError, match=r"^a: net.dim is missing; expected an integer at least 1"):
        parse_config(values, "a")
    del values["net"]
    with pytest.raises(UserError, match=r"^a: net is missing; expected a section \[net\]"):
        parse_config(values, "a")


def test_unreadable_files_are_named_with_the_line(tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("unroll_steps = 2\n[trainer\n")
    with pytest.raises(UserError, match=r"broken.toml: not a valid TOML file: .*line 2, column 9"):
        load_config(broken)
    broken.write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(UserError, match=r"broken.toml: not a valid TOML file"):
        load_config(broken)
    with pytest.raises(UserError, match=r"none.toml: cannot read the run file: No such file"):
        load_config(tmp_path / "none.toml")
    with pytest.raises(UserError, match="cannot read the run file: Is a directory"):
        load_config(tmp_path)


def test_trainer_section_knows_every_attribute_of_ptpt() -> None:
    reference = pytest.importorskip("ptpt.trainer").TrainerConfig
    ours = set(TrainerConfig.__dataclass_fields__)
    assert set(reference.__annotations__) - {"optimizer"} <= ours
    assert [key.name for key in keys_of(TrainerConfig).values() if key.required] == ["batch_size"]
    for name in set(reference.__annotations__) & ours - {"batch_size", "mini_batch_size"}:
        default, theirs = getattr(parse().trainer, name), getattr(reference, name)
        assert plain_sequence(default) == plain_sequence(theirs), name


def plain_sequence(value: Any) -> Any:
    """ptpt mixes lists and tuples, and strings with paths."""
    return (
        tuple(value)
        if isinstance(value, list)
        else str(value)
        if isinstance(value, Path)
        else value
    )


@pytest.mark.parametrize("name", ScheduleName.__args__)
def test_schedules_take_what_ptpts_take(name: str) -> None:
    get_scheduler = pytest.importorskip("ptpt.scheduling").get_scheduler
    values = {
        "nb_warmup_steps": 2,
        "nb_training_steps": 8,
        "nb_cycles": 1,
        "lr_end": 1e-6,
        "power": 2,
    }
    required, optional = schedule_keys(name)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    for keys in (required, required | optional):
        get_scheduler(name, optimizer, **{key: values[key] for key in keys})
    for key in required:
        with pytest.raises(TypeError):
            get_scheduler(name, optimizer, **{k: values[k] for k in required - {key}})
    for key in values.keys() - required - optional:
        with pytest.raises(TypeError):
            get_scheduler(name, optimizer, **{k: values[k] for k in required | {key}})


def test_a_declared_key_is_in_the_run_file_the_flags_and_the_docs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @dataclass(frozen=True, kw_only=True, config=STRICT)
    class Sparkling(SamplingConfig):
        sparkle: float = Field(default=0.5, ge=0, le=1, description="share of glitter")

    monkeypatch.setitem(run_file.SECTIONS, "sampling", Sparkling)
    assert parse().sampling.sparkle == 0.5  # type: ignore[attr-defined]
    assert parse("sampling.sparkle=1").to_dict()["sampling"]["sparkle"] == 1.0
    assert "--set sampling.sparkle: expected a number at least 0 and at most 1, got 2" in error_of(
        "sampling.sparkle=2"
    )
    assert "did you mean 'sparkle'" in error_of("sampling.sparkel=1")

    parser = argparse.ArgumentParser()
    add_flags(parser, Sparkling)
    assert "share of glitter (at least 0 and at most 1) [0.5]" in " ".join(
        parser.format_help().split()
    )
    flags = values_of(parser.parse_args(["--sparkle", "0.25"]), Sparkling)
    assert parse_config(tomllib.loads(MINIMAL), "x", flags=flags).sampling.sparkle == 0.25  # type: ignore[attr-defined]

    row = "| `sparkle` | a number at least 0 and at most 1 | `0.5` | share of glitter |"
    assert row in section_table(Sparkling)


@pytest.mark.parametrize("section", [*run_file.SECTIONS.values(), TrainingConfig])
def test_every_key_has_a_description(section: type) -> None:
    assert all(key.description for key in keys_of(section).values())


def test_the_page_of_settings_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run make docs"
