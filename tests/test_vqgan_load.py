"""What load_vqgan accepts, and the one line it says about what it does not."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from vqgan_cases import (
    CASES,
    DDCONFIG,
    diffusers_model,
    llamagen_names,
    random_images,
    save_safetensors,
    taming_config,
    taming_model,
    write_yaml,
)

from sundae.codec.vqgan import load_vqgan
from sundae.codec.vqgan.architecture import infer_architecture
from sundae.codec.vqgan.backbone import VQGAN
from sundae.codec.vqgan.configs import architecture_of, check_declared, read_config
from sundae.codec.vqgan.safe_load import read_tensors
from sundae.common.errors import UserError

EXPLICIT = {"distance": "l2", "input_range": "signed"}


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return taming_model().state_dict()


def write(folder: Path, state: dict[str, torch.Tensor]) -> Path:
    torch.save({"state_dict": state}, folder / "model.ckpt")
    return folder / "model.ckpt"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"ch": 64}, r"ddconfig\.ch says channels 64, .* say 32"),
        ({"ch_mult": [1, 2, 4]}, r"ddconfig\.ch_mult says ch_mult \[1, 2, 4\], .* \[1, 2, 2\]"),
        ({"num_res_blocks": 2}, r"num_res_blocks says res_blocks 2, .* say 1"),
        ({"attn_resolutions": [16]}, r"levels with attention \[1\], .* say \[2\]"),
        ({"z_channels": 8}, r"z_channels 8, .* say 16"),
        ({"double_z": True}, r"double_z True, .* say False"),
        ({"resamp_with_conv": False}, r"resample_conv False, .* say True"),
    ],
)
def test_config_in_conflict_with_tensors_stops_naming_both(
    changes: dict[str, Any], says: str, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    config = write_yaml(tmp_path / "c.yaml", {"model": taming_config(DDCONFIG | changes)})
    with pytest.raises(UserError, match=says):
        load_vqgan(write(tmp_path, state), config)


def test_codebook_size_in_conflict_is_named(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    config = write_yaml(tmp_path / "c.yaml", {"model": taming_config(n_embed=1024)})
    with pytest.raises(UserError, match=r"n_embed says codebook_size 1024, .* say 64"):
        load_vqgan(write(tmp_path, state), config)


def test_interpolations_of_the_yaml_are_resolved_and_resolvers_refused(
    state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    content = taming_config(embed_dim="${.ddconfig.width}", ddconfig=DDCONFIG | {"width": 8})
    config = write_yaml(tmp_path / "c.yaml", {"model": content})
    assert load_vqgan(write(tmp_path, state), config).model.arch.embed_dim == 8
    content["params"]["embed_dim"] = "${oc.env:HOME}"
    with pytest.raises(UserError, match=r"\$\{oc\.env:HOME\} is refused"):
        load_vqgan(tmp_path / "model.ckpt", write_yaml(config, {"model": content}))


def test_attention_missing_from_the_file_is_not_ignored(
    state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """The published vq-f4-noattn loaded as if it had attention: 95% of tokens agree by luck."""
    bare = {name: tensor for name, tensor in state.items() if "attn" not in name}
    target = "ldm.models.autoencoder.VQModel"
    none = {"attn_resolutions": [], "attn_type": "none"}
    config = write_yaml(tmp_path / "none.yaml", {"model": taming_config(DDCONFIG | none, target)})
    codec = load_vqgan(write(tmp_path, bare), config)
    assert not codec.model.arch.encoder.mid_attention
    empty = DDCONFIG | {"attn_resolutions": []}
    config = write_yaml(tmp_path / "empty.yaml", {"model": taming_config(empty, target)})
    with pytest.raises(UserError, match=r"mid_attention True|attention True, .* say False"):
        load_vqgan(write(tmp_path, bare), config)


def test_taming_swallows_tanh_out_and_ldm_applies_it(
    state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    dd = DDCONFIG | {"tanh_out": True}
    for target, expected in (("taming.models.vqgan", False), ("ldm.models.autoencoder", True)):
        config = write_yaml(tmp_path / "c.yaml", {"model": taming_config(dd, f"{target}.VQModel")})
        assert load_vqgan(write(tmp_path, state), config).rules.tanh_out is expected


@pytest.mark.parametrize("where", ["", "first_stage_model.", "module.", "vqgan."])
def test_every_prefix_is_found(where: str, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    stored = {f"{where}{name}": tensor for name, tensor in state.items()}
    codec = load_vqgan(write(tmp_path, stored), **EXPLICIT)
    assert torch.equal(codec.model.quantize.embedding.weight, state["quantize.embedding.weight"])


def test_the_vq_gan_of_the_condition_has_to_be_asked_for(tmp_path: Path) -> None:
    case = CASES["taming-combined"](tmp_path)
    codec = load_vqgan(case.checkpoint, case.config, prefix="cond_stage_model.")
    assert codec.model.arch.encoder.blocks == (2, 2, 2)
    with pytest.raises(UserError, match=r"no VQ-GAN under 'vqgan\.'.*first_stage_model"):
        load_vqgan(case.checkpoint, case.config, prefix="vqgan.")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"encoder.conv_in.bias": None}, "encoder.conv_in.bias is missing"),
        ({"decoder.extra.weight": torch.ones(1)}, "decoder.extra.weight has no place"),
        ({"quant_conv.bias": torch.ones(5)}, r"quant_conv.bias has shape \(5,\).* \(8,\)"),
        ({"quant_conv.bias": torch.ones(8).int()}, r"quant_conv.bias has dtype torch.int32"),
        ({"quantize.embedding.weight": None}, "no codebook"),
        ({"quantize.embedding.weight": torch.ones(3)}, "has 1 axes, expected 2"),
        ({"encoder.conv_in.weight": torch.tensor(1.0)}, "has 0 axes, expected 4"),
        ({"decoder.up.1.block.0.conv1.weight": None}, "up.1.block.0.conv1.weight is missing"),
        ({"encoder.conv_in.weight": torch.ones(30, 3, 3, 3)}, "30 channels cannot be split"),
        ({"encoder.conv_in.weight": torch.ones(32, 4, 3, 3)}, "4 to 3 channels; only RGB"),
        ({"encoder.conv_out.weight": torch.ones(32, 64, 3, 3)}, "double_z cannot run"),
    ],
)
def test_extra_missing_and_misshapen_tensors_are_refused_by_name(
    change: dict[str, Any], says: str, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    changed = {name: tensor for name, tensor in (state | change).items() if tensor is not None}
    with pytest.raises(UserError, match=says):
        load_vqgan(write(tmp_path, changed), **EXPLICIT)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_weights_that_are_not_finite_are_refused_by_name_in_every_family(
    name: str, value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name](tmp_path)

    def read_broken(path: Path) -> dict[str, torch.Tensor]:
        tensors = {key: tensor.clone() for key, tensor in read_tensors(path).items()}
        for key, tensor in tensors.items():
            if key.replace(".", "").endswith("encoderconv_inweight"):  # the averages have no dots
                tensor[3, 1, 0, 2] = value
        return tensors

    monkeypatch.setattr("sundae.codec.vqgan.load.read_tensors", read_broken)
    with pytest.raises(UserError, match=r": encoder\.conv_in\.weight holds NaN or infinite values"):
        load_vqgan(case.checkpoint, case.config, **case.keywords)


def test_a_weight_of_a_discriminator_may_be_anything(
    state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    broken = {"loss.discriminator.main.0.weight": torch.tensor([math.nan])}
    codec = load_vqgan(write(tmp_path, state | broken), **EXPLICIT)
    assert torch.equal(codec.model.quant_conv.bias, state["quant_conv.bias"])


def test_rules_are_never_guessed(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    checkpoint = write(tmp_path, state)
    with pytest.raises(UserError, match="give the config .* or state distance and input_range"):
        load_vqgan(checkpoint)
    with pytest.raises(UserError, match="state input_range"):
        load_vqgan(checkpoint, distance="dot")
    with pytest.raises(UserError, match="distance must be one of l2, cosine, dot, gumbel"):
        load_vqgan(checkpoint, distance="euclid", input_range="unit")
    assert load_vqgan(checkpoint, distance="dot", input_range="[0, 1]").rules.input_range == "unit"
    config = write_yaml(tmp_path / "c.yaml", {"model": taming_config()})
    with pytest.raises(UserError, match="distance was stated as dot, but taming VQModel has l2"):
        load_vqgan(checkpoint, config, distance="dot")


def test_diffusers_needs_its_input_range_and_its_config(tmp_path: Path) -> None:
    diffusers_model().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="state input_range"):
        load_vqgan(tmp_path)
    assert load_vqgan(tmp_path, input_range="signed").model.arch.groups == 16
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json"):
        load_vqgan(tmp_path, input_range="signed")


def test_diffusers_old_attention_names_and_bin_file(tmp_path: Path) -> None:
    model = diffusers_model()
    model.save_pretrained(tmp_path)
    new = load_vqgan(tmp_path, input_range="unit", precision="fp32")
    old_names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = model.state_dict()
    for now, before in old_names.items():
        state = {name.replace(f".{now}.", f".{before}."): t for name, t in state.items()}
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(state, tmp_path / "diffusion_pytorch_model.bin")
    assert load_vqgan(tmp_path, input_range="unit").identity == new.identity


def test_diffusers_config_in_conflict_and_unsupported_norm(tmp_path: Path) -> None:
    diffusers_model().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"layers_per_block": 1}))
    with pytest.raises(UserError, match="layers_per_block says res_blocks 1, .* say 2"):
        load_vqgan(tmp_path, input_range="unit")
    path.write_text(json.dumps(content | {"norm_type": "spatial"}))
    with pytest.raises(UserError, match="norm_type 'spatial' is not supported"):
        load_vqgan(tmp_path, input_range="unit")


def test_first_diffusers_releases_used_taming_s_names_in_the_config(
    state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    save_safetensors(state, tmp_path / "diffusion_pytorch_model.safetensors")
    content = {"_class_name": "VQModel", "n_embed": 64, "embed_dim": 8, **DDCONFIG}
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert load_vqgan(tmp_path, input_range="signed").codebook_size == 64
    (tmp_path / "config.json").write_text(json.dumps(content | {"n_embed": 65}))
    with pytest.raises(UserError, match="n_embed says codebook_size 65"):
        load_vqgan(tmp_path, input_range="signed")


def test_llamagen_safetensors_and_its_l2_variant(
    state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    save_safetensors(llamagen_names(state), tmp_path / "model.safetensors")
    assert load_vqgan(tmp_path).rules.distance == "cosine"
    content = {"codebook_size": 64, "codebook_embed_dim": 8, "codebook_l2_norm": False}
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert load_vqgan(tmp_path).rules.distance == "l2"


def test_config_of_another_family_than_the_tensors(
    state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    config = write_yaml(tmp_path / "c.yaml", {"model": taming_config()})
    with pytest.raises(UserError, match="describes taming VQModel, but .* as in LlamaGen"):
        load_vqgan(write(tmp_path, llamagen_names(state)), config)


def test_ibq_with_an_average_missing_is_refused(tmp_path: Path) -> None:
    case = CASES["ibq"](tmp_path)
    stored = torch.load(case.checkpoint, weights_only=True)["state_dict"]
    del stored["model_ema.decoderconv_inweight"]
    with pytest.raises(UserError, match="average .* of decoder.conv_in.weight is missing"):
        load_vqgan(write(tmp_path, stored), case.config)


def reversed_decoder(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As in transformers' JanusVQVAE, where up.0 is the lowest resolution."""
    flip = str.maketrans({"0": "2", "2": "0"})
    return {
        f"decoder.up.{name[11].translate(flip)}{name[12:]}" if "decoder.up." in name else name: t
        for name, t in state.items()
    }


def test_look_alikes_are_refused_with_the_reason(
    state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="counts levels from the lowest resolution"):
        load_vqgan(write(tmp_path, reversed_decoder(state)), **EXPLICIT)
    residual = state | {"quantizer.codebooks.0.weight": torch.ones(2, 2)}
    with pytest.raises(UserError, match=r"several codes a position, \(h, w, 4\)"):
        load_vqgan(write(tmp_path, residual), **EXPLICIT)
    maskgit = {name.replace(".mid.block_1.", ".mid.0."): t for name, t in state.items()}
    with pytest.raises(UserError, match="MaskGIT-VQGAN"):
        load_vqgan(write(tmp_path, maskgit), **EXPLICIT)
    with pytest.raises(UserError, match="not a VQ-GAN this can read; its tensors are a.b"):
        load_vqgan(write(tmp_path, {"a.b": torch.ones(1)}), **EXPLICIT)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"model": taming_config(target="ldm.models.autoencoder.AutoencoderKL")}, "continuous"),
        ({"model": taming_config(target="os.system")}, "target os.system is not supported"),
        ({"model": taming_config(l2_normalize=True)}, "l2_normalize True is not supported"),
        ({"model": {"target": "taming.models.vqgan.VQModel"}}, "params.ddconfig is missing"),
        ({"_class_name": "MaskGitVQGAN"}, "MaskGitVQGAN is not supported"),
        ({"_class_name": "UNet2DModel"}, "expected VQModel"),
        ({"model_type": "janus_vqgan"}, "JanusVQVAE is not supported"),
        ({"arch": {"type": "rq-vae"}}, "RQ-VAE is not supported"),
        (["a"], "expected a mapping"),
    ],
)
def test_configs_of_other_kinds_are_refused(content: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        read_config(write_yaml(tmp_path / "c.yaml", content))


@pytest.mark.parametrize(
    "changes", [{"ch_mult": 3}, {"attn_resolutions": 8, "resolution": "32"}, {"ch_mult": "112"}]
)
def test_values_of_a_wrong_type_are_one_line(
    changes: dict[str, Any], state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    config = write_yaml(tmp_path / "c.yaml", {"model": taming_config(DDCONFIG | changes)})
    with pytest.raises(UserError):
        load_vqgan(write(tmp_path, state), config)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"decoder_channel_mult": [1, 1, 2]}, r"decoder_widths \[32, 32, 64\], .* \[32, 64, 64\]"),
        ({"decoder_res_blocks": [2, 2, 2]}, "decoder_res_blocks 2, .* say 1"),
        ({"no_attn_mid_block": True}, "mid_attention False, .* say True"),
    ],
)
def test_openmuse_config_in_conflict(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    CASES["openmuse"](tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match=says):
        load_vqgan(tmp_path)


def test_a_remapped_vocabulary_leaves_the_whole_codebook_in_use(
    state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """taming maps codes outside the remap to random ones; the codec keeps every code's number."""
    plain = load_vqgan(write(tmp_path, state), **EXPLICIT, precision="fp32")
    remapped = state | {"quantize.used": torch.arange(10)}
    codec = load_vqgan(write(tmp_path, remapped), **EXPLICIT, precision="fp32")
    assert torch.equal(codec.encode(random_images()), plain.encode(random_images()))


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_overwriting_the_file_does_not_change_a_loaded_codec(
    suffix: str, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = tmp_path / f"model.{suffix}"
    save = torch.save if suffix == "ckpt" else save_safetensors
    save(state, path)
    codec = load_vqgan(path, **EXPLICIT)
    before = path.read_bytes()
    with path.open("r+b") as file:
        file.seek(len(before) // 3)
        file.write(bytes(len(before) // 3))
    for name, tensor in codec.model.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_gumbel_is_known_by_its_tensors(tmp_path: Path) -> None:
    codec = load_vqgan(CASES["gumbel"](tmp_path).checkpoint)
    assert (codec.rules.distance, codec.rules.input_range) == ("gumbel", "signed")


def test_linear_attention_is_refused(tmp_path: Path) -> None:
    dd = DDCONFIG | {"attn_type": "linear"}
    content = {"model": taming_config(dd, "ldm.models.autoencoder.VQModel")}
    with pytest.raises(UserError, match="attn_type 'linear' is not supported"):
        read_config(write_yaml(tmp_path / "c.yaml", content))


def test_half_precision_checkpoint_gives_the_tokens_of_its_values(
    state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    half = {name: tensor.half() for name, tensor in state.items()}
    from_half = load_vqgan(write(tmp_path, half), **EXPLICIT, precision="fp32")
    assert from_half.model.encoder.conv_in.weight.dtype == torch.float32
    same = {name: tensor.float() for name, tensor in half.items()}
    from_float = load_vqgan(write(tmp_path, same), **EXPLICIT, precision="fp32")
    assert from_half.identity == from_float.identity
    assert torch.equal(from_half.encode(random_images()), from_float.encode(random_images()))


@pytest.mark.parametrize(
    ("name", "parameters", "factor", "codes", "resolution"),
    [
        ("ffhq256", 72_141_699, 16, 1024, 256),
        ("celeba256", 72_141_699, 16, 1024, 256),
        ("imagenet", 72_141_699, 16, 1024, 256),
        ("ffhq1024", 75_407_235, 32, 8192, 1024),
    ],
)
def test_shipped_yaml_describes_the_network_it_is_shipped_for(
    name: str, parameters: int, factor: int, codes: int, resolution: int
) -> None:
    path = Path(__file__).parents[1] / "config" / "vqgan" / f"{name}.yaml"
    declaration = read_config(path)
    arch = architecture_of(declaration)
    with torch.device("meta"):
        model = VQGAN(arch, "l2")
    check_declared(declaration, infer_architecture(model.state_dict()), path)
    assert (declaration.family, declaration.get("resolution")) == ("taming", resolution)
    assert (arch.factor, arch.codebook_size) == (factor, codes)
    assert sum(p.numel() for p in model.parameters()) == parameters
