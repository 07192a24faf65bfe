from pathlib import Path
from typing import Any

import pytest
import yaml

from sundae.codec_training.config import (
    CodecRunConfig,
    dump_yaml,
    load_codec_config,
    parse_codec_config,
)
from sundae.common.errors import UserError

SHIPPED = Path(__file__).parents[1] / "config" / "vqgan"


def values(**training: Any) -> dict[str, Any]:
    ddconfig = {
        "double_z": False, "z_channels": 16, "resolution": 32, "in_channels": 3, "out_ch": 3,
        "ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [],
    }  # fmt: skip
    params = {"embed_dim": 8, "n_embed": 16, "ddconfig": ddconfig}
    return {
        "model": {"target": "taming.models.vqgan.VQModel", "params": params},
        "training": {"batch_size": 4, "size": 16, "perceptual": "none", **training},
    }


def test_a_config_survives_being_written_and_read(tmp_path: Path) -> None:
    cfg = parse_codec_config(values(max_steps=10, random_crop=1.25), "x.yaml")
    (tmp_path / "run.yaml").write_text(dump_yaml(cfg))
    assert load_codec_config(tmp_path / "run.yaml") == cfg
    assert cfg.trainer.betas == (0.5, 0.9)
    assert (cfg.training.load_size, cfg.training.last_restart) == (20, 8)


@pytest.mark.parametrize("name", ["avatars1024", "emoji64", "emoji256", "ffhq256", "ffhq1024"])
def test_shipped_files_are_read_and_are_configs_of_their_networks(name: str) -> None:
    from sundae.codec.vqgan import new_vqgan

    cfg = load_codec_config(SHIPPED / f"{name}.yaml")
    codec = new_vqgan(SHIPPED / f"{name}.yaml")
    assert codec.model.arch == cfg.arch
    steps = cfg.training.lr_scheduler_kwargs.get("nb_training_steps", cfg.training.max_steps)
    assert steps >= cfg.training.max_steps
    millions = sum(p.numel() for p in codec.model.parameters()) / 1e6
    said = (SHIPPED / f"{name}.yaml").read_text()
    assert f"{millions:.1f}M parameters" in said or f"{millions:.0f}M parameters" in said


def test_overrides_and_flags_win_and_zero_is_a_value() -> None:
    cfg = parse_codec_config(
        values(),
        "x.yaml",
        ["training.disc_start=0", "model.params.n_embed=64"],
        {"training.nb_workers": 0, "training.use_amp": False, "wandb.project": None},
    )
    assert cfg.training.disc_start == 0
    assert cfg.arch.codebook_size == 64
    assert cfg.training.use_amp is False


def crop_values(**training: Any) -> dict[str, Any]:
    """A network without attention, trained on crops."""
    content = values(**{"full_resolution": True, **training})
    content["model"]["target"] = "ldm.models.autoencoder.VQModel"
    content["model"]["params"]["ddconfig"]["attn_type"] = "none"
    return content


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        (
            {"crops": 2, "full_resolution": False},
            "training.crops: has no meaning for scaled images",
        ),
        (
            {"eval_size": 32, "full_resolution": False},
            "training.eval_size: has no meaning for scal",
        ),
        ({"random_crop": 1.5}, "training.random_crop: 1.5 scales images, which contradicts"),
        ({"eval_size": 31}, "training.eval_size: 31 pixels cannot be cut into patches of 2x2"),
    ],
)
def test_keys_of_crops_that_contradict_others_are_refused(
    changes: dict[str, Any], refusal: str
) -> None:
    parse_codec_config(crop_values(crops=2, eval_size=32), "x.yaml")
    with pytest.raises(UserError, match=refusal):
        parse_codec_config(crop_values(**changes), "x.yaml")


@pytest.mark.parametrize(
    "attention",
    [
        {"target": "taming.models.vqgan.VQModel"},  # which has attention in the middle
        {"attn_type": "vanilla"},
        {"attn_type": "vanilla", "attn_resolutions": [16]},
    ],
)
def test_attention_is_not_learned_from_crops(attention: dict[str, Any]) -> None:
    content = crop_values()
    content["model"]["target"] = attention.pop("target", content["model"]["target"])
    content["model"]["params"]["ddconfig"] |= attention
    with pytest.raises(UserError, match="attn_type: none, which ldm.models.autoencoder.VQModel"):
        parse_codec_config(content, "x.yaml")


def test_numbers_may_be_written_with_an_exponent_and_no_point(tmp_path: Path) -> None:
    text = yaml.safe_dump(values()) + "  learning_rate: 1e-3\n"
    (tmp_path / "run.yaml").write_text(text)
    assert load_codec_config(tmp_path / "run.yaml").training.learning_rate == 1e-3


def test_what_is_wrong_is_said_in_one_line_that_names_the_key() -> None:
    def refusal(change: dict[str, Any], *overrides: str) -> str:
        with pytest.raises(UserError) as caught:
            parse_codec_config({**values(), **change}, "x.yaml", overrides)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def with_dd(**dd: Any) -> dict[str, Any]:
        model = values()["model"]
        model["params"]["ddconfig"] |= dd
        return {"model": model}

    assert "training.mirorr: not a key" in refusal(values(mirorr=True))
    assert "did you mean 'mirror'" in refusal(values(mirorr=True))
    assert "x.yaml: training.size: expected an integer" in refusal(values(size="big"))
    assert "x.yaml: training.size is missing" in refusal({"training": {"batch_size": 1}})
    assert "--set training.size: 15 pixels cannot be cut into patches of 2x2" in refusal(
        {}, "training.size=15"
    )
    assert "expected one of 'lpips'" in refusal(values(perceptual="vgg"))
    assert "training.mini_batch_size: 3 does not divide training.batch_size" in refusal(
        values(mini_batch_size=3)
    )
    assert "training.lr_scheduler_kwargs: the schedule 'cosine' needs" in refusal(
        values(lr_scheduler_name="cosine")
    )
    assert "no such section or key; did you mean 'training'" in refusal({"trainng": {}})
    assert "must be taming.models.vqgan.VQModel" in refusal(
        {"model": {**values()["model"], "target": "taming.models.vqgan.GumbelVQ"}}
    )
    assert "tanh_out True, expected False" in refusal(
        {"model": {**with_dd(tanh_out=True)["model"], "target": "ldm.models.autoencoder.VQModel"}}
    )
    assert "a level has 48 channels" in refusal(with_dd(ch=48))
    assert "double_z True, expected False" in refusal(with_dd(double_z=True))
    assert "does not say z_channels" in refusal(with_dd(z_channels=None))
    assert "ddconfig is missing" in refusal({"model": {"target": None}})
    assert "x.yaml: model is missing; expected a section model" in _missing_model()


def _missing_model() -> str:
    with pytest.raises(UserError) as caught:
        parse_codec_config({"training": {}}, "x.yaml")
    return str(caught.value)


@pytest.mark.parametrize("text", ["a: [", "- 1", ""])
def test_a_file_that_is_no_run_file_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(UserError, match="run.yaml") as caught:
        load_codec_config(tmp_path / "run.yaml")
    assert "\n" not in str(caught.value)


def test_the_loop_reads_the_training_section() -> None:
    cfg: CodecRunConfig = parse_codec_config(values(ema_decay=0.5), "x.yaml")
    assert cfg.trainer is cfg.training and cfg.trainer.ema_decay == 0.5
    assert cfg.to_dict()["training"]["ema_decay"] == 0.5


@pytest.mark.parametrize("groups", [0, 2.5, "8"])
def test_groups_that_are_no_number_are_refused(groups: object) -> None:
    content = values()
    content["model"]["params"]["ddconfig"]["num_groups"] = groups
    with pytest.raises(UserError, match="num_groups"):
        parse_codec_config(content, "x.yaml")


def test_a_codebook_that_would_begin_after_the_end_is_refused() -> None:
    with pytest.raises(UserError, match=r"quantise_start: 10 is not below"):
        parse_codec_config(values(max_steps=10, quantise_start=10), "x.yaml")
    parse_codec_config(values(max_steps=0, quantise_start=10), "x.yaml")
