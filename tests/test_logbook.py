"""What a run writes down: a CSV that a resumed run continues, curves, and wandb when asked."""

import csv
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from sundae.common.errors import UserError
from sundae.common.images import load_image, to_tensor
from sundae.config.sections import WandbConfig
from sundae.training.logbook import Logbook, start_wandb


def read_csv(run: Path) -> list[dict[str, str]]:
    with (run / "curves.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_are_kept_with_the_union_of_their_columns(tmp_path: Path) -> None:
    logbook = Logbook(tmp_path)
    logbook.log({"step": 2.0, "train/loss": 1.5})
    logbook.log({"step": 4.0, "train/loss": 1.25, "eval/loss": 1 / 3})
    assert read_csv(tmp_path) == [
        {"step": "2.0", "train/loss": "1.5", "eval/loss": ""},
        {"step": "4.0", "train/loss": "1.25", "eval/loss": str(1 / 3)},
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.csv", "curves.png"]


def test_curves_have_a_panel_for_a_quantity_and_its_steps_and_another_for_its_rates(
    tmp_path: Path,
) -> None:
    one, two = Logbook(tmp_path / "one"), Logbook(tmp_path / "two")
    for logbook, extra in ((one, "eval/loss_1"), (two, "eval/loss_rate_0.0-0.2")):
        assert logbook.run is not None
        logbook.run.mkdir()
        logbook.log({"step": 1.0, "train/loss": 1.0, extra: 0.5})
    widths = [Image.open(tmp_path / name / "curves.png").width for name in ("one", "two")]
    assert widths == [600, 1200]


def test_rewind_forgets_what_came_after_the_checkpoint_and_goes_on(tmp_path: Path) -> None:
    first = Logbook(tmp_path)
    for step in (2, 4, 6):
        first.log({"step": float(step), "train/loss": 1 / step})
    resumed = Logbook(tmp_path)
    resumed.rewind(4)
    resumed.log({"step": 5.0, "train/loss": 0.0})
    assert [(row["step"], row["train/loss"]) for row in read_csv(tmp_path)] == [
        ("2.0", "0.5"),
        ("4.0", "0.25"),
        ("5.0", "0.0"),
    ]


def test_a_run_that_had_fewer_columns_goes_on_with_more(tmp_path: Path) -> None:
    (tmp_path / "curves.csv").write_text("step,eval/loss,lr\n2.0,1.5,0.1\n")
    resumed = Logbook(tmp_path)
    resumed.rewind(2)
    resumed.log({"step": 4.0, "eval/loss": 1.0, "eval/loss_rate_0.8-1.0": 2.0, "lr": 0.1})
    assert read_csv(tmp_path) == [
        {"step": "2.0", "eval/loss": "1.5", "lr": "0.1", "eval/loss_rate_0.8-1.0": ""},
        {"step": "4.0", "eval/loss": "1.0", "lr": "0.1", "eval/loss_rate_0.8-1.0": "2.0"},
    ]


@pytest.mark.parametrize("text", ["step,train/loss\n1,x\n", "a,b\n1,2\n", "step\n1,2\n"])
def test_a_damaged_csv_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "curves.csv").write_text(text)
    with pytest.raises(UserError, match=r"curves\.csv is damaged .* delete it"):
        Logbook(tmp_path).rewind(9)


def test_without_a_run_folder_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    logbook = Logbook(None)
    logbook.rewind(3)
    logbook.log({"step": 1.0, "train/loss": 1.0})
    logbook.close()
    assert list(tmp_path.iterdir()) == []


def test_images_are_saved_by_their_name_and_step(tmp_path: Path) -> None:
    image = torch.rand(3, 4, 5)
    for run in (tmp_path, None):
        Logbook(run).log_image("samples", image, step=30)
    assert [path.name for path in tmp_path.rglob("*.png")] == ["step-0000030.png"]
    saved = to_tensor(load_image(tmp_path / "samples" / "step-0000030.png"))
    torch.testing.assert_close(saved, image, rtol=0, atol=1 / 255)


class FakeWandb:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.begun: dict[str, Any] = {}
        self.logged: list[tuple[dict[str, float], int]] = []
        self.finished = False
        self.errors = SimpleNamespace(Error=ConnectionError)

    def init(self, **settings: Any) -> "FakeWandb":
        self.begun = settings
        if settings["project"] == "forbidden":
            raise ConnectionError("no such project")
        return self

    def log(self, row: dict[str, float], step: int) -> None:
        self.logged.append((row, step))

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake: Any = FakeWandb()
    fake.__spec__ = SimpleNamespace()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_wandb_gets_every_row_and_is_finished(wandb: FakeWandb) -> None:
    logbook = Logbook(None, wandb)
    logbook.log({"step": 3.0, "train/loss": 1.0})
    logbook.close()
    assert wandb.logged == [({"step": 3.0, "train/loss": 1.0}, 3)]
    assert wandb.finished


def test_wandb_takes_its_run_up_again_under_the_same_id(wandb: FakeWandb, tmp_path: Path) -> None:
    for folder in ("run 1", "another/run 1"):
        (tmp_path / folder).mkdir(parents=True)
    cfg = WandbConfig(project="faces", entity="us", mode="offline")
    start_wandb(cfg, tmp_path / "run 1", {"a": 1})
    begun = wandb.begun
    assert (begun["resume"], begun["name"]) == ("allow", "run 1")
    assert (begun["project"], begun["entity"], begun["mode"]) == ("faces", "us", "offline")
    assert begun["config"] == {"a": 1}
    first = begun["id"]
    start_wandb(cfg, tmp_path / "run 1", {})
    assert wandb.begun["id"] == first
    start_wandb(cfg, tmp_path / "another" / "run 1", {})  # the same name is not the same run
    assert wandb.begun["id"] != first


def test_the_run_in_the_current_folder_has_a_name_for_wandb(
    wandb: FakeWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path / "digits")
    start_wandb(WandbConfig(), Path(), {})
    assert wandb.begun["name"] == "digits"


def test_wandbs_own_environment_variable_is_not_overruled(wandb: FakeWandb, tmp_path: Path) -> None:
    start_wandb(WandbConfig(), tmp_path, {})
    assert wandb.begun["mode"] is None


def test_wandb_that_refuses_or_is_missing_is_one_line(
    wandb: FakeWandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="no such project; log in"):
        start_wandb(WandbConfig(project="forbidden"), tmp_path, {})
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install -r requirements-wandb.txt"):
        start_wandb(WandbConfig(), tmp_path, {})
