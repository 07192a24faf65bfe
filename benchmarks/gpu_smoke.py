"""Smoke checks of `gpu.py`: everything that users do, once, with an answer known beforehand.

    python benchmarks/gpu_smoke.py sample --device cuda --folder out/sample --result sample.json

Ends with exit code 1 where a check does not hold.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from gpu_checks import ROOT, Bench, curve, equal_share, photos, write_photos
from PIL import Image
from torch import Tensor

from hourglass_transformer import HourglassTransformer
from hourglass_transformer.layers import attend
from sundae.codec.interface import PixelCodec
from sundae.codec.vqgan import VQGANCodec, load_vqgan
from sundae.common.compiling import Compiled
from sundae.common.files import make_folder
from sundae.common.folders import remove_tree
from sundae.common.images import load_image, save_image, to_tensor
from sundae.common.precision import Precision, autocast, has_bf16
from sundae.config.run_file import RunConfig, load_config
from sundae.data.dataset import open_latents
from sundae.prior.categorical import draw_tokens, seeded_uniforms
from sundae.prior.checkpoint import load_weights
from sundae.prior.network import build_network
from sundae.prior.pretrained import BUNDLED
from sundae.prior.run import list_checkpoints
from sundae.sampling.sampler import BaseSampler, sample_seeds
from sundae.sampling.strategies import STRATEGIES
from sundae.training.prior import PriorTask
from utils import run_cli

DIGITS = ROOT / "config" / "digits" / "demo.toml"
WINDOWS = ROOT / "config" / "fashionmnist" / "cpu.toml"
CODEC = BUNDLED / "vqgan.safetensors"
CPU = torch.device("cpu")

# Share of equal tokens after a sampling in float32 that rounds differently. One near tie changes a
# token, which changes those after it: with weights that differ in their last bit, 97.6% were equal.
ALIKE = 0.9

# Options of torch.compile without the part that generates code.
SIMPLE = {"backend": "aot_eager"}

# Changes to the digits' run file that make a network of a few thousand parameters.
_TINY = ("net.dim=32", "net.nb_heads=2", "net.depth=[1,1,1]", "trainer.batch_size=16")


# -- training -------------------------------------------------------------------------------------


def check_train(bench: Bench) -> None:
    """60 steps on the digits, eager and compiled, learn the same."""
    data = digits(bench)
    every = "trainer.nb_batches=[20,4]"
    eager = train_digits(bench, data, "eager", 60, every, "trainer.compile=false")
    first, *_, last = curve(eager, "eval/loss")
    bench.check("training lowers the loss", last < 0.95 * first, f"{first:.4f} to {last:.4f}")
    bench.show("digits after 60 steps", sorted((eager / "samples").glob("*.png"))[-1])
    if bench.device.type == "cuda":
        bench.check("peak memory is logged", curve(eager, "peak_gb")[-1] > 0, "curves.csv")
    counters = compiler_counters()
    counters.clear()
    with simple_compiler(bench.tiny):
        compiled = train_digits(bench, data, "compiled", 60, every, "trainer.compile=true")
    graphs = counters["stats"]["unique_graphs"]
    bench.check("the network was compiled", graphs > 0, f"{graphs} graphs")
    other = curve(compiled, "eval/loss")[-1]
    bench.check("compiled training learns the same", math.isclose(other, last, rel_tol=0.03),
                f"{other:.4f} and {last:.4f}", "within 3%")  # fmt: skip


@contextmanager
def simple_compiler(tiny: bool) -> Iterator[None]:
    """If tiny, the compiler writes no code, which takes a CPU a minute: all before that runs."""
    before = torch.nn.Module.compile
    if tiny:
        torch.nn.Module.compile = partialmethod(before, **SIMPLE)  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.nn.Module.compile = before  # type: ignore[method-assign]


def check_resume(bench: Bench) -> None:
    """10 steps and 10 more after resuming give the weights of 20 steps at once.

    On a GPU, gradients of embeddings and of attention are sums in an order that varies, unless
    deterministic algorithms are on. Those that only warn leave attention's kernels as they
    are, so it does without.
    """
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # before CUDA starts
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    data, changes = digits(bench), ("trainer.nb_batches=[10,4]", "trainer.compile=false")
    runs = [train_digits(bench, data, name, 20, *changes) for name in ("first", "second")]
    middle, _ = list_checkpoints(runs[0])
    resumed = bench.folder / "resumed"
    bench.script("train", "--resume", middle, "--run-dir", resumed)
    first, second, third = (final_weights(run) for run in (*runs, resumed))
    again, resumption = difference(first, second), difference(first, third)
    bench.check("two runs with one seed have equal weights", again == 0, f"{again:.3g} apart")
    bench.check("resuming is bit for bit", resumption == 0, f"{resumption:.3g} apart")


def check_checkpointing(bench: Bench) -> None:
    """Gradient checkpointing changes memory, not gradients."""
    cfg = digits_config(bench)
    plain, peak = gradients(bench, cfg, checkpointing=False)
    recomputed, lower = gradients(bench, cfg, checkpointing=True)
    apart = max(((a - b).abs().max() / a.abs().max().clamp_min(1e-12)).item()
                for a, b in zip(plain, recomputed, strict=True))  # fmt: skip
    bench.check("gradients are the same", apart < 1e-4, f"{apart:.2g} apart", "relative, fp32")
    if bench.device.type == "cuda":
        bench.check("the peak of memory is lower", lower < peak, f"{lower:,} and {peak:,} bytes")


def check_windows(bench: Bench) -> None:
    """Where windows are shifted, compiled training has the gradients of eager training."""
    cfg = load_config(WINDOWS, ["trainer.batch_size=2"] if bench.tiny else ())
    eager, compiled = (
        torch.cat([grad.flatten() for grad in gradients(bench, cfg, precision="auto", **how)[0]])
        for how in ({}, {"compiled": True})
    )
    apart = ((compiled - eager).norm() / eager.norm()).item()
    bench.check("gradients as eager", apart < 0.05, f"{apart:.2g} apart", "relative, 0.05")


def gradients(
    bench: Bench,
    cfg: RunConfig,
    *,
    checkpointing: bool = False,
    compiled: bool = False,
    precision: Precision = "fp32",
) -> tuple[list[Tensor], int]:
    """Gradients of a batch, and the peak bytes of tensors on a GPU (0 on a CPU)."""
    net = random_network(cfg).to(bench.device).train()
    net.set_gradient_checkpointing(checkpointing)
    if compiled:
        with simple_compiler(bench.tiny):
            net.compile()
    rows = cfg.trainer.batch_size
    batch = {
        "tokens": torch.arange(rows * cfg.data.sequence_length).view(rows, -1)
        % cfg.data.vocab_size,
        "classes": torch.arange(rows) % cfg.net.num_classes,
    }
    batch = {name: value.to(bench.device) for name, value in batch.items()}
    cuda = bench.device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    generator = torch.Generator(bench.device).manual_seed(0)
    with autocast(bench.device, precision):
        for loss, _ in PriorTask(cfg).losses(net, batch, generator):
            loss.backward()
    grads = [p.grad.cpu() for p in net.parameters() if p.grad is not None]  # the next has room
    return grads, torch.cuda.max_memory_allocated() if cuda else 0


def digits(bench: Bench) -> Path:
    """A folder with the digits of `make demo`."""
    bench.script("generate-discrete-mnist", "digits", bench.folder / "digits", "--overwrite")
    return bench.folder / "digits"


def digits_config(bench: Bench) -> RunConfig:
    """The demo's run file, small if everything is."""
    return load_config(DIGITS, _TINY if bench.tiny else ())


def train_digits(bench: Bench, data: Path, name: str, steps: int, *changes: str) -> Path:
    """Run train.py on the digits; returns the run folder. Checkpoints are written every 10 steps,
    in which the learning rate rises.
    """
    run = bench.folder / name
    settings = (
        f"data.train_root={data / 'train'}",
        f"data.eval_root={data / 'eval'}",
        f"trainer.max_steps={steps}",
        "trainer.checkpoint_frequency=10",
        "trainer.keep_checkpoints=0",
        "sampling.steps=5",
        "sampling.nb_samples=20",
        *(_TINY if bench.tiny else ()),
        *changes,
    )
    flags = [word for setting in settings for word in ("--set", setting)]
    bench.script("train", "--cfg-path", DIGITS, "--seed", 0, "--run-dir", run, *flags)
    return run


def final_weights(run: Path) -> dict[str, Tensor]:
    """The last checkpoint's weights in training."""
    return load_weights(list_checkpoints(run)[-1] / "model.safetensors")


def difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """Largest absolute difference of two sets of weights."""
    return max((first[name] - second[name]).abs().max().item() for name in first)


# -- sampling -------------------------------------------------------------------------------------


def check_sample(bench: Bench) -> None:
    """The bundled model samples the same eager, compiled, with CUDA graphs, and on a CPU."""
    out = bench.folder / "samples"
    count, steps = (4, 4) if bench.tiny else (36, 40)
    bench.script("sample", "--seed", 0, "--nb-samples", count, "--steps", steps, "--no-compile",
                 "--out-dir", out, "--overwrite")  # fmt: skip
    bench.show("samples of the bundled model", out.with_name("samples-grid.png"))
    reference = sample_tokens(bench, bench.device, None)
    on_cpu = equal_share(reference, sample_tokens(bench, CPU, None))
    bench.check("tokens as on a CPU, fp32", on_cpu > ALIKE, f"{on_cpu:.2%} equal", "near ties may")
    variants = {"compiled": SIMPLE if bench.tiny else {"mode": "default"}}
    if bench.device.type == "cuda":
        variants["CUDA graphs"] = {}
    counters = compiler_counters()
    for name, options in variants.items():
        counters.clear()
        compiled = Compiled(bench.device, **options)
        tokens = sample_tokens(bench, bench.device, compiled)
        share = equal_share(reference, tokens)
        skips = counters["inductor"]["cudagraph_skips"]
        bench.check(f"{name}: it compiles", compiled.works, "torch.compile")
        bench.check(f"{name}: no graph is given up", skips == 0, f"{skips} skipped")
        bench.check(f"{name}: tokens as eager, fp32", share > ALIKE, f"{share:.2%} equal")


def sample_tokens(bench: Bench, device: torch.device, compiled: Compiled | None) -> Tensor:
    """(8, length) int64: tokens of the bundled model in float32 after 8 steps."""
    if bench.tiny:  # the bundled model takes half a minute to compile on a CPU
        sampler = random_sampler(digits_config(bench), device, precision="fp32")
    else:
        sampler = BaseSampler.from_pretrained(device=device, precision="fp32")
    sampler.compiled = compiled
    *_, last = sampler.refine(8, seed=0, steps=8, early_stop=False)
    return last.tokens.flatten(1).cpu()


def random_sampler(cfg: RunConfig, device: torch.device, **options: Any) -> BaseSampler:
    """A sampler of `random_network`."""
    codec = PixelCodec(cfg.data.vocab_size)
    return BaseSampler(random_network(cfg).to(device), codec, cfg, device=device, **options)


def random_network(cfg: RunConfig) -> HourglassTransformer:
    """A network whose logits say something although it has learned nothing."""
    torch.manual_seed(0)
    net = build_network(cfg)
    torch.nn.init.normal_(net.to_logits.weight, std=0.1)  # it starts at zero
    return net


def check_canvas(bench: Bench) -> None:
    """A canvas larger than the grid."""
    out = bench.folder / "canvas"
    bench.script("sample", "--seed", 0, "--canvas", "20x28", "--nb-samples", 1 if bench.tiny else 8,
                 "--steps", 3 if bench.tiny else 30, "--cuda-vqgan", "--out-dir", out,
                 "--overwrite")  # fmt: skip
    size = Image.open(out / "00000.png").size
    bench.check("pixels of the canvas", size == (112, 80), size, "28x20 tokens of 4x4 pixels")
    bench.show("on a canvas of 20x28 tokens", out.with_name("canvas-grid.png"))


def check_inpaint(bench: Bench) -> None:
    """Inpainting changes the hole only."""
    photo = write_photos(bench.folder / "photos", 1, 64)[0]
    hole = torch.zeros(1, 64, 64).bool()
    hole[:, 20:44, 20:44] = True
    save_image(hole.float().expand(3, -1, -1), bench.folder / "hole.png")
    out = bench.folder / "inpainted"
    bench.script("inpaint", bench.folder / "photos", "--mask", bench.folder / "hole.png", "--seed",
                 0, "--nb-samples", 2, "--steps", 3 if bench.tiny else 30, "--cuda-vqgan",
                 "--out-dir", out, "--overwrite")  # fmt: skip
    changed = (to_tensor(load_image(out / "000" / "00000.png")) - photo).abs()
    kept = changed.masked_fill(hole, 0).max().item() * 255
    painted = changed[hole.expand_as(changed)].mean().item() * 255
    bench.check("known pixels stay", kept < 1.5, f"{kept:.2f} grey levels")
    bench.check("the hole is painted", painted > 1, f"{painted:.1f} grey levels")
    bench.show("inpainted", out / "000-grid.png")


# -- kernels --------------------------------------------------------------------------------------


def check_kernels(bench: Bench) -> None:
    """Draws are those of a CPU, to the bit; attention is right at every shape that is special."""
    seeds = sample_seeds(0, 4)
    for length in (64, 256, 1024):
        expected = seeded_uniforms(seeds, 3, length)
        found = seeded_uniforms(seeds.to(bench.device), 3, length).cpu()
        bench.check(f"noise of {length} tokens", equal_share(expected, found) == 1, "bits of a CPU")
    for codes in (17, 8192):
        logits, uniforms = torch.randn(512, codes), torch.rand(512)
        expected = draw_tokens(logits, uniforms)
        found = draw_tokens(logits.to(bench.device), uniforms.to(bench.device)).cpu()
        # Softmax differs in its last bit, which moves an edge between two codes by 2**-24.
        share = equal_share(expected, found)
        bench.check(f"draws among {codes} codes", share > 0.99, f"{share:.2%} equal")
    cells = 2**6 if bench.tiny else 2**16
    for name, shape, keys, masked in (
        ("the cells of 256 images", (cells, 2, 1, 64), 4, False),
        ("shifted windows", (cells // 128 or 1, 8, 64, 64), 64, True),
        ("32x32 tokens", (2, 4, 1024, 64), 1024, False),
    ):
        worst, finite = attention_error(bench.device, shape, keys, masked)
        bench.check(f"attention of {name}", finite and worst < 0.02, f"{worst:.2g} off",
                    "bf16 against fp32, with gradients")  # fmt: skip


def attention_error(
    device: torch.device, shape: tuple[int, int, int, int], keys: int, masked: bool
) -> tuple[float, bool]:
    """Of `attend` in bfloat16 against plain products in float32, with its gradients.

    Returns:
        the largest ratio of norms (made - right) / right, and whether all numbers are finite.
    """
    batch, heads, queries, width = shape
    q = torch.randn(shape, device=device, requires_grad=True)
    k, v = (torch.randn(batch, heads, keys, width, device=device, requires_grad=True)
            for _ in range(2))  # fmt: skip
    mask = torch.rand(batch, 1, queries, keys, device=device) < 0.5 if masked else None
    if mask is not None:
        mask[..., 0] = True  # nobody looks at nothing
    made = attend(q.bfloat16(), k.bfloat16(), v.bfloat16(), mask).float()
    scores = q @ k.mT * width**-0.5
    right = (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(-1) @ v
    pull = torch.randn_like(right)
    pairs = [(made, right), *zip(torch.autograd.grad(made, (q, k, v), pull),
                                 torch.autograd.grad(right, (q, k, v), pull))]  # fmt: skip
    worst = max(((a - b).norm() / b.norm()).item() for a, b in pairs)
    return worst, all(bool(a.isfinite().all()) for a, _ in pairs)


def check_waiting(bench: Bench) -> None:
    """Neither a sampling step nor a training step makes the host wait for the GPU."""
    cfg, device = digits_config(bench), bench.device
    sampler = random_sampler(cfg, device)
    net, classes = sampler.network, (torch.arange(8) % cfg.net.num_classes).to(device)
    for strategy in STRATEGIES:
        schedule = replace(cfg.sampling, strategy=strategy, steps=6, early_stop=False)
        running = sampler.refine_tokens(sample_seeds(0, 8).to(device), classes, schedule)
        next(running), next(running)  # the first step may wait
        does_not_wait(bench, strategy, lambda running=running: list(running))
    tokens = torch.zeros(8, cfg.data.sequence_length, dtype=torch.int64, device=device)
    batch, task = {"tokens": tokens, "classes": classes}, PriorTask(cfg)
    generator = torch.Generator(device).manual_seed(0)

    def step() -> None:
        for loss, _ in task.losses(net.train(), batch, generator):
            loss.backward()

    step()
    does_not_wait(bench, "a training step", step)


def does_not_wait(bench: Bench, name: str, call: Callable[[], object]) -> None:
    """Note whether a call runs while CUDA refuses to make the host wait."""
    problem = ""
    try:
        with refusing_to_wait(bench.device.type == "cuda"):
            call()
    except RuntimeError as error:
        problem = str(error).splitlines()[0]
    bench.check(f"{name} does not wait", not problem, problem or "done")


@contextmanager
def refusing_to_wait(cuda: bool) -> Iterator[None]:
    """On CUDA, what makes the host wait raises RuntimeError."""
    if cuda:
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if cuda:
            torch.cuda.set_sync_debug_mode("default")


# -- the codec ------------------------------------------------------------------------------------


def check_codec(bench: Bench) -> None:
    """The bundled codec encodes and decodes as on a CPU, in float32 and in bfloat16."""
    images = photos(4 if bench.tiny else 64, 64)
    reference = load_vqgan(CODEC, precision="fp32")
    tokens = reference.encode(images)
    pixels = reference.decode(tokens)
    # TF32 in convolutions has 10 bits of each factor, as PyTorch's default allows.
    for name, precision, tf32, share, decibels in (
        ("fp32", "fp32", False, 0.999, 60),
        ("fp32 with TF32", "fp32", True, 0.97, 45),
        ("bf16", "bf16", True, 0.93, 33),
    ):
        if precision == "bf16" and not has_bf16(bench.device):
            continue
        codec = load_vqgan(CODEC, precision=precision).to(bench.device)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=tf32):
            found = encoded(codec, images.to(bench.device))
            decoded = codec.decode(tokens.to(bench.device)).float().cpu()
        equal, quality = equal_share(tokens, found), decibel(decoded, pixels)
        bench.check(f"{name}: tokens", equal >= share, f"{equal:.2%} equal", f"{share:.1%}")
        bench.check(f"{name}: pixels", quality > decibels, f"{quality:.1f} dB", f"{decibels} dB")


def encoded(codec: VQGANCodec, images: Tensor) -> Tensor:
    """(B, h, w) int64 on the CPU."""
    return codec.encode(images).cpu()


def decibel(found: Tensor, expected: Tensor) -> float:
    """Peak signal to noise ratio of images in [0, 1]; infinite for equal ones."""
    error = (found - expected).square().mean().item()
    return -10 * math.log10(error) if error else math.inf


def check_latents(bench: Bench) -> None:
    """generate-latents.py writes the tokens that a CPU computes, eager and compiled."""
    count = 8 if bench.tiny else 64
    images = write_photos(bench.folder / "photos", count, 64)
    expected = load_vqgan(CODEC, precision="fp32").encode((images * 255).round() / 255)
    for name in ("no-compile",) if bench.tiny else ("no-compile", "compile"):
        out = bench.folder / name
        bench.script("generate-latents", "--ckpt-path", CODEC, "--dataset-in",
                     bench.folder / "photos", "--latents-out", out, "--no-aug", "--nb-workers", 2,
                     f"--{name}")  # fmt: skip
        found = torch.as_tensor(open_latents(out).tokens[:].astype("int64"))
        bench.check(f"{name}: rows", len(found) == count, len(found), str(count))
        share = equal_share(found, expected)
        bench.check(f"{name}: tokens as on a CPU", share > 0.93, f"{share:.2%} equal",
                    "auto against fp32")  # fmt: skip


def check_codec_training(bench: Bench) -> None:
    """20 steps of train-vqgan.py with its discriminator, evaluation and checkpoint."""
    write_photos(bench.folder / "photos", 20 if bench.tiny else 64, 64)
    settings = [
        "training.perceptual=none",
        "training.max_steps=20",
        "training.disc_start=5",
        "training.quantise_start=2",
        "training.nb_batches=[10,0]",
        "training.checkpoint_frequency=20",
        "training.restart_every=5",
        "training.compile=false",
        *(["training.batch_size=2"] if bench.tiny else []),
    ]
    run = bench.folder / "run"
    bench.script("train-vqgan", "--cfg-path", ROOT / "config/vqgan/emoji64.yaml", "--seed", 0,
                 "--dataset-in", bench.folder / "photos", "--run-dir", run,
                 *(word for setting in settings for word in ("--set", setting)))  # fmt: skip
    losses = curve(run, "train/reconstruction")
    bench.check("the reconstruction improves", losses[-1] < losses[0], losses)
    hinge = curve(run, "train/discriminator")
    bench.check("the discriminator learns", 0 < hinge[-1] < 2, hinge)
    bench.check("a checkpoint is written", bool(list_checkpoints(run)), run.name)
    bench.show("reconstructions after 20 steps",
               sorted((run / "reconstructions").glob("*.png"))[-1])  # fmt: skip


# -- the command ----------------------------------------------------------------------------------


def compiler_counters() -> Any:
    """What the compiler counts: (group) -> (name) -> number. Importing it takes seconds."""
    from torch._dynamo.utils import counters

    return counters


CHECKS: dict[str, Callable[[Bench], None]] = {
    "train": check_train,
    "sample": check_sample,
    "kernels": check_kernels,
    "codec": check_codec,
    "resume": check_resume,
    "latents": check_latents,
    "codec-training": check_codec_training,
    "windows": check_windows,
    "waiting": check_waiting,
    "checkpointing": check_checkpointing,
    "canvas": check_canvas,
    "inpaint": check_inpaint,
}


def main() -> None:
    """Run one check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=CHECKS)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="as small as it can be")
    parser.add_argument("--folder", type=Path, required=True, help="scratch space")
    parser.add_argument("--result", type=Path, required=True, help="JSON file for the findings")
    args = parser.parse_args()
    remove_tree(args.folder)
    make_folder(args.folder)
    make_folder(args.result.parent)
    bench = Bench(torch.device(args.device), args.tiny, args.folder, args.result)
    CHECKS[args.name](bench)
    if not bench.passed:
        sys.exit(1)


if __name__ == "__main__":
    run_cli(main)
