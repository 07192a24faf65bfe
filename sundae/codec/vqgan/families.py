"""Every family of VQ-GAN checkpoints this package loads. One entry of FAMILIES makes a new one.

An entry says how a config names the family, which facts its keys declare about the network, how the
tensors are named, and the rules that tensors cannot show (tests/vqgan_cases.py compares each with
the family's own code).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Config = Mapping[str, Any]

# A key of a config, the facts that its value declares (see `Architecture.facts` and `Declaration`),
# and where the value alone does not say it, a function of the whole config; None declares nothing.
Row = tuple[str, str] | tuple[str, str, Callable[[Config], Any]]


@dataclass(frozen=True)
class Naming:
    """Names of tensors, brought to taming's by substitutions.

    Attributes:
        title: the family that brought them up, for messages.
        signature: pattern that the name of some tensor matches; "" for taming's own.
        renames: (pattern, replacement) each, in this order.
    """

    title: str
    signature: str
    renames: tuple[tuple[str, str], ...]


TAMING = Naming(
    "taming VQModel", "", ((r"^quantize\.embed\.weight$", "quantize.embedding.weight"),)
)
LLAMAGEN = Naming(
    "LlamaGen VQModel",
    r"encoder\.conv_blocks\.\d+\.res\.",
    (
        (r"\.mid\.0\.", ".mid.block_1."),
        (r"\.mid\.1\.", ".mid.attn_1."),
        (r"\.mid\.2\.", ".mid.block_2."),
        (r"\.res\.", ".block."),
        (r"^encoder\.conv_blocks\.", "encoder.down."),
    ),
)
DIFFUSERS = Naming(
    "diffusers VQModel",
    r"encoder\.down_blocks\.\d+\.resnets\.",
    (
        (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
        (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
        (r"\.mid_block\.attentions\.0\.", ".mid.attn_1."),
        (r"\.resnets\.", ".block."),
        (r"\.conv_shortcut\.", ".nin_shortcut."),
        (r"\.attentions\.", ".attn."),
        (r"(\.attn(?:_1|\.\d+)\.)group_norm\.", r"\1norm."),
        (r"(\.attn(?:_1|\.\d+)\.)(?:to_q|query)\.", r"\1q."),
        (r"(\.attn(?:_1|\.\d+)\.)(?:to_k|key)\.", r"\1k."),
        (r"(\.attn(?:_1|\.\d+)\.)(?:to_v|value)\.", r"\1v."),
        (r"(\.attn(?:_1|\.\d+)\.)(?:to_out\.0|proj_attn)\.", r"\1proj_out."),
        (r"\.downsamplers\.0\.", ".downsample."),
        (r"\.upsamplers\.0\.", ".upsample."),
        (r"\.conv_norm_out\.", ".norm_out."),
        (r"^encoder\.down_blocks\.", "encoder.down."),
    ),
)
NAMINGS = (LLAMAGEN, DIFFUSERS, TAMING)


def _levels(config: Config) -> list[int] | None:
    """Levels with attention: those whose side, from the nominal resolution, is listed."""
    sides, resolution = config.get("attn_resolutions"), config.get("resolution")
    factors = config.get("ch_mult") or config.get("channel_mult")
    if config.get("attn_type") == "none":
        return []
    if sides is None or factors is None:
        return None
    sides = sides if isinstance(sides, list) else [sides]
    if sides and not isinstance(resolution, int):
        raise TypeError(f"attn_resolutions {sides} need an integer resolution beside them")
    return [i for i in range(len(factors)) if sides and resolution // 2**i in sides]


def _attention_blocks(key: str, step: int) -> Callable[[Config], list[int] | None]:
    """Levels whose block type is an attention one; step -1 for types from the lowest resolution."""

    def levels(config: Config) -> list[int] | None:
        types = config.get(key)
        if types is None:
            return None
        return [level for level, name in enumerate(types[::step]) if str(name).startswith("Attn")]

    return levels


def _openmuse_widths(config: Config) -> list[int] | None:
    """Of the decoder, for which both keys may be set apart."""
    keys = ("hidden_channels", "channel_mult")
    width, factors = (config.get(f"decoder_{key}") or config.get(key) for key in keys)
    return None if width is None or factors is None else [width * factor for factor in factors]


def _openmuse_blocks(config: Config) -> Any:
    """One number for all levels of the decoder, or a list with one for each."""
    blocks = config.get("decoder_res_blocks") or config.get("num_res_blocks")
    return blocks[0] if isinstance(blocks, list) and len(set(blocks)) == 1 else blocks


def _unless(key: str) -> Callable[[Config], bool | None]:
    return lambda config: None if config.get(key) is None else not config[key]


# Keys of a training config's `params` and, below that, `ddconfig`.
_TRAINING_ROWS: tuple[Row, ...] = (
    ("n_embed", "codebook_size"),
    ("embed_dim", "embed_dim"),
    ("ch", "stem"),
    ("ch_mult", "ch_mult decoder_ch_mult"),
    ("num_res_blocks", "res_blocks decoder_res_blocks"),
    ("attn_resolutions", "attention decoder_attention", _levels),
    ("attn_type", "mid_attention", lambda config: config.get("attn_type") != "none"),
    ("z_channels", "z_channels"),
    ("double_z", "double_z"),
    ("in_channels", "in_channels"),
    ("out_ch", "out_channels"),
    ("resamp_with_conv", "resample_conv"),
    ("num_groups", "groups"),  # a key of ours: taming and its descendants always have 32
    ("resolution", "resolution"),
    ("tanh_out", "tanh_out"),
)
_TRAINING_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "attn_type": ("vanilla", "none"),
    "l2_normalize": (False,),
    "cosine_similarity": (False,),
}


@dataclass(frozen=True, kw_only=True)
class Family:
    """All that checkpoints of a family share.

    Attributes:
        title: for messages.
        distance: how the codebook is searched, see `Quantiser`.
        input_range: pixels of the network, signed or unit; None where files of the family differ.
        targets: endings of the class that a training config names by `target` or `class_path`;
            packages get vendored under any root.
        hub_class: `_class_name` in the config.json of a model hub.
        hub_keys: keys that only the family's JSON has, which names no class.
        rows: the facts that keys of the config declare.
        supported: the values that keys may have, where they are there; others make another network.
        ignored: keys that the family's own code accepts without a meaning.
        namings: how its tensors may be named.
    """

    title: str
    distance: str
    input_range: str | None = "signed"
    targets: tuple[str, ...] = ()
    hub_class: str = ""
    hub_keys: tuple[str, ...] = ()
    rows: tuple[Row, ...] = _TRAINING_ROWS
    supported: Mapping[str, tuple[Any, ...]] = field(default_factory=lambda: _TRAINING_SUPPORTED)
    ignored: tuple[str, ...] = ()
    namings: tuple[Naming, ...] = (TAMING,)


FAMILIES: dict[str, Family] = {
    "taming": Family(
        title="taming VQModel",
        distance="l2",
        targets=("taming.models.vqgan.VQModel", "taming.models.vqgan.EMAVQ"),
        ignored=("attn_type", "tanh_out"),
    ),
    "gumbel": Family(
        title="taming GumbelVQ",
        distance="gumbel",
        targets=("taming.models.vqgan.GumbelVQ",),
        ignored=("attn_type", "tanh_out"),
    ),
    "ldm": Family(
        title="latent-diffusion VQModel",
        distance="l2",
        targets=("ldm.models.autoencoder.VQModel", "ldm.models.autoencoder.VQModelInterface"),
    ),
    "ibq": Family(
        title="IBQ",
        distance="dot",
        targets=("models.ibqgan.IBQ",),
        rows=(
            *_TRAINING_ROWS,
            ("use_ema", "use_ema", lambda config: config.get("use_ema") is not False),
        ),
        ignored=("attn_type", "tanh_out"),
    ),
    "diffusers": Family(
        title="diffusers VQModel",
        distance="l2",
        input_range=None,
        hub_class="VQModel",
        rows=(
            ("block_out_channels", "widths decoder_widths"),
            ("layers_per_block", "res_blocks decoder_res_blocks"),
            ("latent_channels", "z_channels"),
            (
                "vq_embed_dim",
                "embed_dim",
                lambda config: config.get("vq_embed_dim") or config.get("latent_channels"),
            ),
            ("num_vq_embeddings", "codebook_size"),
            ("down_block_types", "attention", _attention_blocks("down_block_types", 1)),
            ("up_block_types", "decoder_attention", _attention_blocks("up_block_types", -1)),
            ("mid_block_add_attention", "mid_attention"),
            ("norm_num_groups", "groups"),
            # The first releases kept taming's names, of keys and of tensors.
            *(row for row in _TRAINING_ROWS if row[0] != "attn_type"),
            (
                "attn_type",
                "mid_attention",
                lambda config: config.get("attn_type") != "none" if "ch" in config else None,
            ),
        ),
        supported={
            "norm_type": ("group",),
            "act_fn": ("silu", "swish"),
            "attn_type": ("vanilla", "none"),
        },
        ignored=("tanh_out",),
        namings=(DIFFUSERS, TAMING),
    ),
    "openmuse": Family(
        title="openMUSE VQGANModel",
        distance="l2",
        input_range="unit",
        hub_class="VQGANModel",
        rows=(
            ("hidden_channels", "stem"),
            ("channel_mult", "ch_mult"),
            ("num_res_blocks", "res_blocks"),
            ("decoder_channel_mult", "decoder_widths", _openmuse_widths),
            ("decoder_res_blocks", "decoder_res_blocks", _openmuse_blocks),
            ("attn_resolutions", "attention decoder_attention", _levels),
            ("no_attn_mid_block", "mid_attention", _unless("no_attn_mid_block")),
            ("z_channels", "z_channels"),
            ("num_embeddings", "codebook_size"),
            ("quantized_embed_dim", "embed_dim"),
            ("resample_with_conv", "resample_conv"),
            ("resolution", "resolution"),
        ),
        supported={},
    ),
    "llamagen": Family(
        title="LlamaGen VQModel",
        distance="cosine",
        hub_keys=("encoder_ch_mult", "codebook_embed_dim"),
        rows=(
            ("encoder_ch_mult", "ch_mult"),
            ("decoder_ch_mult", "decoder_ch_mult"),
            ("z_channels", "z_channels"),
            ("codebook_size", "codebook_size"),
            ("codebook_embed_dim", "embed_dim"),
            (
                "codebook_l2_norm",
                "distance",
                lambda config: "l2" if config.get("codebook_l2_norm") is False else None,
            ),
        ),
        supported={},
        namings=(LLAMAGEN,),
    ),
}

# Networks that look alike, by the class in their config, and why they cannot be loaded.
REFUSED_CLASSES = {
    "MaskGitVQGAN": "its backbone is a different one (average pooling, no attention, no biases)",
    "AutoencoderKL": "it is continuous and has no tokens",
    "MOVQ": "its decoder is conditioned on the latents (spatial normalisation)",
    "PaellaVQModel": "its backbone is a different one",
    "JanusVQVAE": "its decoder levels are in another order; use the original LlamaGen-style file",
}

# The same by the name of a tensor, among those that are not told apart by NAMINGS.
REFUSED_TENSORS = {
    r"quantizer\.codebooks": "an RQ-VAE has several codes a position, (h, w, 4), where a token "
    "grid has one",
    r"encoder\.mid\.0\.": "it looks like MaskGIT-VQGAN, whose backbone is a different one",
    r"decoder\.up\.0\.upsample\.": "its decoder counts levels from the lowest resolution, as "
    "JanusVQVAE of transformers does; use the original LlamaGen-style file",
}
