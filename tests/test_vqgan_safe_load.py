"""No file runs code, and every kind of wrong file gets one line."""

import argparse
import os
import pickle
import sys
import types
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from sundae.codec.vqgan import load_vqgan
from sundae.codec.vqgan.configs import read_config
from sundae.codec.vqgan.safe_load import read_tensors
from sundae.common.errors import UserError

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3)}


class Evil:
    """Unpickling it runs a shell command."""

    def __init__(self, trace: Path) -> None:
        self.command = f"touch {trace}"

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("where", ["beside", "inside"])
def test_evil_pickle_leaves_no_trace_and_is_named(zipped: bool, where: str, tmp_path: Path) -> None:
    trace, path = tmp_path / "trace", tmp_path / "evil.ckpt"
    evil = {"weights": Evil(trace)} if where == "inside" else Evil(trace)
    torch.save({"state_dict": WEIGHTS, "x": evil}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"imports os\.system") as caught:
        load_vqgan(path)
    assert "\n" not in str(caught.value)
    assert not trace.exists()


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_evil_plain_pickle_leaves_no_trace(protocol: int, tmp_path: Path) -> None:
    trace, path = tmp_path / "trace", tmp_path / "evil.pt"
    path.write_bytes(pickle.dumps(Evil(trace), protocol=protocol))
    with pytest.raises(UserError):
        read_tensors(path)
    assert not trace.exists()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_whole_modules_are_refused_with_the_remedy(zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(torch.nn.Linear(2, 2), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"torch\.nn\.modules.*save its state_dict\(\) instead"):
        read_tensors(path)


@pytest.mark.filterwarnings("ignore")
def test_torchscript_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "script.pt"
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), path)
    with pytest.raises(UserError, match="TorchScript"):
        read_tensors(path)


def trainer_objects(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Objects as Lightning and OmegaConf leave them, from packages that are then gone."""

    def fake(module: str, name: str, *bases: type) -> Any:
        made = type(name, bases, {"__module__": module})
        package = types.ModuleType(module)
        setattr(package, name, made)
        for depth in range(module.count(".") + 1):
            parent = module.rsplit(".", depth)[0]
            monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
        monkeypatch.setitem(sys.modules, module, package)
        return made

    attributes = fake("pytorch_lightning.utilities.parsing", "AttributeDict", dict)(lr=1e-4)
    callback = fake("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
    options = fake("omegaconf.listconfig", "ListConfig")()
    options.__dict__.update(_content=[1, 2], _parent=None)
    return {
        "state_dict": OrderedDict(WEIGHTS),
        "hyper_parameters": attributes,
        "callbacks": {callback: {"best_model_score": torch.tensor(0.5), "dirpath": "logs"}},
        "options": options,
        "counts": defaultdict(list, {"a": [1]}),
        "types": [dict, int],
        "score": np.float64(0.25),
        "args": argparse.Namespace(lr=1),
        "where": Path("logs"),
    }


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_what_trainers_leave_behind_is_read_without_their_packages(
    zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    with monkeypatch.context() as patch:
        content = trainer_objects(patch)
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert "pytorch_lightning.utilities.parsing" not in sys.modules
    tensors = read_tensors(path)
    assert list(tensors) == ["a.weight"]
    assert torch.equal(tensors["a.weight"], WEIGHTS["a.weight"])
    assert "pytorch_lightning.utilities.parsing" not in sys.modules


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "ema", "module", None])
def test_every_wrapper_is_opened(wrapper: str | None, tmp_path: Path) -> None:
    content = {wrapper: WEIGHTS, "optimizer": {"m": torch.ones(1)}} if wrapper else WEIGHTS
    torch.save(content, tmp_path / "x.pt")
    assert list(read_tensors(tmp_path / "x.pt")) == ["a.weight"]


def test_a_dictionary_that_contains_itself_does_not_hang(tmp_path: Path) -> None:
    content: dict[str, Any] = {}
    content["model"] = content
    torch.save(content, tmp_path / "loop.pt")
    with pytest.raises(UserError, match="no named tensors"):
        read_tensors(tmp_path / "loop.pt")


def test_truncated_files_are_called_damaged(tmp_path: Path) -> None:
    torch.save({"state_dict": WEIGHTS}, tmp_path / "zip")
    torch.save(WEIGHTS, tmp_path / "legacy", _use_new_zipfile_serialization=False)
    save_file(WEIGHTS, tmp_path / "safetensors")
    for name in ("zip", "legacy", "safetensors"):
        whole = (tmp_path / name).read_bytes()
        for kept in (len(whole) - 5, len(whole) // 2):
            (tmp_path / name).write_bytes(whole[:kept])
            with pytest.raises(UserError, match="damaged") as caught:
                read_tensors(tmp_path / name)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "git lfs pull"),
        (b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", "is a web page"),
        (b"  <html>", "is a web page"),
        (b"", "is empty"),
        (b"hello world, this is text", "neither safetensors nor a torch checkpoint"),
    ],
)
def test_files_that_are_no_checkpoints(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "x.ckpt").write_bytes(content)
    with pytest.raises(UserError, match=says):
        read_tensors(tmp_path / "x.ckpt")


def test_missing_files_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_vqgan(tmp_path / "no.ckpt")
    with pytest.raises(UserError, match="holds no weights; expected one of"):
        load_vqgan(tmp_path)
    torch.save(WEIGHTS, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"config .*no\.yaml does not exist"):
        load_vqgan(tmp_path / "x.pt", tmp_path / "no.yaml")


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system ['touch {}']", "!!python/name:os.system", "!evil x"]
)
def test_evil_yaml_is_never_imported(tag: str, tmp_path: Path) -> None:
    trace, path = tmp_path / "trace", tmp_path / "evil.yaml"
    path.write_text(f"model: {tag.format(trace)}\n")
    with pytest.raises(UserError, match="holds objects beyond plain values") as caught:
        read_config(path)
    assert "\n" not in str(caught.value)
    assert not trace.exists()


def test_a_yaml_target_is_a_string_and_nothing_more(tmp_path: Path) -> None:
    (tmp_path / "evil_module.py").write_text("raise SystemExit('imported')")
    target = {"target": "evil_module.taming.models.vqgan.VQModel", "params": {"ddconfig": {}}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"model": target}))
    sys.path.insert(0, str(tmp_path))
    try:
        assert read_config(tmp_path / "c.yaml").family == "taming"
    finally:
        sys.path.remove(str(tmp_path))
    assert "evil_module" not in sys.modules


@pytest.mark.parametrize("text", ["model: [", "a: b: c", "\x00"])
def test_broken_yaml_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError, match="not a valid YAML file") as caught:
        read_config(tmp_path / "c.yaml")
    assert "\n" not in str(caught.value)
