"""Our VQ-GAN codec against taming-transformers' own modules: time, memory, and the same answers.

Both hold the same random weights and take turns; ratios are those within a round. The tables show
medians and, behind them, the range over rounds.

    python benchmarks/codec.py --threads 2 --megapixel --json codec.json
    python benchmarks/codec.py --device cuda --batch-size 16 --megapixel
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from measuring import (
    in_child,
    interleaved,
    machine,
    median_and_range,
    memory,
    print_times,
    tiny_codec,
)

from sundae.codec.encoding import generate_latents
from sundae.codec.vqgan import VQGANCodec, new_vqgan
from sundae.codec.vqgan.quantise import Quantiser
from sundae.common.errors import UserError
from sundae.common.files import write_text
from sundae.common.precision import has_bf16
from utils import run_cli

try:
    from taming.modules.diffusionmodules.model import Decoder, Encoder
    from taming.modules.vqvae.quantize import VectorQuantizer
except ImportError:
    VectorQuantizer = None

CONFIGS = Path(__file__).resolve().parents[1] / "config" / "vqgan"
TAMING, OURS, OURS_BF16 = "taming fp32", "ours fp32", "ours bf16"


@dataclass(frozen=True)
class Setup:
    """What is measured, and where; child processes get it too."""

    device: str
    threads: int
    rounds: int
    batch_size: int
    config: Path = CONFIGS / "ffhq256.yaml"
    side: int = 256
    large_config: Path = CONFIGS / "ffhq1024.yaml"
    large_side: int = 1024
    tokens: int = 16384  # that the quantiser makes,
    codes: int = 16384  # among so many codes
    width: int = 256  # of so many numbers

    def begin(self) -> None:
        """Puts the process that measures in order."""
        torch.set_num_threads(self.threads)
        torch.set_grad_enabled(False)
        torch.manual_seed(0)


def tiny(setup: Setup, folder: Path) -> Setup:
    """The same with everything small, to see whether it works."""
    path = tiny_codec(setup.config, folder)
    small = replace(setup, config=path, side=32, large_config=path, large_side=64)
    return replace(small, tokens=256, codes=512, width=16)


class Taming(nn.Module):
    """taming's VQModel put together from its modules, since the class no longer imports."""

    def __init__(self, config: Path) -> None:
        super().__init__()
        params = yaml.safe_load(config.read_text(encoding="utf-8"))["model"]["params"]
        channels, width = params["ddconfig"]["z_channels"], params["embed_dim"]
        with redirect_stdout(StringIO()):  # it prints the shape of its latents
            self.encoder = Encoder(**params["ddconfig"])
            self.decoder = Decoder(**params["ddconfig"])
        self.quantize = VectorQuantizer(params["n_embed"], width, 0.25)
        self.quant_conv = nn.Conv2d(channels, width, 1)
        self.post_quant_conv = nn.Conv2d(width, channels, 1)

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> tokens (B, h, w)."""
        latents = self.quant_conv(self.encoder(images * 2 - 1))
        return self.quantize(latents)[2][2].view(len(latents), *latents.shape[2:])

    def decode(self, tokens: Tensor) -> Tensor:
        """tokens (B, h, w) -> (B, 3, H, W) in [0, 1]."""
        shape = (*tokens.shape, self.quantize.e_dim)
        vectors = self.quantize.get_codebook_entry(tokens.flatten(), shape)
        return ((self.decoder(self.post_quant_conv(vectors)) + 1) / 2).clamp(0, 1)


def same_weights(setup: Setup) -> tuple[dict[str, Any], Tensor]:
    """The codecs by name, and pictures (B, 3, H, W) whose latents their codebook covers."""
    ours = new_vqgan(setup.config, precision="fp32").to(setup.device)
    images = torch.rand(setup.batch_size, 3, setup.side, setup.side, device=setup.device)
    latents = ours.model.encode(images * 2 - 1).transpose(0, 1).flatten(1)
    codebook = ours.model.quantize.embedding.weight
    codebook.copy_(latents.mean(1) + torch.randn_like(codebook) * latents.std(1))
    taming = Taming(setup.config).eval().to(setup.device)
    taming.load_state_dict(ours.model.state_dict())
    codecs = {TAMING: taming, OURS: ours}
    if has_bf16(ours.device):
        codecs[OURS_BF16] = VQGANCodec(ours.model, ours.rules, precision="bf16")
    return codecs, images


def measure_codec(setup: Setup) -> dict[str, Any]:
    """Encoding and decoding, and how far the answers are apart."""
    codecs, images = same_weights(setup)
    tokens = codecs[TAMING].encode(images)
    pixels = codecs[TAMING].decode(tokens)
    seconds = {}
    for way, given in (("decode", tokens), ("encode", images)):
        calls = {name: partial(getattr(codec, way), given) for name, codec in codecs.items()}
        seconds[way] = interleaved(calls, setup.rounds, setup.device)
        print_times(f"{way} {len(images)} x {setup.side}x{setup.side} px", seconds[way])
    agreement: dict[str, Any] = {}
    for name, codec in list(codecs.items())[1:]:
        equal = float((codec.encode(images) == tokens).float().mean())
        apart = float((codec.decode(tokens) - pixels).abs().max())
        agreement[name] = {"equal_tokens": equal, "largest_pixel_difference": apart}
        print(f"  {name}: {equal:.1%} of taming's tokens, its pixels within {apart:.1e}")
    return {"seconds": seconds, "agreement": agreement}


def quantisers(setup: Setup) -> dict[str, Callable[[], Tensor]]:
    """Calls by name that find the codes of the same latents."""
    latents = torch.randn(1, setup.width, setup.tokens // 16, 16, device=setup.device)
    taming = VectorQuantizer(setup.codes, setup.width, 0.25).to(setup.device)
    taming.embedding.weight.normal_()
    ours = Quantiser(setup.codes, setup.width).to(setup.device)
    ours.load_state_dict(taming.state_dict())
    return {
        TAMING: lambda: taming(latents)[2][2].flatten(),
        OURS: lambda: ours(latents).flatten(),
    }


def measure_quantiser(setup: Setup) -> dict[str, Any]:
    """Time in turns; memory of each in a process of its own."""
    calls = quantisers(setup)
    equal = float((calls[TAMING]() == calls[OURS]()).float().mean())
    seconds = interleaved(calls, setup.rounds, setup.device)
    extra = {name: in_child(quantiser_memory, setup, name) for name in calls}
    print_times(f"quantise {setup.tokens} tokens, {setup.codes} codes", seconds)
    for name, bytes_more in extra.items():
        print(f"  {name}: {bytes_more / 1e6:,.0f} MB above its inputs")
    print(f"  {equal:.2%} of the tokens are equal")
    return {"seconds": seconds, "extra_bytes": extra, "equal_tokens": equal}


def quantiser_memory(setup: Setup, name: str) -> int:
    """Bytes that one call needs at its peak beyond its inputs; runs in a fresh process."""
    setup.begin()
    call = quantisers(setup)[name]
    before = memory(setup.device, peak=False)
    call()
    return memory(setup.device, peak=True) - before


def measure_generation(setup: Setup, folder: Path) -> dict[str, Any]:
    """Pictures a second from JPEG files to latents on disk, each and its mirror image."""
    codec = new_vqgan(setup.config).to(setup.device)
    random, count = np.random.default_rng(0), 8 * setup.batch_size
    for index in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        coarse.resize((setup.side, setup.side)).save(folder / f"{index}.jpg")

    def run() -> None:
        generate_latents(codec, folder, folder / "out", overwrite=True,
                         batch_size=setup.batch_size, device=setup.device)  # fmt: skip

    (seconds,) = interleaved({"": run}, setup.rounds, setup.device).values()
    rates = [count / s for s in seconds]
    print(f"\ngenerate-latents, {count} JPEGs of {setup.side}x{setup.side} px, mirrored as well")
    print(f"  {'pictures':<12}{median_and_range(rates, ' /s')}".rstrip(), flush=True)
    return {"pictures_per_second": rates}


def megapixel(setup: Setup, precision: str) -> dict[str, float]:
    """One large picture there and back; runs in a fresh process."""
    setup.begin()
    codec = new_vqgan(setup.large_config, precision=precision).to(setup.device)
    images = torch.rand(1, 3, setup.large_side, setup.large_side, device=setup.device)
    tokens = codec.encode(images)
    calls = {"encode": lambda: codec.encode(images), "decode": lambda: codec.decode(tokens)}
    seconds = interleaved(calls, 1, setup.device)
    once = {f"{way}_seconds": times[0] for way, times in seconds.items()}
    return once | {"peak_bytes": memory(setup.device, peak=True)}


def measure_megapixel(setup: Setup) -> dict[str, Any]:
    """Time and memory in fp32, and in bf16 where the device has it."""
    precisions = ["fp32"] + ["bf16"] * has_bf16(torch.device(setup.device))
    results = {precision: in_child(megapixel, setup, precision) for precision in precisions}
    whose = "the GPU's tensors" if setup.device == "cuda" else "the whole process"
    print(f"\n1 x {setup.large_side}x{setup.large_side} px, one round; peak of {whose}")
    for precision, found in results.items():
        print(f"  {f'ours {precision}':<12}encode {found['encode_seconds']:.3g} s, "
              f"decode {found['decode_seconds']:.3g} s, "
              f"peak {found['peak_bytes'] / 1e9:.2f} GB")  # fmt: skip
    return results


def parse_args() -> argparse.Namespace:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch-size", type=int, default=1, help="pictures at once (default: 1)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU")
    parser.add_argument("--rounds", type=int, default=5, help="to take medians of (default: 5)")
    parser.add_argument("--megapixel", action="store_true", help="also one 1024x1024 picture")
    parser.add_argument("--quick", action="store_true", help="tiny codec: does it work?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    args = parser.parse_args()
    if min(args.batch_size, args.threads, args.rounds) < 1:
        parser.error("--batch-size, --threads and --rounds start at 1")
    return args


def main() -> None:
    """Measures one thing after the other, printing each table when it is done."""
    args = parse_args()
    if VectorQuantizer is None:
        raise UserError("taming-transformers is missing: pip install -r requirements-dev.txt")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: there is no CUDA device; leave it out")
    setup = Setup(args.device, args.threads, args.rounds, args.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        setup = tiny(setup, Path(folder)) if args.quick else setup
        setup.begin()
        results: dict[str, Any] = {"machine": machine(setup.device)}
        print(", ".join(f"{key} {value}" for key, value in results["machine"].items()), flush=True)
        results |= {"codec": measure_codec(setup), "quantiser": measure_quantiser(setup)}
        results["generation"] = measure_generation(setup, Path(folder))
        if args.megapixel:
            results["megapixel"] = measure_megapixel(setup)
    if args.json:
        write_text(args.json, json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    run_cli(main)
