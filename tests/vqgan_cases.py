"""One tiny checkpoint per family, each with its family's own answer to encode and decode.

taming and diffusers answer with their own modules. The others have no package: their backbone is
taming's with the tensors renamed here, and their rule is stated again, plainly.
"""

import json
import re
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import save_file
from taming.modules.diffusionmodules.model import Decoder, Encoder
from taming.modules.vqvae.quantize import VectorQuantizer
from torch import Tensor, nn

CODES, WIDTH = 64, 8
DDCONFIG: dict[str, Any] = {
    "double_z": False,
    "z_channels": 16,
    "resolution": 32,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [8],
    "dropout": 0.0,
}


class TamingVQ(nn.Module):
    """taming's VQModel, composed of the modules that still import."""

    def __init__(self, ddconfig: dict[str, Any], width: int = WIDTH) -> None:
        super().__init__()
        with redirect_stdout(StringIO()):
            self.encoder = Encoder(**ddconfig)
            self.decoder = Decoder(**ddconfig)
        self.quantize = VectorQuantizer(CODES, width, 0.25)
        self.quant_conv = nn.Conv2d(ddconfig["z_channels"], width, 1)
        self.post_quant_conv = nn.Conv2d(width, ddconfig["z_channels"], 1)

    def latents(self, pixels: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(pixels))

    def pixels(self, vectors: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(vectors))


def random_images(count: int = 2, height: int = 32, width: int = 32) -> Tensor:
    """(count, 3, height, width) in [0, 1]."""
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(7))


def spread_out(model: nn.Module, codebook: nn.Parameter, latents: Callable[[], Tensor]) -> None:
    """Weights and codes as after training: biases and norms not trivial, codes among latents."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
        z = latents().transpose(0, 1).flatten(1)
        noise = torch.randn(codebook.shape, generator=generator)
        codebook.copy_(z.mean(1) + noise * z.std(1))


def nearest(latents: Tensor, codebook: Tensor) -> Tensor:
    """The L2 rule, stated plainly: (B, D, h, w), (K, D) -> (B, h, w)."""
    z = latents.permute(0, 2, 3, 1)
    return (z[..., None, :] - codebook).square().sum(-1).argmin(-1)


def vectors_of(tokens: Tensor, codebook: Tensor) -> Tensor:
    return codebook[tokens].permute(0, 3, 1, 2)


@dataclass
class Case:
    """A checkpoint on disk and what its family's own code makes of it, pixels in [0, 1]."""

    checkpoint: Path
    config: Path | None
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    keywords: dict[str, Any] = field(default_factory=dict)
    family: str = ""


def taming_model(ddconfig: dict[str, Any] | None = None, *, unit: bool = False) -> TamingVQ:
    torch.manual_seed(0)
    model = TamingVQ(ddconfig or DDCONFIG).eval()
    images = random_images() if unit else random_images() * 2 - 1
    spread_out(model, model.quantize.embedding.weight, lambda: model.latents(images))
    return model


def taming_config(
    ddconfig: dict[str, Any] | None = None,
    target: str = "taming.models.vqgan.VQModel",
    **params: Any,
) -> dict[str, Any]:
    inside = {"embed_dim": WIDTH, "n_embed": CODES, "ddconfig": ddconfig or DDCONFIG, **params}
    return {"target": target, "params": inside}


def write_yaml(path: Path, content: Any) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path


def _taming(folder: Path) -> Case:
    model = taming_model()
    state = model.state_dict() | {
        "loss.discriminator.main.0.weight": torch.ones(1),
        "loss.perceptual_loss.lin0.model.1.weight": torch.ones(1),
    }
    torch.save({"state_dict": state, "epoch": 3, "global_step": 1}, folder / "last.ckpt")
    config = write_yaml(folder / "model.yaml", {"model": taming_config()})
    return _l2_case(model, folder / "last.ckpt", config, "taming")


def _l2_case(model: TamingVQ, checkpoint: Path, config: Path, family: str) -> Case:
    def encode(images: Tensor) -> Tensor:
        latents = model.latents(images * 2 - 1)
        tokens = model.quantize(latents)[2][2]
        return tokens.view(len(images), *latents.shape[2:])

    def decode(tokens: Tensor) -> Tensor:
        shape = (*tokens.shape, WIDTH)
        vectors = model.quantize.get_codebook_entry(tokens.flatten(), shape)
        return ((model.pixels(vectors) + 1) / 2).clamp(0, 1)

    return Case(checkpoint, config, encode, decode, family=family)


def _combined(folder: Path) -> Case:
    """A GPT over a VQ-GAN, whose condition is encoded by a second VQ-GAN."""
    model, other = taming_model(), taming_model(DDCONFIG | {"num_res_blocks": 2})
    state = {f"first_stage_model.{name}": t for name, t in model.state_dict().items()}
    state |= {f"cond_stage_model.{name}": t for name, t in other.state_dict().items()}
    state |= {"transformer.tok_emb.weight": torch.ones(2, 2)}
    torch.save({"state_dict": state}, folder / "gpt.ckpt")
    params = {
        "first_stage_config": taming_config(),
        "cond_stage_config": taming_config(DDCONFIG | {"num_res_blocks": 2}),
    }
    target = "taming.models.cond_transformer.Net2NetTransformer"
    config = write_yaml(folder / "gpt.yaml", {"model": {"target": target, "params": params}})
    return _l2_case(model, folder / "gpt.ckpt", config, "taming")


def _gumbel(folder: Path) -> Case:
    width = DDCONFIG["z_channels"]
    torch.manual_seed(0)
    model = TamingVQ(DDCONFIG, width).eval()
    proj = nn.Conv2d(width, CODES, 1)
    latents = lambda: model.latents(random_images() * 2 - 1)  # noqa: E731
    spread_out(model, model.quantize.embedding.weight, latents)
    codebook = model.quantize.embedding.weight.detach()
    state = {n: t for n, t in model.state_dict().items() if not n.startswith("quantize.")}
    state |= {"quantize.proj.weight": proj.weight, "quantize.proj.bias": proj.bias}
    state |= {"quantize.embed.weight": codebook}
    torch.save({"state_dict": state}, folder / "gumbel.ckpt")
    return Case(
        folder / "gumbel.ckpt",
        write_yaml(
            folder / "gumbel.yaml",
            {"model": taming_config(target="taming.models.vqgan.GumbelVQ", embed_dim=width)},
        ),
        lambda images: proj(model.latents(images * 2 - 1)).argmax(1),
        lambda tokens: ((model.pixels(vectors_of(tokens, codebook)) + 1) / 2).clamp(0, 1),
        family="gumbel",
    )


def _without_attention(model: TamingVQ) -> TamingVQ:
    for half in (model.encoder, model.decoder):
        half.mid.attn_1 = nn.Identity()
        for level in getattr(half, "down", None) or half.up:
            level.attn = nn.ModuleList()
    return model


def _ldm(folder: Path) -> Case:
    """Attention nowhere (attn_type: none) and a tanh at the end, as in some first stages."""
    model = _without_attention(taming_model())
    images = random_images() * 2 - 1
    spread_out(model, model.quantize.embedding.weight, lambda: model.latents(images))
    state = model.state_dict() | {"loss.logvar": torch.ones(())}
    torch.save({"state_dict": state}, folder / "ldm.ckpt")
    ddconfig = DDCONFIG | {"attn_type": "none", "tanh_out": True}
    target = "ldm.models.autoencoder.VQModel"
    case = _l2_case(
        model,
        folder / "ldm.ckpt",
        write_yaml(folder / "ldm.yaml", {"model": taming_config(ddconfig, target)}),
        "ldm",
    )
    codebook = model.quantize.embedding.weight.detach()
    case.decode = lambda tokens: (model.pixels(vectors_of(tokens, codebook)).tanh() + 1) / 2
    return case


def _ldm_combined(folder: Path) -> Case:
    model = taming_model(DDCONFIG | {"attn_resolutions": []})
    state = {f"first_stage_model.{name}": t for name, t in model.state_dict().items()}
    state |= {
        "model.diffusion_model.input_blocks.0.0.weight": torch.ones(1),
        "model_ema.diffusion_modelinput_blocks00weight": torch.ones(1),
        "scale_factor": torch.tensor(0.18),
    }
    torch.save({"state_dict": state}, folder / "ldm.ckpt")
    stage = taming_config(
        DDCONFIG | {"attn_resolutions": [], "attn_type": "vanilla"},
        "ldm.models.autoencoder.VQModelInterface",
    )
    target = "ldm.models.diffusion.ddpm.LatentDiffusion"
    content = {"model": {"target": target, "params": {"first_stage_config": stage}}}
    config = write_yaml(folder / "ldm.yaml", content)
    return _l2_case(model, folder / "ldm.ckpt", config, "ldm")


def diffusers_model() -> Any:
    from diffusers import VQModel

    torch.manual_seed(0)
    model = VQModel(
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(32, 64, 96),
        layers_per_block=2,
        latent_channels=6,
        num_vq_embeddings=CODES,
        vq_embed_dim=4,
        norm_num_groups=16,
    ).eval()
    codebook = model.quantize.embedding.weight
    spread_out(model, codebook, lambda: model.encode(random_images()).latents)
    return model


def _diffusers(folder: Path) -> Case:
    """The aMUSEd flavour: pixels in [0, 1]."""
    model = diffusers_model()
    model.save_pretrained(folder)

    def encode(images: Tensor) -> Tensor:
        latents = model.encode(images).latents
        return model.quantize(latents)[2][2].view(len(images), *latents.shape[2:])

    def decode(tokens: Tensor) -> Tensor:
        vectors = model.quantize.get_codebook_entry(tokens, (*tokens.shape, 4))
        return model.decoder(model.post_quant_conv(vectors)).clamp(0, 1)

    return Case(folder, None, encode, decode, {"input_range": "unit"}, "diffusers")


def llamagen_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """taming's names as LlamaGen writes them: decoder levels from the lowest resolution."""
    last = len(DDCONFIG["ch_mult"]) - 1
    parts = {"block_1": "0", "attn_1": "1", "block_2": "2"}

    def rename(name: str) -> str:
        name = re.sub(r"\.mid\.(\w+)\.", lambda m: f".mid.{parts[m[1]]}.", name)
        name = re.sub(r"\.block\.", ".res.", name)
        name = re.sub(r"\.down\.", ".conv_blocks.", name)
        return re.sub(r"\.up\.(\d)", lambda m: f".conv_blocks.{last - int(m[1])}", name)

    return {rename(name): tensor.contiguous() for name, tensor in state.items()}


def _llamagen(folder: Path) -> Case:
    model = taming_model()
    state = llamagen_names(model.state_dict()) | {"quantize.codebook_used": torch.zeros(9)}
    stale = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    torch.save({"model": stale, "ema": state, "steps": 5}, folder / "vq.pt")
    codebook = F.normalize(model.quantize.embedding.weight.detach(), dim=1)

    def encode(images: Tensor) -> Tensor:
        z = F.normalize(model.latents(images * 2 - 1), dim=1)
        return torch.einsum("bdhw,kd->bkhw", z, codebook).argmax(1)

    def decode(tokens: Tensor) -> Tensor:
        return ((model.pixels(vectors_of(tokens, codebook)) + 1) / 2).clamp(0, 1)

    return Case(folder / "vq.pt", None, encode, decode, family="llamagen")


def _ibq(folder: Path) -> Case:
    """The averaged weights count; the live ones are beside them."""
    model = taming_model()
    live = {name: tensor + 0.1 for name, tensor in model.state_dict().items()}
    averages = {
        f"model_ema.{name.replace('.', '')}": tensor for name, tensor in model.state_dict().items()
    }
    counters = {"model_ema.decay": torch.tensor(0.9), "model_ema.num_updates": torch.tensor(3)}
    torch.save({"state_dict": live | averages | counters}, folder / "ibq.ckpt")
    args = taming_config()["params"] | {"use_ema": True, "beta": 0.25}
    content = {"model": {"class_path": "src.IBQ.models.ibqgan.IBQ", "init_args": args}}
    codebook = model.quantize.embedding.weight.detach()

    def encode(images: Tensor) -> Tensor:
        return torch.einsum("bdhw,kd->bkhw", model.latents(images * 2 - 1), codebook).argmax(1)

    def decode(tokens: Tensor) -> Tensor:
        return ((model.pixels(vectors_of(tokens, codebook)) + 1) / 2).clamp(0, 1)

    config = write_yaml(folder / "ibq.yaml", content)
    return Case(folder / "ibq.ckpt", config, encode, decode, family="ibq")


def _openmuse(folder: Path) -> Case:
    """One block a level: the file has the encoder's level attention, and openMUSE never runs it."""
    model = taming_model(unit=True)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    for level in model.encoder.down:
        level.attn = nn.ModuleList()
    content = {
        "_class_name": "VQGANModel",
        "resolution": 32,
        "num_channels": 3,
        "hidden_channels": 32,
        "channel_mult": [1, 2, 2],
        "num_res_blocks": 1,
        "attn_resolutions": [8],
        "no_attn_mid_block": False,
        "z_channels": 16,
        "num_embeddings": CODES,
        "quantized_embed_dim": WIDTH,
    }
    (folder / "config.json").write_text(json.dumps(content))
    codebook = model.quantize.embedding.weight.detach()
    return Case(
        folder,
        None,
        lambda images: nearest(model.latents(images), codebook),
        lambda tokens: model.pixels(vectors_of(tokens, codebook)).clamp(0, 1),
        family="openmuse",
    )


CASES: dict[str, Callable[[Path], Case]] = {
    "taming": _taming,
    "taming-combined": _combined,
    "gumbel": _gumbel,
    "ldm-no-attention-tanh": _ldm,
    "ldm-combined": _ldm_combined,
    "diffusers": _diffusers,
    "llamagen": _llamagen,
    "ibq": _ibq,
    "openmuse": _openmuse,
}


def save_safetensors(state: dict[str, Tensor], path: Path) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return path
