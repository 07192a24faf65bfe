"""Training a prior and a codec on a pretended CUDA device; see test_fake_cuda.py."""

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from conftest import LEVELS
from fake_cuda import (
    AUTOCAST,
    BACKWARD,
    CPU,
    CUDA,
    CudaTensor,
    FakeCuda,
    assert_same,
    fake_cuda,
    values,
)
from test_fake_cuda import Network
from torch import Tensor, nn
from vqgan_cases import DDCONFIG, random_images

from sundae.codec.interface import PixelCodec
from sundae.codec.vqgan import load_vqgan
from sundae.codec_training.config import CodecRunConfig, parse_codec_config
from sundae.codec_training.export import export
from sundae.codec_training.perceptual import (
    EfficientNetDistance,
    FeatureDistance,
    LPIPSDistance,
    Nothing,
)
from sundae.codec_training.task import CodecTask, build_training
from sundae.common.finite import first_non_finite
from sundae.common.precision import Precision, autocast
from sundae.config.run_file import RunConfig
from sundae.config.sections import ObjectiveConfig
from sundae.features.efficientnet import EfficientNetLite0
from sundae.features.lpips import LPIPS
from sundae.prior.checkpoint import open_checkpoint
from sundae.prior.linear_cross_entropy import linear_cross_entropy
from sundae.prior.network import build_network
from sundae.prior.objective import DEFAULTS, unroll
from sundae.sampling.grids import SampleGrids
from sundae.training.ema import EMA
from sundae.training.experiment import build_trainer, should_compile
from sundae.training.logbook import Logbook
from sundae.training.metrics import Means
from sundae.training.optimizers import make_optimizer
from sundae.training.prior import PriorExperiment, PriorTask, open_datasets
from sundae.training.trainer import Trainer

Config = Callable[..., RunConfig]

ALL_OPTIONS = ObjectiveConfig(unroll_share=0.5, hole_share=0.5)


# -- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_head", [True, False], ids=["logits in parts", "all logits"])
@pytest.mark.parametrize("learning", [True, False], ids=["learning", "judging"])
@pytest.mark.parametrize("options", [DEFAULTS, ALL_OPTIONS], ids=["plain", "all options"])
def test_the_objective(
    with_head: bool, learning: bool, options: ObjectiveConfig, cuda: FakeCuda
) -> None:
    made = Network("hourglass")

    def compute(device: torch.device) -> list[Tensor]:
        net, tokens, classes, _ = made.on(device)
        generator = torch.Generator(device).manual_seed(0)
        cuda.waits.clear()
        with torch.set_grad_enabled(learning):
            steps = unroll(
                lambda some: net(some, classes[: len(some)], head=not with_head),
                tokens,
                unroll_steps=3,
                vocab_size=11,
                generator=generator,
                head=net.to_logits if with_head else None,  # type: ignore[arg-type]
                options=options,
                grid=net.grid,
            )
            found = []
            for step in steps:
                if learning:
                    step.loss.backward()
                found += [step.loss.detach(), step.accuracy]
        assert not cuda.waits
        return found + [p.grad for p in net.parameters() if p.grad is not None]

    assert_same(compute)


@pytest.mark.parametrize("place", [BACKWARD, AUTOCAST], ids=["float32", "bfloat16"])
def test_a_task(place: torch.device, config: Config) -> None:
    """With classes dropped out, and logits in parts as autocast has them."""
    cfg = config({"net.class_dropout": 0.5, "unroll_steps": 3})
    net = build_network(cfg).train()
    nn.init.normal_(net.to_logits.weight)
    tokens, classes = torch.randint(LEVELS, (8, 16)), torch.arange(8) % 3

    def metrics(device: torch.device) -> list[Any]:
        batch = {"tokens": tokens.to(device), "classes": classes.to(device)}
        generator = torch.Generator(device).manual_seed(0)
        there = copy.deepcopy(net).to(device)
        cuda.waits.clear()
        precision: Precision = "auto" if place == AUTOCAST else "fp32"
        with autocast(device, precision), torch.set_grad_enabled(place == BACKWARD):
            found = [metrics for _, metrics in PriorTask(cfg).losses(there, batch, generator)]
        assert not cuda.waits
        return found

    with fake_cuda(place) as cuda:
        if place == BACKWARD:
            assert_same(metrics)
        else:
            found = values(metrics(CUDA))
            assert all(0 < loss["loss"] < 20 for loss in found)


def test_logits_in_parts_are_those_of_autocast() -> None:
    torch.manual_seed(0)
    features, targets = 3 * torch.randn(8, 64), torch.arange(8)
    with fake_cuda(AUTOCAST), torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        head = nn.Linear(64, 1000).to(CUDA)
        inputs = features.to(CUDA), targets.to(CUDA)
        logits = head(inputs[0])
        assert logits.dtype == torch.bfloat16
        expected = nn.functional.cross_entropy(logits.float(), inputs[1])
        found = linear_cross_entropy(inputs[0], head, inputs[1]).loss
        torch.testing.assert_close(*values((found, expected)))


def trainer_on(
    device: torch.device, cfg: RunConfig, run: Path, patch: pytest.MonkeyPatch
) -> Trainer:
    patch.setattr(Accelerator, "device", device)
    patch.setattr("sundae.training.logbook.draw_curves", lambda rows, path: None)
    run.mkdir(exist_ok=True)
    torch.manual_seed(0)
    data, codec = open_datasets(cfg, f"pixels-{LEVELS}"), f"pixels-{LEVELS}"
    experiment = PriorExperiment(cfg, data, codec)
    trainer = build_trainer(experiment, Accelerator(cpu=True), Logbook(run, quiet=True), seed=0)
    trainer.on_evaluation.append(SampleGrids(cfg, PixelCodec(LEVELS)))
    return trainer


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")
def test_a_training_ends_and_is_resumed(
    config: Config, tmp_path: Path, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With accumulation, clipping, averages, evaluation, samples and checkpoints."""
    changes = {"trainer.mini_batch_size": 4, "trainer.clip_grad": True, "net.class_dropout": 0.2}
    # It goes on from a checkpoint between two evaluations, with means that are half done.
    changes |= {"trainer.max_steps": 4, "trainer.nb_batches": [99, 0]}
    cfg = config(changes | {"trainer.checkpoint_frequency": 3})

    def weights(device: torch.device) -> list[Any]:
        run, waits = tmp_path / device.type, []
        trainer = trainer_on(device, cfg, run, monkeypatch)
        update = trainer._update

        def update_and_count(batches: Any) -> None:
            update(batches)
            waits.append(cuda.waits.copy())
            cuda.waits.clear()

        trainer._update = update_and_count  # type: ignore[method-assign]
        trainer.train()
        # Two batches of tokens and classes, which DataLoader has pinned where it can.
        assert device == CPU or waits[1:3] == 2 * [4 * ["_to_copy to cuda"]]
        other = trainer_on(device, cfg, tmp_path / f"{device.type}-resumed", monkeypatch)
        other.resume(open_checkpoint(run / "checkpoints" / "step-0000003"))
        other.train()
        assert other.state.metrics == trainer.state.metrics
        return [other.state.net.state_dict(), other.state.eval_net.state_dict()]

    assert_same(weights)


@pytest.mark.parametrize("name", ["adam", "adamw", "muon", "adamax", "sgd", "rmsprop"])
def test_an_optimizer_and_an_average(name: str, config: Config, cuda: FakeCuda) -> None:
    cfg = config({"trainer.optimizer_name": name}).trainer
    made = Network("hourglass").net

    def weights(device: torch.device) -> list[Any]:
        net = copy.deepcopy(made).to(device)
        ema = EMA(net, 0.9)
        optimizer = make_optimizer(net, cfg, device)
        for _ in range(2):
            for parameter in net.parameters():
                parameter.grad = parameter.detach().sin()
            cuda.waits.clear()
            optimizer.step()
            ema.update(net)
            assert not cuda.waits
        return [net.state_dict(), ema.net.state_dict()]

    assert_same(weights)


def test_means_and_what_is_not_finite(cuda: FakeCuda) -> None:
    """Read at once, however many there are."""
    means = Means()
    for number in range(3):
        value = torch.tensor(float(number), device=CUDA)
        means.add({"loss": value, "accuracy": value / 2}, 1.0)
    cuda.waits.clear()
    assert means.read(Accelerator(cpu=True)) == {"loss": 1.0, "accuracy": 0.5}
    assert cuda.waits == ["_to_copy to cuda", "_to_copy from cuda"]
    tensors = {name: torch.ones(3, device=CUDA) for name in "abc"}
    cuda.waits.clear()
    assert first_non_finite(tensors) is None
    tensors["b"][1] = torch.nan
    assert first_non_finite(tensors) == "b"
    assert cuda.waits == 2 * ["_to_copy from cuda"]


# -- the training of a codec ----------------------------------------------------------------------


def codec_run(**training: Any) -> CodecRunConfig:
    ddconfig = DDCONFIG | {"resolution": 16, "ch_mult": [1, 1], "attn_resolutions": []}
    model = {"target": "taming.models.vqgan.VQModel", "params": {"embed_dim": 8, "n_embed": 16}}
    model["params"]["ddconfig"] = ddconfig  # type: ignore[index]
    settings = {
        "batch_size": 8, "size": 16, "perceptual": "none", "disc_start": 1,
        "disc_width": 8, "disc_layers": 2, "recolour": 0.5, "mirror": True, **training,
    }  # fmt: skip
    return parse_codec_config({"model": model, "training": settings}, "test.yaml")


def efficientnet() -> FeatureDistance:
    net = EfficientNetLite0().eval()
    net.fold()
    return EfficientNetDistance(net)


def lpips() -> FeatureDistance:
    """Of a network with VGG's layers, three channels wide."""
    return LPIPSDistance(LPIPS("vgg16", (3,) * 5).eval())


@pytest.mark.parametrize(
    ("init", "perceptual"), [("kmeans", efficientnet), ("data", lpips), ("uniform", Nothing)]
)
def test_a_codec_learns(
    init: str, perceptual: Callable[[], FeatureDistance], cuda: FakeCuda
) -> None:
    """Augmentation, both sides, the codebook's start and restart; then without gradients."""
    cfg = codec_run(codebook_init=init, restart_every=2)
    torch.manual_seed(0)
    made, distance = build_training(cfg), perceptual().requires_grad_(False)
    images = random_images(8, 18, 18)

    def compute(device: torch.device) -> list[Any]:
        net, found = copy.deepcopy(made).to(device).train(), []
        task = CodecTask(cfg, copy.deepcopy(distance).to(device))
        for step in range(5):
            net.train(step < 4)
            batch = {"images": images.to(device)}
            cuda.waits.clear()
            with torch.set_grad_enabled(net.training):
                for loss, metrics in task.losses(
                    net, batch, torch.Generator(device).manual_seed(step)
                ):
                    found.append(metrics)
                    if net.training:
                        loss.backward()
            if device == CUDA and step in (1, 3):  # nothing starts or is restarted
                assert cuda.waits == ["_local_scalar_dense"]  # whether latents are finite
        return [*found, [p.grad for p in net.parameters()], net.state_dict()]

    assert_same(compute, atol=1e-4, rtol=1e-3)  # small features are normalised


def test_an_exported_codec_is_for_every_machine(
    tmp_path: Path, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file with tensors on CUDA could not be read without it."""
    monkeypatch.setattr(CudaTensor, "__reduce_ex__", lambda *_: pytest.fail("one is written"))
    cfg = codec_run()
    net = build_training(cfg).to(CUDA)
    export(net, cfg, tmp_path, 16)
    codec, weights = load_vqgan(tmp_path), values(net.vqgan.state_dict())
    torch.testing.assert_close(codec.model.state_dict(), weights)
    state = torch.load(tmp_path / "vqgan.ckpt", weights_only=True)["state_dict"]
    assert weights.keys() < state.keys()


@pytest.mark.parametrize("setting", [None, True, False])
@pytest.mark.parametrize(
    ("window", "shifted"), [(None, False), ([2, 0], True)], ids=["no windows", "windows"]
)
def test_networks_with_shifted_windows_are_not_compiled_on_a_gpu(
    setting: bool | None,
    window: list[int] | None,
    shifted: bool,
    config: Config,
    capsys: pytest.CaptureFixture[str],
) -> None:
    changes: dict[str, Any] = {"net.attn_resampling": False, "net.depth": [2, 1, 2]}
    changes |= {"net.window": window} if window else {}
    changes |= {"trainer.compile": setting} if setting is not None else {}
    data: Any = SimpleNamespace(latents=SimpleNamespace(classes=["a", "b", "c", "d", "e"]))
    cfg = config(changes)
    experiment, net = PriorExperiment(cfg, (data, data)), build_network(cfg)
    for device, default in ((CUDA, True), (CPU, False)):
        wanted = default if setting is None else setting
        vain = shifted and device == CUDA
        found = should_compile(experiment, net, device, quiet=False)
        assert found == (wanted and not vain)
        told = "trainer.compile has no effect on a GPU here: gradients of shifted windows"
        assert (told in capsys.readouterr().err) == (vain and setting is True)
