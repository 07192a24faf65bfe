"""Our VQ-GAN codec beside taming-transformers' own modules: time, memory, and equal results.

Both have the same random weights and are interleaved; ratios are those within a round. The tables
show medians and, behind them, the range over rounds.

    python benchmarks/codec.py --threads 2 --json codec.json
    python benchmarks/codec.py --device cuda --batch-size 16
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

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from measuring import (
    in_child,
    interleaved,
    machine,
    machine_line,
    memory,
    print_times,
    tiny_codec,
)

from sundae.codec.vqgan import VQGANCodec, new_vqgan
from sundae.codec.vqgan.quantise import Quantiser
from sundae.common.errors import UserError
from sundae.common.files import write_text
from sundae.common.precision import has_bf16
from sundae.config.yaml_file import read_yaml
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
    latents: tuple[int, int, int] = (16384, 16384, 256)  # of the quantiser: tokens, codes, width

    def begin(self) -> None:
        """Configures the process that measures."""
        torch.set_num_threads(self.threads)
        torch.set_grad_enabled(False)
        torch.manual_seed(0)


class Taming(nn.Module):
    """taming's VQModel put together from its modules, since the class no longer imports."""

    def __init__(self, config: Path) -> None:
        super().__init__()
        params = read_yaml(config)["model"]["params"]
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
        """Tokens (B, h, w) -> (B, 3, H, W) in [0, 1]."""
        shape = (*tokens.shape, self.quantize.e_dim)
        vectors = self.quantize.get_codebook_entry(tokens.flatten(), shape)
        return ((self.decoder(self.post_quant_conv(vectors)) + 1) / 2).clamp(0, 1)


def same_weights(setup: Setup) -> tuple[dict[str, Any], Tensor]:
    """The codecs by name, and images (B, 3, H, W) whose latents their codebook covers."""
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
    """Encoding and decoding, and how far the results are apart."""
    codecs, images = same_weights(setup)
    tokens = codecs[TAMING].encode(images)
    pixels = codecs[TAMING].decode(tokens)
    seconds = {}
    for direction, given in (("decode", tokens), ("encode", images)):
        calls = {name: partial(getattr(codec, direction), given) for name, codec in codecs.items()}
        seconds[direction] = interleaved(calls, setup.rounds, setup.device)
        title = f"{direction} {len(images)} x {setup.side}x{setup.side} px"
        print_times(title, seconds[direction])
    agreement: dict[str, Any] = {}
    for name, codec in list(codecs.items())[1:]:
        equal = float((codec.encode(images) == tokens).float().mean())
        apart = float((codec.decode(tokens) - pixels).abs().max())
        agreement[name] = {"equal_tokens": equal, "largest_pixel_difference": apart}
        print(f"  {name}: {equal:.1%} of taming's tokens, its pixels within {apart:.1e}")
    return {"seconds": seconds, "agreement": agreement}


def quantisers(setup: Setup) -> dict[str, Callable[[], Tensor]]:
    """Calls by name that find the codes of the same latents."""
    tokens, codes, width = setup.latents
    latents = torch.randn(1, width, tokens // 16, 16, device=setup.device)
    taming = VectorQuantizer(codes, width, 0.25).to(setup.device)
    taming.embedding.weight.normal_()
    ours = Quantiser(codes, width).to(setup.device)
    ours.load_state_dict(taming.state_dict())
    return {
        TAMING: lambda: taming(latents)[2][2].flatten(),
        OURS: lambda: ours(latents).flatten(),
    }


def measure_quantiser(setup: Setup) -> dict[str, Any]:
    """Time, interleaved; memory of each in a process of its own."""
    calls = quantisers(setup)
    equal = float((calls[TAMING]() == calls[OURS]()).float().mean())
    seconds = interleaved(calls, setup.rounds, setup.device)
    extra = {name: in_child(quantiser_memory, setup, name) for name in calls}
    print_times("quantise {} tokens, {} codes".format(*setup.latents), seconds)
    for name, bytes_more in extra.items():
        print(f"  {name}: {bytes_more / 1e6:,.0f} MB above its inputs")
    print(f"  {equal:.2%} of the tokens are equal")
    return {"seconds": seconds, "extra_bytes": extra, "equal_tokens": equal}


def quantiser_memory(setup: Setup, name: str) -> int:
    """Bytes of one call at its peak beyond its inputs; runs in a fresh process."""
    setup.begin()
    call = quantisers(setup)[name]
    before = memory(setup.device, peak=False)
    call()
    return memory(setup.device, peak=True) - before


def parse_args() -> argparse.Namespace:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch-size", type=int, default=1, help="images at once (default: 1)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU")
    parser.add_argument("--rounds", type=int, default=5, help="to take medians of (default: 5)")
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
        if args.quick:
            path = tiny_codec(setup.config, Path(folder))
            setup = replace(setup, config=path, side=32, latents=(256, 512, 16))
        setup.begin()
        results: dict[str, Any] = {"machine": machine(setup.device)}
        print(machine_line(results["machine"]), flush=True)
        results |= {"codec": measure_codec(setup), "quantiser": measure_quantiser(setup)}
    if args.json:
        write_text(args.json, json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    run_cli(main)
