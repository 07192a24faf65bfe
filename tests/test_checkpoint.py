"""Checkpoints: whole or absent, found again, and refused in one line when they are damaged."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import poison
from safetensors.torch import load_file, save_file

import sundae.prior.checkpoint as module
from sundae.common.errors import UserError
from sundae.config.run_file import RunConfig
from sundae.prior.checkpoint import CheckpointInfo, load_into, open_checkpoint, save_checkpoint
from sundae.prior.network import build_network
from sundae.prior.run import list_checkpoints, mark_best, prune_checkpoints

Save = Callable[..., Path]


@pytest.fixture
def save(config: Callable[..., RunConfig], tmp_path: Path) -> Save:
    """save(step) writes a checkpoint of an untrained network to tmp_path/run."""
    cfg = config()
    net, average = build_network(cfg), build_network(cfg)

    def write(step: int, **changes: Any) -> Path:
        info = CheckpointInfo(
            step=step, config=cfg.to_dict(), codec="pixels-5", classes=["a", "b", "c"], seed=7
        )
        parts = {"net": net, "ema": average, "training": {"optimizer": {}, "progress": {}}}
        return save_checkpoint(tmp_path / "run", info, **(parts | changes))

    return write


def test_everything_saved_comes_back(save: Save, config: Callable[..., RunConfig]) -> None:
    torch.manual_seed(0)
    net, average = build_network(config()), build_network(config())
    folder = save(12, net=net, ema=average, training={"optimizer": {"a": 1}, "progress": {}})
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoint.json",
        "ema.safetensors",
        "model.safetensors",
        "training.pt",
    ]
    checkpoint = open_checkpoint(folder)
    assert checkpoint.config == config()
    info = checkpoint.info
    assert (info.step, info.seed, info.codec, info.classes) == (12, 7, "pixels-5", ["a", "b", "c"])
    weights, averaged, state = checkpoint.load_training()
    assert averaged is not None and state["optimizer"] == {"a": 1}
    for name, value in net.state_dict().items():
        assert torch.equal(value, weights[name])
        assert torch.equal(average.state_dict()[name], averaged[name])


@pytest.mark.parametrize("averaged", [True, False])
def test_the_network_rebuilt_computes_what_the_saved_one_did(
    save: Save, config: Callable[..., RunConfig], averaged: bool
) -> None:
    net, average = build_network(config()).eval(), build_network(config()).eval()
    for network in (net, average):  # a fresh network's logits are zero
        torch.nn.init.normal_(network.to_logits.weight)
    rebuilt = open_checkpoint(save(1, net=net, ema=average)).load_network(ema=averaged)
    tokens, classes = torch.randint(5, (2, 16)), torch.tensor([0, 2])
    expected = (average if averaged else net)(tokens, classes)
    assert not rebuilt.training
    assert torch.equal(rebuilt(tokens, classes), expected)
    other = (net if averaged else average)(tokens, classes)
    assert not torch.allclose(rebuilt(tokens, classes), other)


def test_without_an_average_the_raw_weights_are_used(
    save: Save, config: Callable[..., RunConfig]
) -> None:
    net = build_network(config())
    folder = save(1, net=net, ema=None)
    assert not (folder / "ema.safetensors").exists()
    loaded = open_checkpoint(folder).load_network().state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in net.state_dict().items())


def test_weights_are_as_readable_as_the_rest(save: Save) -> None:
    modes = {path.stat().st_mode & 0o777 for path in save(1).iterdir()}
    assert len(modes) == 1


def test_an_interrupted_write_leaves_nothing(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    run = save(1).parents[1]

    def write_half(tensors: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "save_file", write_half)
    with pytest.raises(KeyboardInterrupt):
        save(2)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-0000001"]


def test_a_full_disk_is_one_line_and_leaves_what_was_there(
    save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(1)
    before = (folder / "training.pt").read_bytes()

    def refuse(state: object, path: Path) -> None:
        raise RuntimeError("[enforce fail] unexpected pos 64 vs 0\nmore")

    monkeypatch.setattr(torch, "save", refuse)
    with pytest.raises(UserError, match=r"step-0000001 \(.*unexpected pos 64 vs 0\); is the disk"):
        save(1)
    assert (folder / "training.pt").read_bytes() == before
    assert [path.name for path in folder.parent.iterdir()] == ["step-0000001"]


def test_saving_a_step_again_replaces_it(save: Save) -> None:
    save(3, training={"first": torch.zeros(1)})
    folder = save(3, training={"second": torch.ones(1)}, ema=None)
    assert open_checkpoint(folder).load_training()[2] == {"second": torch.ones(1)}
    assert not (folder / "ema.safetensors").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["step-0000003"]


def test_a_run_gives_its_best_checkpoint_to_sample_and_its_last_to_go_on(save: Save) -> None:
    run = save(1).parents[1]
    folders = {step: save(step) for step in (2, 3)}
    assert open_checkpoint(run).info.step == 3
    mark_best(run, folders[2], "loss", 0.5)
    assert json.loads((run / "best.json").read_text()) == {
        "checkpoint": "step-0000002",
        "metric": "loss",
        "value": 0.5,
    }
    assert open_checkpoint(run).info.step == 2
    assert open_checkpoint(run, prefer_best=False).info.step == 3
    assert open_checkpoint(folders[3] / "model.safetensors").info.step == 3
    shutil.rmtree(folders[2])
    assert open_checkpoint(run).info.step == 3


@pytest.mark.parametrize("absolute", [False, True])
def test_the_best_checkpoint_is_one_of_the_run(save: Save, tmp_path: Path, absolute: bool) -> None:
    run = save(1).parents[1]
    elsewhere = shutil.copytree(save(2), tmp_path / "elsewhere")
    best = str(elsewhere) if absolute else "../../elsewhere"
    assert (run / "checkpoints" / best / "checkpoint.json").exists()
    (run / "best.json").write_text(json.dumps({"checkpoint": best}))
    with pytest.raises(UserError, match=r"best\.json: checkpoint is .*, expected a name"):
        open_checkpoint(run)
    assert open_checkpoint(run, prefer_best=False).info.step == 2


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"checkpoint": null}', '{"checkpoint": ["step-0000001"]}',
             '{"checkpoint": ".."}', '{"checkpoint": "step-0000001/"}', '{"checkpoint": "step-1x"}']
)  # fmt: skip
def test_a_damaged_best_json_is_named_with_the_way_out(save: Save, text: str) -> None:
    run = save(1).parents[1]
    (run / "best.json").write_text(text)
    for act in (lambda: open_checkpoint(run), lambda: prune_checkpoints(run, keep=1)):
        with pytest.raises(UserError, match=r"best\.json.*; delete it, and the last"):
            act()
    (run / "best.json").unlink()
    assert open_checkpoint(run).info.step == 1


def test_only_folders_that_are_named_as_checkpoints_count_as_such(save: Save) -> None:
    run = save(1).parents[1]
    shutil.copytree(run / "checkpoints/step-0000001", run / "checkpoints/step-0000001-copy")
    assert [folder.name for folder in list_checkpoints(run)] == ["step-0000001"]


@pytest.mark.parametrize("named", ["checkpoint", "run"])
def test_a_checkpoint_whose_replacing_was_killed_is_found_again(save: Save, named: str) -> None:
    folder = save(1)
    aside = folder.with_name(".step-0000001.123-0123abcd.replaced")
    folder.rename(aside)
    run = folder.parents[1]
    assert open_checkpoint(folder if named == "checkpoint" else run).folder == folder
    shutil.copytree(folder, aside)  # killed a moment later, it is left over
    save(2)
    prune_checkpoints(run, keep=0)
    names = sorted(path.name for path in folder.parent.iterdir())
    assert names == ["step-0000001", "step-0000002"]


def test_the_last_checkpoint_is_last_beyond_seven_digits(save: Save) -> None:
    run = save(9_999_999).parents[1]
    save(10_000_000)
    assert open_checkpoint(run).info.step == 10_000_000
    prune_checkpoints(run, keep=1)
    assert [folder.name for folder in list_checkpoints(run)] == ["step-10000000"]


def test_pruning_spares_the_last_and_the_best_and_clears_leftovers(save: Save) -> None:
    folders = [save(step) for step in range(1, 6)]
    run = folders[0].parents[1]
    mark_best(run, folders[1], "loss", 0.5)
    leftover = run / "checkpoints" / ".step-0000009.partial"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")
    assert folders == list_checkpoints(run)
    prune_checkpoints(run, keep=0)
    assert folders == list_checkpoints(run)
    assert not leftover.exists()
    prune_checkpoints(run, keep=2)
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == ["step-0000002", "step-0000004", "step-0000005"]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"format": 99}, "not a checkpoint of format 1"),
        ({"unheard_of": 1}, "damaged .*unheard_of"),
        ({"step": "x"}, r"damaged \(step is 'x'\)"),
        ({"config": None}, r"damaged \(config is None\)"),
        ({"classes": 5}, r"damaged \(classes is 5\)"),
        ({"config": {}}, "unroll_steps is missing"),
    ],
)
def test_a_damaged_description_names_file_and_key(
    save: Save, change: dict[str, Any], complaint: str
) -> None:
    path = save(1) / "checkpoint.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=rf"checkpoint\.json: .*{complaint}"):
        open_checkpoint(path.parent)


@pytest.mark.parametrize("name", ["checkpoint.json", "model.safetensors", "training.pt"])
def test_a_truncated_file_is_named(save: Save, name: str) -> None:
    folder = save(1)
    truncate(folder / name)
    with pytest.raises(UserError, match=rf"{name} cannot be read"):
        open_checkpoint(folder).load_training()


def test_a_checkpoint_without_training_state_can_be_sampled_from_only(save: Save) -> None:
    folder = save(1)
    (folder / "training.pt").unlink()
    open_checkpoint(folder).load_network()
    with pytest.raises(UserError, match="can be sampled from, not trained on"):
        open_checkpoint(folder).load_training()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("file", ["ema.safetensors", "model.safetensors"])
@pytest.mark.parametrize("ema", [True, False])
def test_a_checkpoint_with_weights_that_are_not_finite_is_not_sampled_from(
    save: Save, ema: bool, file: str, value: float
) -> None:
    """Whichever weights are wanted: what spoilt the others has not left these as they were."""
    folder = save(1)
    name = poison(folder / file, value)
    with pytest.raises(UserError) as refusal:
        open_checkpoint(folder).load_network(ema=ema)
    assert str(refusal.value) == (
        f"{folder / file}: {name} holds NaN or infinite values; use another checkpoint"
    )


@pytest.mark.parametrize("file", ["model.safetensors", "ema.safetensors", "training.pt"])
def test_what_is_not_finite_is_not_trained_on(save: Save, file: str) -> None:
    folder = save(1)
    name = poison(folder / file)
    with pytest.raises(UserError) as refusal:
        open_checkpoint(folder).load_training()
    assert str(refusal.value) == (
        f"{folder / file}: {name} holds NaN or infinite values; the run has no good checkpoint: "
        "lower trainer.learning_rate, set trainer.clip_grad or add --no-amp, and train from the "
        "start"
    )


def test_the_last_checkpoint_that_is_good_for_the_purpose_is_named(save: Save) -> None:
    """A moment that has exploded does not matter to samples."""
    one, two, three, four, five, six = (save(step) for step in range(1, 7))
    run = one.parents[1]
    poison(three / "model.safetensors")
    poison(four / "training.pt")
    poison(five / "ema.safetensors")
    truncate(six / "ema.safetensors")
    truncate(six / "model.safetensors")

    def refusal(load: Callable[..., Any], **options: Any) -> str:
        with pytest.raises(UserError) as refused:
            load(**options)
        return str(refused.value)

    sampling = f"; the last good checkpoint of the run is {four} (--resume {four})"
    assert refusal(open_checkpoint(five).load_network).endswith(sampling)
    assert refusal(open_checkpoint(three).load_network, ema=False).endswith(sampling)
    training = refusal(open_checkpoint(four).load_training)
    assert f"; the last good checkpoint is {two}: lower trainer.learning_rate" in training
    assert training.endswith(f"go on with --resume {two} --run-dir NEW")
    last = save(7)
    in_place = refusal(open_checkpoint(four).load_training)
    assert f"is {last}:" in in_place and in_place.endswith(f"go on with --resume {run}")


def test_a_checkpoint_outside_of_its_run_has_no_others(save: Save, tmp_path: Path) -> None:
    moved = shutil.copytree(save(1), tmp_path / "moved")
    poison(moved / "ema.safetensors")
    for load in (open_checkpoint(moved).load_network, open_checkpoint(moved).load_training):
        with pytest.raises(UserError, match="infinite values; use another checkpoint$"):
            load()


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('code from a file ran')",)


def test_no_code_in_a_checkpoint_is_run(save: Save) -> None:
    folder = save(1)
    torch.save({"optimizer": Bomb()}, folder / "training.pt")
    with pytest.raises(UserError, match=r"training\.pt cannot be read"):
        open_checkpoint(folder).load_training()


def test_weights_of_another_network_are_refused(
    save: Save, config: Callable[..., RunConfig]
) -> None:
    weights = load_file(save(1) / "model.safetensors")
    with pytest.raises(UserError, match="do not fit .*size mismatch"):
        load_into(build_network(config({"net.dim": 16})), weights, Path("x"))
    with pytest.raises(UserError, match="do not fit .*Missing key"):
        load_into(build_network(config({"net.depth": [2, 1, 1]})), weights, Path("x"))


def test_weights_that_lack_one_tensor_are_refused(save: Save) -> None:
    path = save(1) / "ema.safetensors"
    weights = load_file(path)
    weights.pop(next(iter(weights)))
    save_file(weights, path)
    with pytest.raises(UserError, match="Missing key"):
        open_checkpoint(path.parent).load_network()


def test_places_without_a_checkpoint_say_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere does not exist"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"holds no checkpoint; expected checkpoint\.json"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.toml").touch()
    with pytest.raises(UserError, match="stopped before its first checkpoint; .*--cfg-path"):
        open_checkpoint(tmp_path)
