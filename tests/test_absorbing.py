"""The absorbing-mask baseline: its objective, its samplers, and the comparison with ours."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import absorbing_training
import pytest
import torch
from absorbing_compare import parse_settings
from absorbing_sampler import AbsorbingSampler, masked_after, unmask
from absorbing_training import (
    AbsorbingNetwork,
    AbsorbingTask,
    draw_mask,
    for_equal_passes,
    mask_rates,
)
from conftest import LEVELS, Ended, make_schedule
from fake_cuda import CPU, CUDA, FakeCuda
from pixel_reader import read_pixels
from safetensors.torch import load_file
from torch import Tensor, nn

from sundae.common.errors import UserError
from sundae.config.run_file import RunConfig

Config = Callable[..., RunConfig]
Script = Callable[..., Ended]
RunFile = Callable[..., Path]
LENGTH = 16
BATCH = {"tokens": torch.arange(64).reshape(4, LENGTH) % LEVELS, "classes": torch.arange(4) % 3}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# -- objective ------------------------------------------------------------------------------------


def test_rates_of_the_mask_are_the_cosine_of_a_uniform_number() -> None:
    rates = mask_rates(4096, generator())
    assert rates.mean().item() == pytest.approx(2 / math.pi, abs=1e-3)
    assert (rates < 0.5).float().mean().item() == pytest.approx(1 / 3, abs=1e-3)
    masked = draw_mask(rates, 256, generator(1)).float().mean(1)
    assert (masked - rates).abs().max() < 0.2


@pytest.mark.parametrize(("right_where_masked", "accuracy"), [(True, 1.0), (False, 0.0)])
def test_only_masked_tokens_count(
    config: Config, right_where_masked: bool, accuracy: float
) -> None:
    tokens = BATCH["tokens"]

    class Net(nn.Module):
        def forward(self, visible: Tensor, classes: Tensor | None) -> Tensor:
            masked = visible == LEVELS
            assert torch.equal(visible[~masked], tokens[~masked])
            right = masked if right_where_masked else ~masked
            guess = torch.where(right, tokens, (tokens + 1) % LEVELS)
            return 50.0 * nn.functional.one_hot(guess, LEVELS).float()

    ((loss, metrics),) = AbsorbingTask(config()).losses(Net(), BATCH, generator())
    assert metrics["accuracy"] == accuracy
    assert loss.item() == pytest.approx(0 if right_where_masked else 50, abs=1e-4)


def test_the_mask_is_an_input_and_never_an_output(config: Config) -> None:
    net = AbsorbingNetwork(config())
    logits = net(torch.full((2, LENGTH), LEVELS), torch.tensor([0, 1]))
    assert logits.shape == (2, LENGTH, LEVELS)
    ((loss, _),) = AbsorbingTask(config()).losses(net, BATCH, generator())
    assert loss.item() == pytest.approx(math.log(LEVELS))


def test_a_loss_in_parts_has_the_gradients_of_the_whole(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for size in (2**22, 1):
        monkeypatch.setattr(absorbing_training, "_CHUNK_CPU", size)
        torch.manual_seed(0)
        net = AbsorbingNetwork(config())
        nn.init.normal_(net.to_logits.weight)
        ((loss, _),) = AbsorbingTask(config()).losses(net, BATCH, generator())
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in net.parameters())])
    for whole, parts in zip(*found):
        torch.testing.assert_close(whole, parts)


def test_a_step_on_a_gpu_is_that_on_a_cpu_and_never_waits(config: Config, cuda: FakeCuda) -> None:
    found = []
    for device in (CPU, CUDA):
        torch.manual_seed(0)
        net = AbsorbingNetwork(config({"net.class_dropout": 0.1}))
        nn.init.normal_(net.to_logits.weight)
        net = net.to(device)
        batch = {name: tensor.to(device) for name, tensor in BATCH.items()}
        task = AbsorbingTask(config({"net.class_dropout": 0.1}))
        cuda.waits.clear()
        with torch.no_grad():
            ((loss, _),) = task.losses(net, batch, torch.Generator(device).manual_seed(0))
        assert not cuda.waits
        found.append(loss.item())
    assert found[0] == pytest.approx(found[1])


def test_equal_passes_are_as_many_more_steps_as_ours_unrolls(config: Config) -> None:
    schedule = {"nb_warmup_steps": 10, "nb_training_steps": 100}
    cfg = config(
        {
            "unroll_steps": 3,
            "trainer.max_steps": 100,
            "trainer.lr_scheduler_name": "cosine_with_warmup",
            "trainer.lr_scheduler_kwargs": schedule,
        }
    )
    trainer = for_equal_passes(cfg).trainer
    assert trainer.max_steps == 300 and trainer.checkpoint_frequency == 6
    assert trainer.lr_scheduler_kwargs == {"nb_warmup_steps": 30, "nb_training_steps": 300}


# -- samplers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 4, 16, 20])
def test_the_schedule_is_a_cosine_that_ends_without_a_mask(steps: int) -> None:
    counts = masked_after(LENGTH, steps)
    assert len(counts) == steps and counts[-1] == 0
    assert all(a > b or a == 1 for a, b in zip([LENGTH, *counts], counts))
    if steps == 4:
        assert counts == [14, 11, 6, 0]


class Copies:
    """A model of grids of one value, which is uniform: its conditionals are exact."""

    def __init__(self, codes: int) -> None:
        self.codes, self.masked = codes, list[int]()

    def __call__(self, tokens: Tensor, classes: Tensor | None, places: Tensor) -> Tensor:
        masked = tokens == self.codes
        assert masked.gather(1, places).all()
        self.masked.append(int(masked[0].sum()))
        seen = tokens.masked_fill(masked, -1).amax(1)
        known = 50.0 * nn.functional.one_hot(seen.clamp(min=0), self.codes).float()
        logits = torch.where(seen[:, None] < 0, 0.0, known)
        return logits[:, None].expand(*places.shape, self.codes)


@pytest.mark.parametrize("strategy", ["confidence", "halton"])
def test_samples_follow_exact_conditionals_where_tokens_come_one_by_one(strategy: str) -> None:
    model = Copies(4)
    seeds = torch.arange(2000)
    tokens = unmask(
        model, seeds=seeds, length=LENGTH, vocab_size=4, grid=(4, 4),
        schedule=make_schedule(LENGTH, strategy=strategy, choice_temperature=4.5),
    )  # fmt: skip
    assert model.masked == list(range(LENGTH, 0, -1))
    assert (tokens == tokens[:, :1]).all()
    shares = torch.bincount(tokens[:, 0], minlength=4) / len(tokens)
    assert (shares - 0.25).abs().max() < 0.04


@pytest.mark.parametrize("strategy", ["confidence", "halton"])
def test_a_sample_belongs_to_its_seed_not_to_its_batch(strategy: str) -> None:
    table = torch.randn(LENGTH, 4, generator=generator())

    def model(tokens: Tensor, classes: Tensor | None, places: Tensor) -> Tensor:
        return table[places]

    def draw(seeds: Tensor) -> Tensor:
        schedule = make_schedule(5, strategy=strategy)
        return unmask(model, seeds=seeds, length=LENGTH, vocab_size=4, grid=(4, 4),
                      schedule=schedule)  # fmt: skip

    together = draw(torch.arange(8))
    assert torch.equal(together[3:4], draw(torch.tensor([3])))
    assert len(torch.unique(together, dim=0)) > 1


def test_the_surest_draws_stay_where_the_choice_is_not_random() -> None:
    certain = torch.tensor([3, 7, 12])
    visible = []

    def model(tokens: Tensor, classes: Tensor | None, places: Tensor) -> Tensor:
        visible.append((tokens != 4).nonzero()[:, 1].tolist())
        logits = torch.zeros(LENGTH, 4)
        logits[certain, 1] = 50.0
        return logits[places]

    unmask(model, seeds=torch.tensor([0]), length=LENGTH, vocab_size=4, grid=(4, 4),
           schedule=make_schedule(5, strategy="confidence", choice_temperature=0.0))  # fmt: skip
    assert visible[0] == [] and set(visible[1]) < set(certain.tolist())
    assert set(visible[2]) >= set(certain.tolist())


def test_guidance_leads_from_the_null_class_to_the_class() -> None:
    def model(tokens: Tensor, classes: Tensor | None, places: Tensor) -> Tensor:
        assert classes is not None
        # The class prefers 1 to 2 a little less than the null class does; both dislike 0.
        rows = torch.tensor([[-9.0, 1.0, 0.8], [-9.0, 1.0, 0.0]])
        return rows[(classes == 3).long()][:, None].expand(*places.shape, 3)

    def draw(guidance: float) -> Tensor:
        schedule = make_schedule(4, temperature=0.0, end_temperature=0.0, strategy="halton",
                                 guidance=guidance)  # fmt: skip
        return unmask(model, seeds=torch.arange(2), length=LENGTH, vocab_size=3, grid=(4, 4),
                      schedule=schedule, classes=torch.tensor([0, 1]), null_class=3)  # fmt: skip

    assert (draw(1.0) == 1).all() and (draw(2.0) == 2).all()


# -- script ---------------------------------------------------------------------------------------


def test_a_resumed_training_is_that_of_one_go(
    script: Script, run_file: RunFile, tmp_path: Path
) -> None:
    steps = "--set", "trainer.max_steps=4"
    common = ("--cfg-path", run_file(), "--seed", 0)
    for words in (("two",), ("two", *steps), ("four", *steps)):
        ended = script("absorbing", *common, "--run-dir", tmp_path / words[0], *words[1:])
        assert ended.code == 0, ended
    last = [
        tmp_path / name / "checkpoints/step-0000004/ema.safetensors" for name in ("two", "four")
    ]
    ours, theirs = map(load_file, last)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    with pytest.raises(UserError, match="strategy renoise"):
        AbsorbingSampler.of_run(tmp_path / "two", device=CPU).settings(strategy="renoise")
    assert "prior" in script("sample", "--resume", tmp_path / "two").refusal()


def test_the_comparison_scores_both_sides_at_equal_evaluations(
    script: Script, run_file: RunFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_pixels(monkeypatch, tmp_path / "cache")
    changes = {"net.class_dropout": 0.1}
    assert script("train", "--cfg-path", run_file(changes), "--run-dir", tmp_path / "a").code == 0
    words = (
        "--cfg-path", run_file(changes), "--run-dir", tmp_path / "b", "--compare", tmp_path / "a",
        "--steps", 2, 4, "--nb-samples", 12, "--baseline-set", "confidence.guidance=2.0",
        "--tune", "--tune-temperatures", "1", "1:0.5", "--tune-choice", 1, 2,
        "--tune-steps", 2, "--seeds", 0,
    )  # fmt: skip
    ended = script("absorbing", *words)
    assert ended.code == 0, ended
    folder = tmp_path / "b" / "comparison"
    lines = json.loads((folder / "comparison.json").read_text())["lines"]
    assert len(lines) == 8
    assert {line["evaluations"] for line in lines} == {2, 4}
    guided = [line["point"] for line in lines if line["strategy"] == "confidence"]
    assert [(point["steps"], point["guidance"]) for point in guided] == [(1, 2.0), (2, 2.0)]
    tuned = json.loads((folder / "tuning-baseline" / "sweep.json").read_text())["rows"]
    scores = [
        (row["figures"]["frechet_distance"], row["point"])
        for row in tuned
        if row["point"]["strategy"] == "confidence"
    ]
    assert len(scores) == 4
    assert (min(score for score, _ in scores), guided[0]) in scores
    assert guided[1] == guided[0] | {"steps": 2}
    text = (folder / "comparison.md").read_text()
    assert "| 4 | baseline | halton |" in text and "| 2 | ours | renoise |" in text
    for name in ("comparison.png", "baseline-halton.png", "ours-posterior.png"):
        assert (folder / name).stat().st_size > 0


def test_settings_of_one_strategy_and_of_all() -> None:
    texts = ["guidance=2.0", "halton.temperature=0.5"]
    given = parse_settings(texts, ("confidence", "halton"), "--baseline-set")
    assert given == {None: {"guidance": 2.0}, "halton": {"temperature": 0.5}}
    with pytest.raises(UserError, match=r"--baseline-set steps=3"):
        parse_settings(["steps=3"], ("halton",), "--baseline-set")


def test_nothing_of_ours_imports_the_baseline() -> None:
    root = Path(__file__).parents[1]
    for path in [*(root / "sundae").rglob("*.py"), *root.glob("*.py")]:
        assert "absorbing" not in path.read_text(encoding="utf-8"), path
