"""The front door: samples of a seed, settings, classes, batches and their memory, files on disk."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from conftest import make_schedule
from PIL import Image
from torch import Tensor, nn

from sundae.codec.interface import PixelCodec
from sundae.common import memory
from sundae.common.compiling import Compiled
from sundae.common.errors import UserError
from sundae.common.images import to_tensor
from sundae.config.run_file import RunConfig
from sundae.prior.network import build_network
from sundae.sampling.sampler import BaseSampler, class_number, sample_seeds

Config = Callable[..., RunConfig]


class ClassNet(nn.Module):
    """Every token is the number of the class, but for the first, which may be anything."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def forward(self, tokens: Tensor, classes: Tensor | None) -> Tensor:
        assert classes is not None
        self.sizes.append(len(tokens))
        logits = 50.0 * nn.functional.one_hot(classes, 5).float()
        logits = logits[:, None].repeat(1, tokens.shape[1], 1)
        logits[:, 0] = 0
        return logits


class Plain(nn.Module):
    """Any function of tokens and classes, as a network that cannot compute single positions."""

    def __init__(self, function: Callable[[Tensor, Tensor | None], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, tokens: Tensor, classes: Tensor | None) -> Tensor:
        return self.function(tokens, classes)


def undecided(tokens: Tensor, classes: Tensor | None) -> Tensor:
    return torch.zeros(*tokens.shape, 5)


def sampler_of(cfg: RunConfig, **options: Any) -> BaseSampler:
    return BaseSampler(ClassNet(), PixelCodec(5), cfg, class_names=("a", "b", "c"), **options)


def last_tokens(sampler: BaseSampler, *args: Any, **options: Any) -> Tensor:
    states = sampler.refine(*args, **options)
    return torch.cat([state.tokens for state in states if state.is_final])


def test_samples_are_pil_images_of_the_classes_in_turn(config: Config) -> None:
    images = sampler_of(config()).sample(4, seed=0)
    assert [image.size for image in images] == [(4, 4)] * 4
    assert [image.getpixel((3, 3)) for image in images] == [
        (round(level * 255 / 4),) * 3 for level in (0, 1, 2, 0)
    ]


@pytest.mark.parametrize(
    ("classes", "expected"),
    [("b", [1, 1, 1]), (2, [2, 2, 2]), (["c", 0], [2, 0, 2]), (None, [0, 1, 2]), ([], [0, 1, 2])],
)
def test_classes_go_by_name_or_number(config: Config, classes: Any, expected: list[int]) -> None:
    assert last_tokens(sampler_of(config()), 3, classes=classes)[:, 3, 3].tolist() == expected


def test_a_sample_is_the_same_in_any_batch_and_from_any_first(config: Config) -> None:
    sampler = sampler_of(config())
    whole = last_tokens(sampler, 7, seed=3)
    assert torch.equal(last_tokens(sampler, 7, seed=3, batch_size=2), whole)
    assert torch.equal(last_tokens(sampler, 3, seed=3, first=4), whole[4:])
    assert not torch.equal(last_tokens(sampler, 7, seed=4), whole)
    assert not torch.equal(last_tokens(sampler, 7), last_tokens(sampler, 7))


def test_every_step_of_every_batch_is_seen(config: Config) -> None:
    sampler = sampler_of(config({"sampling.early_stop": False}))
    seen = [(s.first, s.step, s.is_final, len(s.tokens)) for s in sampler.refine(3, batch_size=2)]
    assert seen == [
        *[(0, step, step == 3, 2) for step in range(4)],
        *[(2, step, step == 3, 1) for step in range(4)],
    ]


def test_settings_are_checked_as_a_run_file_is(config: Config) -> None:
    sampler = sampler_of(config())
    steps = [state.step for state in sampler.refine(1, steps=2, early_stop=False)]
    assert steps == [0, 1, 2]
    assert sampler.settings(end_temperature=0.5).temperature_ramp == (1.0, 0.5)
    with pytest.raises(UserError, match="sampling.temprature.*temperature"):
        sampler.sample(1, temprature=0.5)
    with pytest.raises(UserError, match=r"sampling\.steps.*0"):
        sampler.refine(1, steps=0)  # before the first sample
    with pytest.raises(UserError, match="class_dropout"):
        sampler.refine(1, guidance=2.0)
    with pytest.raises(UserError, match="class d: expected one of a, b, c, or 0 to 2"):
        sampler.refine(1, classes="d")
    with pytest.raises(UserError, match="smaller than the 4x4"):
        sampler.refine(1, canvas=(3, 4))


def test_batches_fit_into_memory(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = sampler_of(config())
    monkeypatch.setattr(memory, "LOGITS", 3 * 16 * 5)
    assert sampler.batch_size_for((4, 4)) == 3
    assert sampler.batch_size_for((4, 4), 2) == 2
    assert sampler.batch_size_for((400, 400)) == 1
    last_tokens(sampler, 7)
    assert isinstance(sampler.network, ClassNet) and max(sampler.network.sizes) == 3


def test_rows_that_are_given_stay_together(config: Config) -> None:
    tokens = torch.arange(4).repeat_interleave(16).view(4, 4, 4) % 3
    frozen = torch.zeros(4, 4, 4, dtype=torch.bool)
    frozen[:, :2] = True
    states = sampler_of(config()).refine_tokens(
        sample_seeds(0, 4),
        torch.tensor([2, 2, 1, 1]),
        tokens=tokens,
        frozen=frozen,
        batch_size=3,
        finish=lambda pixels: pixels[:, :, 3:],
    )
    final = [state for state in states if state.is_final]
    found = torch.cat([state.tokens for state in final])
    assert torch.equal(found[:, :2], tokens[:, :2])
    assert found[:, 3, 3].tolist() == [2, 2, 1, 1]
    assert [state.pixels().shape for state in final] == [(3, 3, 1, 4), (1, 3, 1, 4)]


def test_a_larger_canvas_makes_larger_images(config: Config) -> None:
    (image,) = sampler_of(config()).sample(1, canvas=(5, 9), classes=1)
    assert image.size == (9, 5)


def test_compile_is_no_setting_of_a_sampler_that_is_made(config: Config) -> None:
    sampler = sampler_of(config())
    assert sampler.settings(compile=None, steps=3).steps == 3
    with pytest.raises(UserError, match="compile is fixed when the sampler is made"):
        sampler.refine(1, compile=True)


def test_edits_have_the_null_class_unless_one_is_named(config: Config) -> None:
    sampler = sampler_of(config({"net.class_dropout": 0.1}))
    rows = sampler.class_rows(None, 2, null_default=True)
    assert rows is not None and rows.tolist() == [3, 3]
    rows = sampler.class_rows("b", 2, null_default=True, guided=True)
    assert rows is not None and rows.tolist() == [1, 1]
    with pytest.raises(UserError, match="guidance leads towards a class: name one"):
        sampler.class_rows(None, 2, null_default=True, guided=True)
    rows = sampler_of(config()).class_rows(None, 2, null_default=True)
    assert rows is not None and rows.tolist() == [0, 1]
    plain = sampler_of(config({"net.conditional": False, "net.num_classes": 0}))
    assert plain.class_rows(None, 2) is None
    with pytest.raises(UserError, match="class a: the network was trained without classes"):
        plain.class_rows("a", 2)


def test_the_codec_takes_and_returns_pil_images_and_tensors(config: Config) -> None:
    codec = sampler_of(config()).codec
    photo = Image.new("RGB", (6, 4), (255, 255, 255))
    photo.putpixel((0, 0), (0, 0, 0))
    tokens = codec.encode(photo)
    assert tokens.shape == (4, 6) and tokens[0, 0] == 0 and tokens[0, 1] == 4
    assert codec.decode(tokens).tobytes() == photo.tobytes()
    batch = to_tensor(photo)[None]
    assert torch.equal(codec.encode(batch), tokens[None])
    assert torch.equal(codec.decode(tokens[None]), batch)


def test_the_bundled_model_samples() -> None:
    sampler = BaseSampler.from_pretrained(device="cpu", precision="fp32")
    assert "food-drink" in sampler.class_names
    first, second = sampler.sample(2, classes="food-drink", seed=7, steps=2)
    assert first.size == second.size == (64, 64)
    assert first.tobytes() != second.tobytes()
    assert sampler.checkpoint is not None and sampler.checkpoint.info.step > 0
    cut = sampler.codec.encode(first.resize((70, 90)))
    assert cut.shape == (90 // sampler.codec.factor, 70 // sampler.codec.factor)
    with pytest.raises(UserError, match="smaller than a token"):
        sampler.codec.encode(Image.new("RGB", (1, 1)))


def test_what_belongs_not_together_is_refused(run_file: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="was trained with"):
        BaseSampler.from_pretrained(run_file=run_file())
    with pytest.raises(UserError, match="--steps"):
        BaseSampler.from_pretrained(flags={"sampling.steps": 0})
    with pytest.raises(UserError, match="does not exist"):
        BaseSampler.from_pretrained("nowhere")


def test_a_long_run_can_be_divided() -> None:
    whole = sample_seeds(3, 10)
    assert torch.equal(whole[:4], sample_seeds(3, 4))
    assert torch.equal(whole[4:], sample_seeds(3, 6, first=4))
    assert len(whole.unique()) == 10
    assert not torch.equal(whole, sample_seeds(4, 10))


@pytest.mark.parametrize(("steps", "name"), [(4, "renoise"), (20, "random")])
def test_samples_are_those_of_the_strategy_that_was_resolved(
    config: Config, steps: int, name: str
) -> None:
    sampler = BaseSampler(Plain(undecided), PixelCodec(5), config())
    drawn = {
        strategy: last_tokens(sampler, 4, seed=0, steps=steps, strategy=strategy)
        for strategy in ("auto", name, "halton")
    }
    assert torch.equal(drawn["auto"], drawn[name])
    assert not torch.equal(drawn["auto"], drawn["halton"])


def test_guidance_has_a_second_forward_pass_for_the_null_class(config: Config) -> None:
    seen: list[list[int]] = []

    def net(tokens: Tensor, classes: Tensor | None) -> Tensor:
        assert classes is not None
        seen.append(classes.tolist())
        return undecided(tokens, classes)

    sampler = BaseSampler(Plain(net), PixelCodec(5), config({"net.class_dropout": 0.1}))
    for guidance in (1.0, 3.0):
        list(sampler.refine(2, classes=[2, 0], steps=1, guidance=guidance))
    assert seen == [[2, 0], [2, 0, 3, 3]]


def test_strategies_know_the_grid_of_the_run(config: Config) -> None:
    schedule = make_schedule(1, sample_proportion=0.01, strategy="halton")
    tokens, classes = torch.full((1, 4, 4), 4), torch.tensor([1])
    states = sampler_of(config()).refine_tokens(
        sample_seeds(0, 1), classes, schedule, tokens=tokens
    )
    *_, last = states
    # Of 4 x 4 cells the first is in the middle row and a third across; of 1 x 16 it were the sixth.
    assert (last.tokens[0].flatten() != 4).nonzero().tolist() == [[9]]


def test_the_head_sees_only_tokens_that_may_change_and_draws_the_same(config: Config) -> None:
    cfg = config()
    net = build_network(cfg)
    nn.init.normal_(net.to_logits.weight)
    sizes: list[tuple[int, ...]] = []
    net.to_logits.register_forward_hook(lambda m, inputs, out: sizes.append(inputs[0].shape))
    tokens = torch.zeros(2, 4, 4, dtype=torch.long)
    frozen = torch.arange(16).expand(2, -1) >= torch.tensor([[4], [10]])

    def drawn(network: nn.Module) -> Tensor:
        sampler = BaseSampler(network, PixelCodec(5), cfg, precision="fp32")
        *_, last = sampler.refine_tokens(
            sample_seeds(0, 2),
            torch.tensor([0, 1]),
            make_schedule(6, sample_proportion=0.5, end_sample_proportion=0.5, early_stop=False),
            tokens=tokens,
            frozen=frozen.view(2, 4, 4),
        )
        return last.tokens

    some = drawn(net)
    assert sizes == [(2, 5, 8)] * 6  # half of the ten that may change where most may
    assert torch.equal(some, drawn(Plain(lambda t, c: net(t, c))))
    assert sizes[6:] == [(2, 16, 8)] * 6


def test_compiled_all_batches_have_one_size_and_the_samples_are_the_same(config: Config) -> None:
    sizes: list[int] = []

    def net(tokens: Tensor, classes: Tensor | None) -> Tensor:
        assert classes is not None
        return nn.functional.one_hot((classes[:, None] + tokens) % 5, 5).float()

    def watched(function: Any, *arguments: Any) -> Any:
        sizes.append(len(arguments[-1].state.tokens))
        return function(*arguments)

    sampler = BaseSampler(Plain(net), PixelCodec(5), config())
    eager = last_tokens(sampler, 7, seed=0, steps=2, batch_size=3)
    sampler.compiled = cast(Compiled, watched)
    assert torch.equal(last_tokens(sampler, 7, seed=0, steps=2, batch_size=3), eager)
    assert sizes == [3] * 6
    assert len(eager) == 7


def test_steps_are_compiled_where_the_run_file_says_so_or_on_a_gpu_where_it_pays(
    config: Config,
) -> None:
    sampler = sampler_of(config({"sampling.steps": 100}))
    sampler.compile_for(10**6)
    assert sampler.compiled is None
    sampler.device = torch.device("cuda")
    sampler.compile_for(4 * 64)
    assert sampler.compiled is None
    sampler.compile_for(5 * 64)
    assert sampler.compiled is not None
    sampler = sampler_of(config({"sampling.compile": True}))
    assert sampler.compiled is None  # the loader passes it on, sample grids do not
    sampler.compile_for(1)
    assert sampler.compiled is not None


def test_a_network_of_its_own_is_cast_to_bfloat16_once_and_draws_the_same(config: Config) -> None:
    cfg = config()
    net = build_network(cfg)
    nn.init.normal_(net.to_logits.weight)

    def drawn(**options: Any) -> Tensor:
        return last_tokens(BaseSampler(net, PixelCodec(5), cfg, **options), 4, seed=0, steps=5)

    def logits() -> Tensor:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return net(torch.arange(32).view(2, 16) % 5, torch.tensor([0, 1]))

    before, expected = drawn(precision="bf16"), logits()
    drawn(precision="fp32", owns_network=True)
    assert {p.dtype for p in net.parameters()} == {torch.float32}
    assert torch.equal(drawn(precision="bf16", owns_network=True), before)
    assert torch.equal(logits(), expected)
    halved = {type(m) for m in net.modules() for p in m.parameters(recurse=False)
              if p.dtype == torch.bfloat16}  # fmt: skip
    assert halved == {nn.Linear}
    assert net.stage.before[0].ff.down.bias.dtype == torch.bfloat16


def test_a_class_is_given_by_name_or_else_by_number() -> None:
    names = ["2", "10", "cat"]
    assert [class_number(name, names) for name in ("2", "10", "cat", "1", "0")] == [0, 1, 2, 1, 0]
    for wrong in ("3", "-1", "Cat", "", "²"):
        with pytest.raises(UserError, match="expected one of 2, 10, cat, or 0 to 2"):
            class_number(wrong, names)


def test_the_package_exports_the_sampler_of_every_room() -> None:
    import sundae

    assert issubclass(sundae.Sampler, BaseSampler) and hasattr(sundae.Sampler, "inpaint")
    with pytest.raises(AttributeError, match="Smapler"):
        sundae.Smapler  # noqa: B018
