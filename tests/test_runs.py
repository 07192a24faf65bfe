"""What has to agree before a run starts, and where it is kept."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from accelerate import Accelerator
from conftest import contents, write_tiny_data

from sundae.common.errors import UserError
from sundae.common.locking import Lock
from sundae.config.run_file import RunConfig
from sundae.prior.checkpoint import Checkpoint, CheckpointInfo
from sundae.prior.compatibility import check_same_classes, check_same_codec, check_same_network
from sundae.training.prior import open_datasets
from sundae.training.run_folder import choose_run_folder, run_folder

Config = Callable[..., RunConfig]


def checkpoint_of(cfg: RunConfig, run: Path, step: int = 4) -> Checkpoint:
    """A checkpoint of which only the readable part exists."""
    folder = run / "checkpoints" / f"step-{step:07d}"
    folder.mkdir(parents=True)
    (folder / "checkpoint.json").touch()
    info = CheckpointInfo(step, cfg.to_dict(), codec="pixels-5", classes=["zero", "one", "two"])
    return Checkpoint(folder, info)


def test_two_folders_give_training_and_held_out_rows(config: Config) -> None:
    train, held_out = open_datasets(config(), "pixels-5")
    assert (len(train), len(held_out)) == (24, 12)
    assert train[4]["classes"].item() == 1
    assert set(train[4]["tokens"].tolist()) == {1, 2}  # as bright as its class


def test_one_folder_is_split(config: Config, tiny_data: Path) -> None:
    changes = {"data.train_root": None, "data.eval_root": None}
    changes |= {"data.root": str(tiny_data / "train"), "data.split_sizes": [16, 8]}
    train, held_out = open_datasets(config(changes), "pixels-5")
    assert (len(train), len(held_out)) == (16, 8)
    assert set(train.rows) | set(held_out.rows) == set(range(24))


@pytest.mark.parametrize(
    ("changes", "codec", "complaint"),
    [
        ({"data.train_root": "nowhere"}, "pixels-5", "nowhere does not exist"),
        ({"data.vocab_size": 6}, "pixels-6", r"codebook of 5, data\.vocab_size is 6"),
        ({"data.sequence_length": 64}, "pixels-5", r"shape \[4, 4\], the run file says \[8, 8\]"),
        ({"net.num_classes": 4}, "pixels-5", r"has 3 classes, net\.num_classes is 4"),
        ({}, "vqgan-1", "encoded by codec pixels-5, .* codec vqgan-1"),
    ],
)
def test_data_of_another_run_is_refused(
    config: Config, changes: dict[str, Any], codec: str, complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        open_datasets(config(changes), codec)


def test_a_class_without_images_is_refused_where_classes_are_learned(
    config: Config, tiny_data: Path, tmp_path: Path
) -> None:
    write_tiny_data(tmp_path / "two", 24, classes=2)
    changes = {"data.train_root": str(tmp_path / "two")}
    with pytest.raises(UserError, match="two: class 'two' has no images to train on"):
        open_datasets(config(changes), "pixels-5")
    unconditional = {"net.conditional": False, "net.num_classes": 0}
    train, _ = open_datasets(config(changes | unconditional), "pixels-5")
    assert len(train) == 24
    # The held-out side may lack one: nothing is learned from it.
    changes = {"data.eval_root": str(tmp_path / "two")}
    assert len(open_datasets(config(changes), "pixels-5")[1]) == 24


def test_a_split_that_leaves_a_class_without_training_rows_is_refused(
    config: Config, tmp_path: Path
) -> None:
    root = write_tiny_data(tmp_path / "one", 24)
    labels = np.zeros(24, dtype=int)
    text = (root / "latents.json").read_text()
    labels[23] = 2  # counts are taken from the first images, so this one is left out
    labels[1::2] = np.where(labels[1::2] == 0, 1, labels[1::2])
    lines = [
        f'  "labels": {labels.tolist()},' if '"labels"' in line else line
        for line in text.splitlines()
    ]
    (root / "latents.json").write_text("\n".join(lines))
    changes = {"data.train_root": None, "data.eval_root": None}
    changes |= {"data.root": str(root), "data.split_sizes": [15, 5]}
    with pytest.raises(UserError, match="class 'two' has no images"):
        open_datasets(config(changes), "pixels-5")


def test_classes_of_two_folders_have_to_be_the_same(config: Config, tmp_path: Path) -> None:
    root = write_tiny_data(tmp_path / "renamed", 12)
    text = (root / "latents.json").read_text()
    (root / "latents.json").write_text(text.replace('"two"', '"deux"'))
    with pytest.raises(UserError, match="renamed have different classes"):
        open_datasets(config({"data.eval_root": str(root)}), "pixels-5")


def test_a_run_gets_a_folder_of_its_own_for_the_run_file(config: Config, tmp_path: Path) -> None:
    cfg, accelerator = config(), Accelerator(cpu=True)
    with (
        run_folder(cfg.trainer, None, None, accelerator) as run,
        run_folder(cfg.trainer, None, None, accelerator) as other,
    ):  # in the same second
        assert run is not None and other is not None and run != other
        assert {run.parent, other.parent} == {tmp_path / "exp"}
        assert run.name.startswith("tiny_20")
    outside = config({"trainer.exp_name": "../a/b"})
    with run_folder(outside.trainer, None, None, accelerator) as safe:
        assert safe is not None and safe.parent == tmp_path / "exp"
        assert safe.name.startswith("_a_b_20")
    with run_folder(cfg.trainer, None, None, accelerator) as run:
        assert run is not None
        (run / "config.toml").touch()
    assert list(contents(run)) == ["config.toml"]
    assert not other.exists()  # nothing came of it
    with run_folder(
        config({"trainer.save_outputs": False}).trainer, None, None, accelerator
    ) as none:
        assert none is None


def test_a_run_folder_is_for_one_process_at_a_time(config: Config, tmp_path: Path) -> None:
    cfg, accelerator = config(), Accelerator(cpu=True)
    checkpoint = checkpoint_of(cfg, tmp_path / "run")
    for given, resumed in ((tmp_path / "new", None), (None, checkpoint)):
        with (
            run_folder(cfg.trainer, given, resumed, accelerator) as run,
            pytest.raises(UserError, match=f"{run} is being written by this process"),
            run_folder(cfg.trainer, given, resumed, accelerator),
        ):
            pass


def test_where_the_main_process_is_refused_the_others_end_without_a_word(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(
        "sundae.training.run_folder.broadcast_from_main", lambda *mine: [None, True]
    )
    other = SimpleNamespace(is_main_process=False)
    with pytest.raises(SystemExit, match="2"), run_folder(config().trainer, tmp_path, None, other):  # type: ignore[arg-type]
        pass
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(
        "sundae.training.run_folder.broadcast_from_main", lambda *mine: [tmp_path / "x", False]
    )
    with run_folder(config().trainer, None, None, other) as run:  # type: ignore[arg-type]
        assert run == tmp_path / "x" and not run.exists()


def test_a_checkpoint_of_another_name_is_not_gone_on_from_in_place(
    config: Config, tmp_path: Path
) -> None:
    checkpoint = checkpoint_of(config(), tmp_path / "run")
    renamed = Checkpoint(
        checkpoint.folder.rename(checkpoint.folder.with_name("mine")), checkpoint.info
    )
    with pytest.raises(UserError, match="mine is not named as a checkpoint of a run is"):
        choose_run_folder(None, renamed)


def test_a_run_that_another_process_ended_meanwhile_is_not_overwritten(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looked free at first, and nobody holds its lock any more."""
    entered = Lock.__enter__

    def late(self: Lock) -> Lock:
        checkpoint_of(config(), tmp_path / "run")
        return entered(self)

    monkeypatch.setattr(Lock, "__enter__", late)
    with (
        pytest.raises(UserError, match="holds a run already"),
        run_folder(config().trainer, tmp_path / "run", None, Accelerator(cpu=True)),
    ):
        pass


def test_a_run_goes_on_where_it_is_and_no_other_run_is_overwritten(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = checkpoint_of(config(), tmp_path / "run")
    checkpoint_of(config(), tmp_path / "other")
    assert choose_run_folder(None, None) is None
    assert choose_run_folder(tmp_path / "here", None) == tmp_path / "here"
    assert choose_run_folder(None, checkpoint) == tmp_path / "run"
    assert choose_run_folder(tmp_path / "new", checkpoint) == tmp_path / "new"
    monkeypatch.chdir(tmp_path)
    assert choose_run_folder(Path("run"), checkpoint) == tmp_path / "run"
    for resumed in (None, checkpoint):
        with pytest.raises(UserError, match="other holds a run already; go on with --resume"):
            choose_run_folder(tmp_path / "other", resumed)


def test_a_run_that_has_gone_on_is_not_overwritten_from_an_older_checkpoint(
    config: Config, tmp_path: Path
) -> None:
    older = checkpoint_of(config(), tmp_path / "run", step=4)
    checkpoint_of(config(), tmp_path / "run", step=8)
    with pytest.raises(UserError, match=r"gone on to step-0000008: .* --run-dir .* step-0000004"):
        choose_run_folder(None, older)
    assert choose_run_folder(tmp_path / "branch", older) == tmp_path / "branch"


def test_the_run_of_a_checkpoint(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = checkpoint_of(config(), tmp_path / "run")
    assert choose_run_folder(None, checkpoint) == tmp_path / "run"
    monkeypatch.chdir(checkpoint.folder)
    assert choose_run_folder(None, Checkpoint(Path(), checkpoint.info)) == tmp_path / "run"
    moved = Checkpoint(tmp_path / "copy", checkpoint.info)
    with pytest.raises(UserError, match="choose a --run-dir"):
        choose_run_folder(None, moved)


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("data.vocab_size", 7, r"data\.vocab_size = 5, the run file says 7"),
        ("data.latent_shape", [2, 8], r"latent_shape = \(4, 4\), the run file says \(2, 8\)"),
        ("net.dim", 16, r"net\.dim = 8, the run file says 16"),
        ("net.depth", [1, 2, 1], r"net\.depth = \(1, 1, 1\), the run file says \(1, 2, 1\)"),
        ("net.use_rotary", False, r"net\.use_rotary = True, the run file says False"),
    ],
)
def test_a_checkpoint_of_another_network_is_named_by_the_key(
    config: Config, tmp_path: Path, key: str, value: Any, shown: str
) -> None:
    checkpoint = checkpoint_of(config(), tmp_path)
    with pytest.raises(UserError, match=shown):
        check_same_network(config({key: value}), checkpoint)


def test_what_does_not_change_the_network_may_differ(config: Config, tmp_path: Path) -> None:
    changes = {"net.ff_dropout": 0.5, "trainer.learning_rate": 1.0, "sampling.steps": 9}
    check_same_network(config(changes), checkpoint_of(config(), tmp_path))


def test_another_codec_or_other_classes_are_refused(config: Config, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(config(), tmp_path)
    check_same_codec("pixels-5", checkpoint)
    check_same_classes(("zero", "one", "two"), checkpoint)
    with pytest.raises(UserError, match=r"codec pixels-5, vqgan\.checkpoint is codec other"):
        check_same_codec("other", checkpoint)
    with pytest.raises(UserError, match="classes zero, one, two, the data has one, two, zero"):
        check_same_classes(["one", "two", "zero"], checkpoint)
