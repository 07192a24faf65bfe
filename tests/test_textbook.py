"""The fast paths against the textbook: same parameters, same noise, same answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import small_nets
import torch
from conftest import make_schedule
from textbook import _TAUGHT, Chance, Textbook, adamw, corrupted, sample, unrolled_loss
from torch import Tensor

import sundae.sampling.loop
from hourglass_transformer import HourglassTransformer
from sundae.config.run_file import RunConfig
from sundae.prior.categorical import draw_tokens, seeded_uniforms
from sundae.prior.linear_cross_entropy import linear_cross_entropy
from sundae.prior.objective import corrupt, corruption_rates, unroll
from sundae.sampling.state import draw_noise, starting_tokens
from sundae.training.optimizers import make_optimizer

CODES, BATCH = 11, 3
SHAPES: dict[str, dict[str, Any]] = {
    "paper": {},
    "plain transformer": {"depth": 2},
    "no layers outside": {"depth": (0, 1, 0)},
    "nested": {"depth": (1, (1, 1, 1), 2), "shorten_factor": 4},
    "nested, cells of two sizes": {
        "depth": (1, (1, 1, 1), 1),
        "shorten_factor": (4, 9),
        "grid": (12, 6),
    },
    "average": {"resampling": "average"},
    "no attention across levels": {"attn_resampling": False},
    "learned positions": {"use_rotary": False},
    "scale norm and gates": {"use_scalenorm": True, "use_glu": True, "ff_mult": 3.0},
    "narrow heads": {"dim_head": 12},
    "classes": {"num_classes": 4},
    "classes and none": {"num_classes": 4, "class_dropout": 0.1},
}


def network(**changes: Any) -> HourglassTransformer:
    """A small network whose every parameter matters."""
    shape = {"grid": (4, 8), "depth": (1, 2, 1)} | changes
    net = small_nets.network(vocab_size=CODES, **shape)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return net


def inputs(net: HourglassTransformer) -> tuple[Tensor, Tensor | None]:
    height, width = net.grid
    tokens = torch.randint(CODES, (BATCH, height * width))
    last = net.class_embedding.num_embeddings - 1 if net.class_embedding else 0
    return tokens, torch.tensor([0, 2, last]) if net.cfg.num_classes else None


def inverse_cdf(logits: Tensor, uniforms: Tensor) -> Tensor:
    """The first token whose cumulative probability exceeds the uniform number, in float64."""
    mass = logits.double().softmax(-1).cumsum(-1)
    return (mass <= uniforms[..., None]).sum(-1).clamp(max=logits.shape[-1] - 1)


@dataclass
class OurNoise(Chance):
    """The noise that `sundae.sampling.loop.sample` takes from its seeds."""

    seeds: Tensor

    def start(self, batch: int, length: int, vocab_size: int) -> Tensor:
        return starting_tokens(self.seeds, length, vocab_size)

    def priorities(self, step: int, batch: int, length: int) -> Tensor:
        return seeded_uniforms(self.seeds, 2 * step + 2, length)

    def draw(self, step: int, logits: Tensor) -> Tensor:
        return inverse_cdf(logits, draw_noise(self.seeds, step, logits.shape[1]))


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES)
def test_logits_are_the_textbooks(changes: dict[str, Any]) -> None:
    net = network(**changes)
    textbook = Textbook(net.cfg, vocab_size=CODES, grid=net.grid)
    textbook.load_state_dict(net.state_dict())
    tokens, classes = inputs(net)
    with torch.no_grad():
        expected = textbook(tokens, classes)
        found = net(tokens, classes)
    assert expected.std() > 0.5
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_logits_at_positions_are_the_textbooks() -> None:
    net = network()
    tokens, _ = inputs(net)
    positions = torch.stack([torch.randperm(32)[:5] for _ in range(BATCH)])
    with torch.no_grad():
        expected = Textbook.around(net)(tokens)
        found = net(tokens, None, positions)
    expected = expected[torch.arange(BATCH)[:, None], positions]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_logits_in_bf16_are_near_the_textbooks() -> None:
    # bfloat16 keeps 8 bits; a few layers add to that.
    net = network(dim=64, nb_heads=4)
    tokens, _ = inputs(net)
    with torch.no_grad():
        expected = Textbook.around(net)(tokens)
        with torch.autocast("cpu", torch.bfloat16):
            found = net(tokens)
    assert ((found - expected).pow(2).mean() / expected.pow(2).mean()).sqrt() < 0.03


@pytest.mark.parametrize("fused", [False, True], ids=["whole logits", "logits in parts"])
@pytest.mark.parametrize("name", ["nested", "scale norm and gates", "classes"])
def test_loss_and_gradients_are_the_textbooks(name: str, fused: bool) -> None:
    net = network(**SHAPES[name])
    textbook = Textbook(net.cfg, vocab_size=CODES, grid=net.grid)
    textbook.load_state_dict(net.state_dict())
    clean, classes = inputs(net)

    steps = unroll(
        lambda tokens: net(tokens, classes, head=not fused),
        clean,
        unroll_steps=2,
        vocab_size=CODES,
        generator=torch.Generator().manual_seed(1),
        head=net.to_logits if fused else None,
    )
    losses = []
    for step in steps:
        (step.loss / 2).backward()
        losses.append(step.loss.detach())

    generator = torch.Generator().manual_seed(1)
    noisy = corrupt(clean, corruption_rates(BATCH, generator), CODES, generator)
    uniforms = torch.rand(clean.shape, generator=generator)
    loss = unrolled_loss(textbook, clean, noisy, classes, 2, lambda x: inverse_cdf(x, uniforms))
    loss.backward()

    torch.testing.assert_close(torch.stack(losses).mean(), loss.detach(), atol=1e-5, rtol=1e-5)
    expected = dict(textbook.named_parameters())
    for key, parameter in net.named_parameters():
        assert expected[key].grad.abs().max() > 0, key
        torch.testing.assert_close(parameter.grad, expected[key].grad, atol=2e-5, rtol=1e-4)


def test_fused_loss_in_bf16_is_near_the_textbooks() -> None:
    net = network(dim=64, nb_heads=4)
    tokens, _ = inputs(net)
    textbook = unrolled_loss(Textbook.around(net), tokens, tokens, None, 1)
    with torch.autocast("cpu", torch.bfloat16):
        found = linear_cross_entropy(net(tokens, head=False), net.to_logits, tokens)
    assert abs(found.loss.item() / textbook.item() - 1) < 0.02


@pytest.mark.parametrize("at_positions", [False, True], ids=["all logits", "logits at positions"])
def test_samples_under_the_same_noise_are_the_textbooks(at_positions: bool) -> None:
    net = network(depth=(1, (1, 1, 1), 1), num_classes=4).eval()
    classes, seeds = torch.tensor([1, 3, 0]), torch.tensor([5, 2**40, 7])
    schedule = make_schedule(
        6, 1.0, 0.5, sample_proportion=0.7, end_sample_proportion=0.1, early_stop=False
    )
    *_, last = sundae.sampling.loop.sample(
        net,
        seeds=seeds,
        length=32,
        vocab_size=CODES,
        schedule=schedule,
        classes=classes,
        grid=(4, 8),
        denoise_at=net if at_positions else None,
    )
    expected = sample(
        Textbook.around(net),
        BATCH,
        classes,
        length=32,
        vocab_size=CODES,
        temperatures=[1.0, 0.9, 0.8, 0.7, 0.6, 0.5],
        proportions=[0.7, 0.58, 0.46, 0.34, 0.22, 0.1],
        chance=OurNoise(seeds),
    )
    assert torch.equal(last.tokens, expected)
    assert len(expected.unique()) > 3


def test_draws_are_the_textbooks() -> None:
    logits, uniforms = torch.randn(50, 64, 31) * 3, torch.rand(50, 64)
    assert torch.equal(draw_tokens(logits, uniforms), inverse_cdf(logits, uniforms))


def test_one_update_is_the_textbooks(config: Any) -> None:
    cfg: RunConfig = config()
    net = network(num_classes=4)
    textbook = Textbook.around(network(num_classes=4))
    trainer = cfg.trainer
    ours = make_optimizer(net, trainer, torch.device("cpu"))
    plain = adamw(textbook, trainer.learning_rate, trainer.betas, trainer.weight_decay)
    updated = dict(textbook.named_parameters())
    for name, parameter in net.named_parameters():
        parameter.grad = torch.randn_like(parameter)
        updated[name].grad = parameter.grad.clone()
    ours.step()
    plain.step()
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(parameter, updated[name])


def test_around_shares_the_parameters() -> None:
    net = network()
    textbook = Textbook.around(net)
    ours = dict(net.named_parameters())
    assert all(parameter is ours[name] for name, parameter in textbook.named_parameters())


def test_corruption_of_the_textbook_spreads_over_all_rates() -> None:
    torch.manual_seed(0)
    clean = torch.zeros(50, 2000, dtype=torch.long)
    changed = (corrupted(clean, 10**6) != clean).float().mean(1).sort().values
    assert (changed - torch.linspace(0.01, 0.99, 50)).abs().max() < 0.06


def test_the_textbook_refuses_what_it_does_not_teach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("textbook._TAUGHT", _TAUGHT - {"num_classes"})
    with pytest.raises(ValueError, match="num_classes = 4"):
        Textbook.around(network(num_classes=4))


def test_the_textbook_refuses_windows() -> None:
    with pytest.raises(ValueError, match="window"):
        Textbook.around(network(window=(2, 0), attn_resampling=False))
