from pathlib import Path
from typing import Any

import pytest
import torch
from test_codec_training_config import crop_values
from torch import Tensor

from sundae.codec.vqgan import load_vqgan
from sundae.codec_training.config import CodecRunConfig, parse_codec_config
from sundae.codec_training.dataset import augment
from sundae.codec_training.experiment import _alternate_rows
from sundae.codec_training.export import export
from sundae.codec_training.module import CodecTraining
from sundae.codec_training.perceptual import load_perceptual
from sundae.codec_training.task import CodecTask, build_training
from sundae.common.compiling import compile_modules

Metrics = dict[str, Tensor]


def config(groups: int = 32, **training: Any) -> CodecRunConfig:
    ddconfig = {
        "double_z": False, "z_channels": 16, "resolution": 16, "in_channels": 3, "out_ch": 3,
        "ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1, "attn_resolutions": [],
        "num_groups": groups,
    }  # fmt: skip
    params = {"embed_dim": 8, "n_embed": 16, "ddconfig": ddconfig}
    settings = {
        "batch_size": 16, "size": 16, "perceptual": "none", "disc_start": 2, "disc_width": 8,
        "disc_layers": 2, "restart_every": 4, **training,
    }  # fmt: skip
    model = {"target": "taming.models.vqgan.VQModel", "params": params}
    return parse_codec_config({"model": model, "training": settings}, "test.yaml")


def discs(count: int = 64, side: int = 16) -> Tensor:
    """(count, 3, side, side) in [0, 1]: a coloured disc on grey, each at its own place."""
    generator = torch.Generator().manual_seed(0)
    centre = (0.3 + 0.4 * torch.rand(count, 2, generator=generator)) * side
    colour = torch.rand(count, 3, 1, 1, generator=generator)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    apart = (y - centre[:, :1, None]).square() + (x - centre[:, 1:, None]).square()
    return torch.where((apart < (side / 4) ** 2)[:, None], colour, torch.tensor(0.9))


def make(cfg: CodecRunConfig, accumulate: int = 1) -> tuple[CodecTraining, CodecTask]:
    torch.manual_seed(0)
    task = CodecTask(cfg, load_perceptual(cfg.training.perceptual), accumulate)
    return build_training(cfg, accumulate).train(), task


def run(net: CodecTraining, task: CodecTask, images: Tensor, seed: int = 0) -> Metrics:
    """Backward on both parts, as the trainer does; the metrics of both."""
    metrics: Metrics = {}
    losses = task.losses(net, {"images": images}, torch.Generator().manual_seed(seed))
    for _ in range(task.num_losses):
        loss, some = next(losses)
        loss.backward()
        metrics |= some
    return metrics


def train(net: CodecTraining, task: CodecTask, steps: int, first: int = 0) -> list[Metrics]:
    optimizer = torch.optim.Adam(net.parameters(), 2e-3, betas=(0.5, 0.9))
    images, history = discs(), []
    for step in range(first, first + steps):
        rows = torch.arange(16) + 16 * (step % 4)
        history.append(run(net, task, images[rows], step))
        optimizer.step()
        optimizer.zero_grad()
    return history


def test_the_loss_falls_and_the_codebook_lives_on_sixty_four_images() -> None:
    history = train(*make(config(disc_start=24)), 32)
    losses = [float(metrics["loss"]) for metrics in history]
    assert sum(losses[-4:]) < 0.5 * sum(losses[:4])
    assert float(history[-1]["perplexity"]) > 4
    assert "gan" not in history[23] and "gan" in history[24]


def test_the_first_part_is_the_sum_that_it_says_and_has_its_gradients() -> None:
    """Against the losses stated in one piece and differentiated in one piece."""
    cfg = config(disc_start=0, disc_weight=0.7, commitment=0.3, codebook_weight=0.9, mirror=False)
    net, task = make(cfg)
    images = discs(8)
    run(net, task, images)  # the codebook is initialised
    net.zero_grad()
    net.care.recent.zero_()
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    loss, metrics = next(task.losses(net, {"images": images}, torch.Generator().manual_seed(0)))
    loss.backward()
    ours = {name: p.grad.clone() for name, p in net.vqgan.named_parameters() if p.grad is not None}
    assert all(p.grad is None for p in net.discriminator.parameters())

    net.load_state_dict(state)
    net.zero_grad()
    pixels = images * 2 - 1
    latents = net.vqgan.encode(pixels)
    vectors = net.vqgan.quantize.embed(net.vqgan.quantize(latents))
    made = net.vqgan.decode(latents + (vectors - latents).detach())
    fidelity = (made - pixels).abs().mean()
    gan = -net.discriminator(made).mean()
    last = net.vqgan.decoder.conv_out.weight
    norms = [torch.autograd.grad(x, last, retain_graph=True)[0].norm() for x in (fidelity, gan)]
    weight = norms[0] / (norms[1] + 1e-4)
    codebook = (vectors - latents.detach()).square().mean()
    commitment = (latents - vectors.detach()).square().mean()
    total = fidelity + 0.7 * weight.detach() * gan + 0.9 * codebook + 0.3 * commitment
    total.backward()
    torch.testing.assert_close(loss, total)
    torch.testing.assert_close(metrics["adaptive_weight"], weight)
    torch.testing.assert_close(metrics["loss"], fidelity + 0.9 * codebook + 0.3 * commitment)
    assert len(ours) == len(list(net.vqgan.parameters()))
    for name, parameter in net.vqgan.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-3, atol=1e-6)


def test_the_second_part_teaches_the_discriminator_alone_and_not_before_its_start() -> None:
    net, task = make(config(disc_start=1))

    def second_part(seed: int) -> list[float]:
        net.zero_grad()
        losses = task.losses(net, {"images": discs(8)}, torch.Generator().manual_seed(seed))
        next(losses)
        next(losses)[0].backward()
        assert all(p.grad is None for p in net.vqgan.parameters())
        weights = [p for p in net.discriminator.parameters() if p.ndim > 1]
        return [float(p.grad.abs().sum()) for p in weights if p.grad is not None]

    assert second_part(0) == [0.0] * 4
    assert min(second_part(1)) > 0


def test_steps_are_optimiser_steps_whatever_the_mini_batches() -> None:
    net, task = make(config(disc_start=2, restart_every=3), accumulate=4)
    assert task.disc_start == 8 and net.care.restart_every == 12
    metrics = [run(net, task, discs(4)) for _ in range(9)]
    assert [("gan" in m) for m in metrics] == [False] * 8 + [True]


def test_evaluation_changes_nothing_and_is_the_same_twice() -> None:
    net, task = make(config(disc_start=1))
    run(net, task, discs(8))
    net.eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with torch.no_grad():
        results = []
        for seed in range(2):
            parts = task.losses(net, {"images": discs(8)}, torch.Generator().manual_seed(seed))
            results.append({name: float(x) for _, some in parts for name, x in some.items()})
    assert results[0] == results[1]
    assert {"loss", "gan", "discriminator", "usage"} <= results[0].keys()
    torch.testing.assert_close(net.state_dict(), before)


def test_a_run_taken_up_from_its_state_goes_on_as_if_unbroken() -> None:
    whole, task = make(config(codebook_init="data"))
    images = discs()
    for step in range(3):
        run(whole, task, images[:16], step)
        with torch.no_grad():
            for p in whole.parameters():
                p -= 0.01 * p.grad  # type: ignore[operator]
        whole.zero_grad()
    resumed, _ = make(config(codebook_init="data"))
    resumed.load_state_dict(whole.state_dict())
    for step in range(3, 6):  # a restart and the discriminator are among these
        a, b = (run(net, task, images[:16], step) for net in (whole, resumed))
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    torch.testing.assert_close(whole.state_dict(), resumed.state_dict(), rtol=0, atol=0)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for checkpointing in (False, True):
        net, task = make(config(disc_start=0, gradient_checkpointing=checkpointing))
        run(net, task, discs(4))
        gradients.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("groups", [32, 4])
def test_the_exported_codec_loads_and_decodes_as_the_trained_one(
    tmp_path: Path, groups: int
) -> None:
    cfg = config(groups=groups)
    net, task = make(cfg)
    train(net, task, 3)
    paths = export(net, cfg, tmp_path, 16)
    assert [path.name for path in paths] == [
        "vqgan.safetensors", "vqgan.json", "vqgan.ckpt", "vqgan.yaml",
    ]  # fmt: skip
    assert net.training and net.vqgan.encoder.conv_in.weight.requires_grad
    net.eval()
    images = discs(4)
    with torch.no_grad():
        pixels, tokens = net.vqgan(images * 2 - 1)
    for codec in (
        load_vqgan(tmp_path, precision="fp32"),
        load_vqgan(tmp_path / "vqgan.ckpt", tmp_path / "vqgan.yaml", precision="fp32"),
    ):
        assert torch.equal(codec.encode(images), tokens)
        torch.testing.assert_close(codec.decode(tokens), ((pixels + 1) / 2).clamp(0, 1))
        assert codec.resolution == 16
        assert codec.model.arch.groups == codec.model.encoder.norm_out.num_groups == groups


def test_the_taming_layout_is_tamings(tmp_path: Path) -> None:
    from taming.modules.discriminator.model import NLayerDiscriminator
    from vqgan_cases import TamingVQ

    cfg = config()
    net, _ = make(cfg)
    export(net, cfg, tmp_path, 16)
    state = torch.load(tmp_path / "vqgan.ckpt", weights_only=True)["state_dict"]
    reference = TamingVQ({**cfg.model["params"]["ddconfig"], "dropout": 0.0})
    disc = NLayerDiscriminator(ndf=8, n_layers=2)
    expected = {f"loss.discriminator.{name}" for name in disc.state_dict()}
    assert state.keys() == reference.state_dict().keys() | expected


def test_images_above_their_reconstructions_row_by_row() -> None:
    originals = torch.arange(10.0)[:, None, None, None].expand(10, 3, 1, 1)
    rows = _alternate_rows(originals, -originals, 8)[:, 0, 0, 0].view(4, 8).tolist()
    assert rows[0] == list(range(8)) and rows[1] == [-float(i) for i in range(8)]
    assert rows[2] == [8, 9, 1, 1, 1, 1, 1, 1] and rows[3] == [-8, -9, 1, 1, 1, 1, 1, 1]


def test_training_images_are_augmented_by_the_generator_and_held_out_ones_not() -> None:
    net, task = make(config(random_crop=1.25))
    seen: list[Tensor] = []
    net.vqgan.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images = torch.rand(8, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    run(net, task, images, seed=5)
    wanted = augment(images, 16, mirror=True, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(seen[0], wanted * 2 - 1)
    net.eval()
    run(net, task, images[:, :, :16, :16])
    torch.testing.assert_close(seen[1], images[:, :, :16, :16] * 2 - 1)


def test_whole_images_are_evaluated_whole() -> None:
    cfg = parse_codec_config(crop_values(disc_start=0, mirror=True, recolour=1.0), "test.yaml")
    net, task = make(cfg)
    image = torch.rand(1, 3, 24, 40, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        losses = task.losses(net.eval(), {"images": image}, torch.Generator())
        _, metrics = next(losses)
        _, of_discriminator = next(losses)
        pixels, tokens = net.vqgan(image * 2 - 1)
        expected = {
            "reconstruction": (pixels - (image * 2 - 1)).abs().mean(),
            "usage": torch.tensor(len(tokens.unique()) / 16),
            "gan": -net.discriminator(pixels).mean(),
        }
    torch.testing.assert_close({name: metrics[name] for name in expected}, expected)
    assert of_discriminator and tokens.shape == (1, 12, 20)


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_reconstruction_is_measured_as_the_run_file_says(kind: str) -> None:
    net, task = make(config(reconstruction=kind, mirror=False))
    net.eval()
    images = discs(4)
    with torch.no_grad():
        _, metrics = next(task.losses(net, {"images": images}, torch.Generator()))
        difference = net.vqgan(images * 2 - 1)[0] - (images * 2 - 1)
    wanted = difference.abs().mean() if kind == "l1" else difference.square().mean()
    torch.testing.assert_close(metrics["reconstruction"], wanted)


def test_until_quantise_start_it_is_an_autoencoder_and_then_codes_begin_among_latents() -> None:
    net, task = make(config(quantise_start=3, disc_start=100, codebook_init="data"))
    before = net.vqgan.quantize.embedding.weight.detach().clone()
    images = discs()[:16] * 2 - 1
    generator = torch.Generator().manual_seed(0)
    history = train(net, task, 2)
    assert all(float(m["commitment"]) == float(m["codebook"]) == 0 for m in history)
    assert torch.equal(net.vqgan.quantize.embedding.weight, before)
    with torch.no_grad():
        made = net.eval().reconstruct(images, generator)
        torch.testing.assert_close(made.pixels, net.vqgan.decode(net.vqgan.encode(images)))
    net.train()
    history = train(net, task, 3, first=2)
    assert float(history[0]["commitment"]) == 0 < float(history[1]["commitment"])
    with torch.no_grad():
        made = net.eval().reconstruct(images, generator)
        torch.testing.assert_close(made.pixels, net.vqgan(images)[0])
    scale = float(made.latents.std())
    assert float((made.vectors - made.latents).square().mean().sqrt()) < scale


def test_quantise_start_counts_optimiser_steps_not_mini_batches() -> None:
    net, _ = make(config(quantise_start=3), accumulate=2)
    assert net.quantise_start == 6


def test_training_images_are_recoloured_for_a_while_and_held_out_ones_never() -> None:
    net, task = make(config(recolour=1.0, mirror=False, disc_start=100, max_steps=4))
    seen: list[Tensor] = []
    net.vqgan.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for _ in range(3):  # recolour_until is half of the steps
        run(net.train(), task, images)
    with torch.no_grad():
        net.batches.zero_()
        next(task.losses(net.eval(), {"images": images}, torch.Generator().manual_seed(0)))
    recoloured = [not torch.equal(x, images * 2 - 1) for x in seen]
    assert recoloured == [True, True, False, False]


def test_compiled_and_with_a_discriminator_the_gradients_are_the_same() -> None:
    gradients = []
    for compiles in (False, True):
        net, task = make(config(disc_start=0, mirror=False))
        if compiles and not compile_modules(*net.compilable(), quiet=True):
            pytest.skip("no C++ compiler on this machine")
        for seed in range(2):  # what a second pass would find overwritten shows in the second batch
            net.zero_grad()
            run(net, task, discs(4), seed)
        gradients.append({name: p.grad for name, p in net.named_parameters()})
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-5)
