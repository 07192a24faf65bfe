"""Codecs, repainting and the scripts on a pretended CUDA device; see test_fake_cuda.py."""

import copy
import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator
from conftest import LEVELS
from fake_cuda import AUTOCAST, CPU, FakeCuda, assert_fetched, assert_same, fake_cuda, values
from test_codec_training_config import values as codec_values
from test_fake_cuda import sampler_on
from test_fake_cuda_training import lpips
from torch import Tensor
from vqgan_cases import CASES, random_images

from sundae.codec.interface import Codec, PixelCodec
from sundae.codec.vqgan import VQGANCodec, load_vqgan
from sundae.codec_training.perceptual import _LOADERS
from sundae.common.images import load_image, save_image, to_pil, to_tensor
from sundae.config.run_file import RunConfig
from sundae.data.dataset import open_latents
from sundae.editing.compositing import composite, fill_masked
from sundae.editing.files import known_part
from sundae.editing.request import EditRequest, Margins
from sundae.interactive.settings import Settings
from sundae.sampling.image_codec import ImageCodec
from sundae.sampling.output import write_samples

Config = Callable[..., RunConfig]


# -- codecs ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=CASES)
def codec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VQGANCodec:
    case = CASES[request.param](tmp_path_factory.mktemp("codec"))
    return load_vqgan(case.checkpoint, case.config, **case.keywords, precision="fp32")


def test_a_codec_of_every_family(codec: VQGANCodec, cuda: FakeCuda) -> None:
    """On either device it takes what is on either, and gives back what is on its own."""
    images = random_images()

    def both(device: torch.device) -> list[Tensor]:
        there = copy.deepcopy(codec).to(device)
        found = [there.encode(images), there.encode(images.to(device))]
        found += [there.model.quantize(there.model.encode(images.to(device)), 100)]
        return [*found, there.decode(found[0]), there.decode(found[0].cpu())]

    with torch.no_grad():
        assert_same(both)


@pytest.mark.parametrize("precision", ["auto", "bf16"])
def test_a_codec_of_every_family_in_bfloat16(codec: VQGANCodec, precision: str) -> None:
    images = random_images()
    with fake_cuda(AUTOCAST), torch.no_grad():
        there = copy.deepcopy(codec).to("cuda")
        there.precision = precision
        tokens, expected = values(there.encode(images)), codec.encode(images)
        decoded = values(there.decode(expected.to("cuda")))
        error = (decoded - codec.decode(expected)).abs()
    assert decoded.dtype == torch.float32
    assert (tokens == expected).float().mean() > 0.8
    assert 1e-3 < error.max() < 0.1  # of rounding


def test_grey_levels(cuda: FakeCuda) -> None:
    images, codec = random_images(), ImageCodec(PixelCodec(LEVELS))
    assert_same(lambda d: [codec.encode(images.to(d)), codec.decode(codec.encode(images.to(d)))])


# -- images ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pixels", "taming"])
@pytest.mark.parametrize("beside", [True, False], ids=["codec beside", "codec on the CPU"])
def test_repainting(
    kind: str, beside: bool, config: Config, cuda: FakeCuda, tmp_path: Path
) -> None:
    """A hole, what lies beyond a border, and a fraction."""
    if kind == "taming":
        case = CASES["taming"](tmp_path)
        made: Codec = load_vqgan(case.checkpoint, case.config, precision="fp32")
    else:
        made = PixelCodec(LEVELS)
    side = 4 * made.factor
    image, hole = to_pil(random_images(1, side, side)[0]), torch.zeros(side, side, dtype=torch.bool)
    hole[side // 3 : side // 2, side // 2 :] = True
    requests = [
        EditRequest(mask=hole),
        EditRequest(outpaint=Margins(right=side // 2)),
        EditRequest(strength=0.5),
    ]
    settings: dict[str, Any] = {"steps": 4, "strategy": "random", "guidance": 2.0}
    settings |= {"sample_proportion": 0.7, "end_sample_proportion": 0.4, "early_stop": False}

    def edited(device: torch.device) -> list[Tensor]:
        codec = copy.deepcopy(made).to(device if beside else CPU)
        sampler = sampler_on(device, config, codec=codec)
        edits = [sampler.prepare_edit(image, request, 0) for request in requests]
        runs = [
            sampler.refine_edit(edit, 3, classes=[0, 1, 2], seed=0, **settings) for edit in edits
        ]
        panel = known_part(edits[-1], sampler.codec)
        return [panel, *(state.pixels() for run in runs for state in run)]

    assert_fetched(cuda, edited)


def test_holes_on_the_device(cuda: FakeCuda) -> None:
    images, hidden = random_images(), torch.zeros(32, 32, dtype=torch.bool)
    hidden[3:9, 20:] = True

    def filled(device: torch.device) -> list[Tensor]:
        image, hole = images[0].to(device), hidden.to(device)
        return [fill_masked(image, hole), composite(images.to(device), image, hole, 3)]

    assert_same(filled)


def test_settings_and_files_of_samples(config: Config, cuda: FakeCuda, tmp_path: Path) -> None:
    image = to_pil(random_images(1, 4, 4)[0])
    requests = [EditRequest(mask=torch.ones(4, 4, dtype=torch.bool)), EditRequest(strength=0.5)]

    def shown(device: torch.device) -> list[Any]:
        sampler, folder = sampler_on(device, config), tmp_path / device.type
        settings = Settings(sampler, sampler.cfg.sampling).changed(seed=1)
        runs = [settings.sample(), *(settings.edit(image, request) for request in requests)]
        folder.mkdir()
        options = {"strategy": "random", "seed": 0, "batch_size": 2}
        grid = write_samples(sampler.refine(3, **options), folder, 3)
        return [[p.pixels() for run in runs for p in run], to_tensor(load_image(grid))]

    assert_fetched(cuda, shown)


# -- scripts --------------------------------------------------------------------------------------

Script = Callable[..., Any]
SCRIPTS = ("train", "sample", "inpaint", "train-vqgan", "generate-latents", "recon-vqgan")


@pytest.fixture
def script_on(
    script: Script, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> Callable[[torch.device], Script]:
    """script_on(device)("train", ...) runs a script there, whatever it would choose itself."""
    monkeypatch.setattr("sundae.training.logbook.draw_curves", lambda rows, path: None)
    # All are imported first: what one of them took over from a patched module, it would keep.
    modules = [importlib.import_module(name) for name in ("utils", *SCRIPTS)]
    accelerator = partial(Accelerator, cpu=True)

    def on(device: torch.device) -> Script:
        monkeypatch.setattr(Accelerator, "device", device)
        for module in modules:
            monkeypatch.setattr(module, "choose_device", lambda *_, **__: device, raising=False)
            monkeypatch.setattr(module, "Accelerator", lambda **_: accelerator(), raising=False)

        def run(name: str, *arguments: object) -> None:
            ended = script(name, *arguments)
            assert ended.code == 0, ended

        return run

    return on


def draw_images(folder: Path, count: int, side: int) -> Path:
    folder.mkdir()
    for number, image in enumerate(random_images(count, side, side)):
        save_image(image, folder / f"{number}.png")
    return folder


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")
def test_scripts_of_a_prior(
    script_on: Callable[[torch.device], Script],
    cuda: FakeCuda,
    run_file: Callable[..., Path],
    tmp_path: Path,
) -> None:
    cfg, image = run_file({"trainer.compile": False}), draw_images(tmp_path / "in", 1, 4)

    def run(device: torch.device) -> list[Tensor]:
        script, folder = script_on(device), tmp_path / device.type
        script("train", "--cfg-path", cfg, "--run-dir", folder / "run", "--seed", 0, "--cuda-vqgan")
        common = ("--resume", folder / "run", "--seed", 1, "--cuda-vqgan", "--no-amp")
        script("sample", *common, "--out-dir", folder / "samples", "--nb-samples", 4)
        script("inpaint", image, *common, "--out-dir", folder / "answers")
        return [to_tensor(load_image(path)) for path in sorted(folder.rglob("*.png"))]

    assert_fetched(cuda, run)


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")
def test_scripts_of_a_codec(
    script_on: Callable[[torch.device], Script],
    cuda: FakeCuda,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    distance = lpips()
    monkeypatch.setitem(_LOADERS, "none", lambda: copy.deepcopy(distance))
    images = draw_images(tmp_path / "in", 12, 16)
    training = codec_values(
        max_steps=2, nb_batches=[2, 1], disc_start=1, disc_width=8, disc_layers=2, compile=False,
        batch_size=2, random_crop=1.25, use_amp=False, eval_fraction=0.2, perceptual="none",
    )  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(training))

    def run(device: torch.device) -> dict[str, Tensor]:
        script, folder = script_on(device), tmp_path / device.type
        flags = ("--run-dir", folder, "--dataset-in", images, "--seed", 0)
        script("train-vqgan", "--cfg-path", tmp_path / "run.yaml", *flags)
        codec, latents = ("--ckpt-path", folder / "vqgan.safetensors"), folder / "latents"
        codec += ("--precision", "fp32")
        flags = ("--dataset-in", images, "--latents-out", latents, "--no-compile")
        script("generate-latents", *codec, *flags)
        script("recon-vqgan", images, *codec, "--out", folder / "recon.png")
        shown = {path.stem: to_tensor(load_image(path)) for path in folder.rglob("*.png")}
        return shown | {"tokens": torch.from_numpy(open_latents(latents).tokens[:].astype(int))}

    assert_fetched(cuda, run, atol=1.01 / 255, rtol=0)  # a grey level of 8 bits
