"""The codec's promises that hold for every family: sizes, ranges, precision, identity, training."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from vqgan_cases import (
    CASES,
    CODES,
    DDCONFIG,
    random_images,
    taming_config,
    taming_model,
    write_yaml,
)

from sundae.codec.vqgan import VQGANCodec, load_vqgan, new_vqgan
from sundae.codec.vqgan.architecture import infer_architecture
from sundae.codec.vqgan.backbone import VQGAN, AttnBlock
from sundae.codec.vqgan.codec import Rules
from sundae.codec.vqgan.load import build
from sundae.codec.vqgan.quantise import Quantiser
from sundae.common.errors import UserError


def make_codec(**changes: str) -> VQGANCodec:
    rules = Rules(**{"distance": "l2", "input_range": "signed", **changes})
    state = taming_model().state_dict()
    model = build(infer_architecture(state), rules, state, Path("test"))
    return VQGANCodec(model, rules, precision="fp32")


@pytest.fixture(scope="module")
def codec() -> VQGANCodec:
    return make_codec()


def test_one_patch_and_images_that_are_not_square(codec: VQGANCodec) -> None:
    tall = random_images(1, 64, 4)
    tokens = codec.encode(tall)
    assert tokens.shape == (1, 16, 1)
    assert codec.decode(tokens).shape == tall.shape
    patch = codec.encode(random_images(3, 4, 4))
    assert patch.shape == (3, 1, 1)
    assert codec.decode(patch).shape == (3, 3, 4, 4)


def test_a_batch_gives_the_tokens_of_its_images(codec: VQGANCodec) -> None:
    images = random_images(3)
    together = codec.encode(images)
    alone = torch.cat([codec.encode(image[None]) for image in images])
    assert torch.equal(together, alone)


@pytest.mark.parametrize(
    ("images", "error", "says"),
    [
        (torch.rand(1, 3, 30, 32), UserError, "30x32 .* patches of 4x4"),
        (torch.rand(3, 32, 32), ValueError, r"expected images \(B, 3, H, W\)"),
        (torch.rand(1, 1, 32, 32), ValueError, r"got \(1, 1, 32, 32\)"),
        (torch.rand(0, 3, 32, 32), ValueError, r"got \(0, 3, 32, 32\)"),
        (torch.ones(1, 3, 8, 8, dtype=torch.uint8), ValueError, "uint8; divide by 255"),
        (torch.rand(1, 3, 8, 8) * 2 - 1, ValueError, r"images in \[0, 1\], got values from -"),
        (torch.full((1, 3, 8, 8), torch.nan), ValueError, "from nan"),
    ],
)
def test_images_that_are_refused(
    images: torch.Tensor, error: type[Exception], says: str, codec: VQGANCodec
) -> None:
    with pytest.raises(error, match=says):
        codec.encode(images)


@pytest.mark.parametrize(
    ("tokens", "error", "says"),
    [
        (torch.full((1, 2, 2), CODES), UserError, f"64 to 64, .* codes 0 to {CODES - 1}"),
        (torch.full((1, 2, 2), -1), UserError, "from -1 to -1"),
        (torch.zeros(1, 4, dtype=torch.int64), ValueError, r"expected tokens \(B, h, w\)"),
        (torch.zeros(1, 2, 2), ValueError, "integer tokens, got torch.float32"),
    ],
)
def test_tokens_that_are_refused(
    tokens: torch.Tensor, error: type[Exception], says: str, codec: VQGANCodec
) -> None:
    with pytest.raises(error, match=says):
        codec.decode(tokens)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.uint16])
def test_every_integer_type_of_tokens_is_accepted(dtype: torch.dtype, codec: VQGANCodec) -> None:
    tokens = torch.randint(CODES, (1, 2, 2), generator=torch.Generator().manual_seed(0))
    assert torch.equal(codec.decode(tokens.to(dtype)), codec.decode(tokens))


def test_tokens_can_be_trained_on(codec: VQGANCodec) -> None:
    """Tensors made in inference mode cannot be saved for backward; these can."""
    table = torch.nn.Embedding(CODES, 2)
    F.embedding(codec.encode(random_images()), table.weight).sum().backward()
    assert table.weight.grad is not None


def test_bf16_changes_pixels_little_and_leaves_the_weights_alone(codec: VQGANCodec) -> None:
    fast = make_codec()
    fast.precision = "bf16"
    tokens = codec.encode(random_images())
    difference = (fast.decode(tokens) - codec.decode(tokens)).abs()
    assert 0 < difference.mean() < 0.02
    assert fast.decode(tokens).dtype == torch.float32
    assert fast.model.encoder.conv_in.weight.dtype == torch.float32


def test_compiled_batches_are_filled_up_and_their_tokens_stay_the_same(
    codec: VQGANCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    expected, sizes = codec.encode(images), []
    monkeypatch.setattr("sundae.codec.vqgan.codec.compile_modules", lambda *_, quiet: True)
    assert codec.compile()
    codec.model.encoder.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    assert torch.equal(codec.encode(images), expected)
    assert torch.equal(codec.encode(images[:1]), expected[:1])
    assert sizes == [3, 3]


def test_unknown_precision_is_refused(codec: VQGANCodec) -> None:
    with pytest.raises(UserError, match="precision must be one of auto, fp32, bf16, got 'fp8'"):
        VQGANCodec(codec.model, codec.rules, precision="fp8")


def test_identity_follows_weights_and_rules_and_nothing_else(tmp_path: Path) -> None:
    first = make_codec()
    assert first.identity == make_codec().identity
    assert first.identity != make_codec(input_range="unit").identity
    assert first.identity != make_codec(distance="dot").identity
    other = make_codec()
    with torch.no_grad():
        other.model.decoder.conv_out.bias[0] += 1e-3
    assert first.identity != other.identity
    case = CASES["taming-combined"](tmp_path)
    assert load_vqgan(case.checkpoint, case.config).identity == first.identity


@pytest.mark.parametrize("distance", ["l2", "cosine", "dot", "gumbel"])
def test_the_quantiser_in_chunks_equals_the_plain_rule(distance: str) -> None:
    generator = torch.Generator().manual_seed(0)
    quantiser = Quantiser(50, 6, distance)
    latents = torch.randn(2, 6, 7, 5, generator=generator)
    with torch.no_grad():
        quantiser.embedding.weight.normal_(generator=generator)
        z, codes = latents.permute(0, 2, 3, 1), quantiser.embedding.weight
        plain = {
            "l2": lambda: (z[..., None, :] - codes).square().sum(-1).argmin(-1),
            "cosine": lambda: F.cosine_similarity(z[..., None, :], codes, dim=-1).argmax(-1),
            "dot": lambda: (z[..., None, :] * codes).sum(-1).argmax(-1),
            "gumbel": lambda: quantiser.proj(latents).argmax(1),
        }[distance]()
    assert torch.equal(quantiser(latents), plain)
    for max_scores in (1, 50 * 3, 10**9):
        assert torch.equal(quantiser(latents, max_scores), plain)


def test_cosine_decodes_with_a_normalised_codebook() -> None:
    quantiser = Quantiser(5, 3, "cosine")
    vectors = quantiser.embed(torch.arange(5)[None, None])
    expected = F.normalize(quantiser.embedding.weight, dim=1)
    assert torch.equal(vectors[0, :, 0].T, expected)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_latents_that_are_not_finite_stop(broken: float) -> None:
    latents = torch.zeros(1, 3, 2, 2)
    latents[0, 1, 1, 0] = broken
    with pytest.raises(UserError, match="NaN or infinite latents"):
        Quantiser(5, 3)(latents)


def test_the_codebook_is_searched_in_fp32_under_autocast() -> None:
    generator = torch.Generator().manual_seed(0)
    quantiser = Quantiser(512, 8)
    latents = torch.randn(1, 8, 32, 32, generator=generator)
    with torch.no_grad():
        quantiser.embedding.weight.normal_(generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        inside = quantiser(latents)
    assert torch.equal(inside, quantiser(latents))


def test_the_codebook_is_searched_without_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    precisions = []
    addmm = torch.addmm

    def spy(*tensors: torch.Tensor) -> torch.Tensor:
        precisions.append(torch.get_float32_matmul_precision())
        return addmm(*tensors)

    monkeypatch.setattr(torch, "addmm", spy)
    torch.set_float32_matmul_precision("high")
    try:
        Quantiser(5, 3)(torch.ones(1, 3, 2, 2))
        assert precisions == ["highest"]
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_attention_stays_on_contiguous_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    """With another stride SDPA leaves its memory-efficient kernels: 40x the memory."""
    seen = []
    attend = F.scaled_dot_product_attention

    def spy(*tensors: torch.Tensor) -> torch.Tensor:
        seen.extend(tensor.stride(-1) == 1 and tensor.is_contiguous() for tensor in tensors)
        return attend(*tensors)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    block = AttnBlock(32, 32)
    x = torch.randn(2, 32, 6, 4)
    torch.testing.assert_close(block(x), block(x.to(memory_format=torch.channels_last)))
    assert seen == [True] * 6


def test_gradients_reach_every_weight_and_checkpointing_changes_none(tmp_path: Path) -> None:
    torch.manual_seed(0)
    codec = new_vqgan(write_yaml(tmp_path / "c.yaml", {"model": taming_config()}))
    model = codec.model.train()

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        reconstruction, tokens = model(random_images(1, 16, 16))
        codes = model.quantize.embed(tokens)
        (reconstruction.square().mean() + codes.square().mean()).backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    plain = gradients()
    assert len(plain) == len(list(model.parameters()))
    assert plain[0].abs().sum() > 0
    kept = saved_elements(model)
    model.set_gradient_checkpointing(True)
    for before, after in zip(plain, gradients(), strict=True):
        torch.testing.assert_close(after, before)
    assert saved_elements(model) < kept / 2


def saved_elements(model: VQGAN) -> int:
    """How many numbers a forward pass keeps for the backward pass."""
    sizes: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(random_images(1, 16, 16))
    return sum(sizes)


def test_a_new_codec_of_a_config_encodes_and_decodes(tmp_path: Path) -> None:
    config = write_yaml(tmp_path / "c.yaml", {"model": taming_config()})
    codec = new_vqgan(config)
    assert (codec.factor, codec.codebook_size) == (4, CODES)
    assert codec.resolution == DDCONFIG["resolution"]
    assert codec.decode(codec.encode(random_images())).shape == random_images().shape
