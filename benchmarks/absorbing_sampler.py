"""The baseline's samplers: tokens are unmasked by confidence (MaskGIT) or in Halton's order."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from absorbing_training import KIND, load_absorbing
from torch import Tensor

from sundae.codec.interface import open_codec
from sundae.common.errors import UserError
from sundae.common.precision import Precision
from sundae.config.run_file import parse_config
from sundae.config.sections import SamplingConfig
from sundae.prior.categorical import draw_tokens, seeded_uniforms
from sundae.prior.checkpoint import open_checkpoint
from sundae.prior.compatibility import check_same_codec, check_same_network
from sundae.sampling.canvas import Shape
from sundae.sampling.loop import Refinement
from sundae.sampling.sampler import BaseSampler
from sundae.sampling.strategies import halton_order

BASELINE = ("confidence", "halton")

# (tokens (batch, length), classes (batch,) or None, positions (batch, n)) -> logits (batch, n, V)
DenoiseAt = Callable[[Tensor, Tensor | None, Tensor], Tensor]


def masked_after(length: int, steps: int) -> list[int]:
    """How many tokens are masked after each step: MaskGIT's cosine schedule, 0 after the last.

    At least one token is unmasked in a step, and one is left for the last step, as in MaskGIT's
    code.
    """
    left, counts = length, []
    for step in range(1, steps):
        wanted = math.floor(length * math.cos(math.pi / 2 * step / steps))
        left = max(1, min(left - 1, wanted))
        counts.append(left)
    return [*counts, 0]


def unmask(
    denoise_at: DenoiseAt,
    *,
    seeds: Tensor,
    length: int,
    vocab_size: int,
    schedule: SamplingConfig,
    grid: Shape,
    classes: Tensor | None = None,
    null_class: int | None = None,
) -> Tensor:
    """Sample from masked tokens to none, without host-device synchronisation.

    In each step masked tokens take a draw, and the surest of the draws stay ("confidence", arXiv
    2202.04200): the rank is the log likelihood of the draw plus Gumbel noise times the choice
    temperature, which falls to 0. Or the next tokens of the Halton sequence are drawn ("halton",
    arXiv 2503.17076). Both follow `masked_after`; logits are computed for tokens that are drawn.

    Args:
        seeds: (batch,) int64; a sample depends on its own seed alone.
        vocab_size: also the number of the mask among the tokens.
        schedule: its steps, strategy, temperature, guidance, choice_temperature, top_k and top_p.
        classes: (batch,) int64 for a conditional network.

    Returns:
        (batch, length) int64 in [0, vocab_size).
    """
    by_order = schedule.resolved_strategy == "halton"
    order = halton_order(*grid, seeds.device)
    tokens = torch.full((len(seeds), length), vocab_size, device=seeds.device)
    before = length
    for step, after in enumerate(masked_after(length, schedule.steps)):
        if by_order:
            places = order[length - before : length - after].expand(len(seeds), -1)
        else:  # those of the masked tokens, whose number is known
            places = (tokens == vocab_size).byte().argsort(dim=1, descending=True, stable=True)
            places = places[:, :before]
        if places.shape[1] == 0:  # more steps than tokens
            continue
        logits = _guided(
            denoise_at, tokens, classes, places, schedule.guidance_at(step), null_class
        )
        uniforms = seeded_uniforms(seeds, 2 * step, length).gather(1, places)
        fresh = draw_tokens(
            logits, uniforms, schedule.temperature_at(step),
            top_k=schedule.top_k, top_p=schedule.top_p,
        )  # fmt: skip
        if not by_order and after:
            noise = seeded_uniforms(seeds, 2 * step + 1, length).gather(1, places)
            gumbel = -torch.log(-torch.log(noise + 2.0**-25))
            sure = logits.float().log_softmax(-1).gather(-1, fresh[..., None])[..., 0]
            # It is 0 in the last step, as 1 - (step + 1) / steps is in MaskGIT's code.
            heat = schedule.choice_temperature * (1 - (step + 1) / schedule.steps)
            stay = (sure + heat * gumbel).topk(before - after, dim=1).indices
            places, fresh = places.gather(1, stay), fresh.gather(1, stay)
        tokens = tokens.scatter(1, places, fresh)
        before = after
    return tokens


def _guided(
    denoise_at: DenoiseAt,
    tokens: Tensor,
    classes: Tensor | None,
    places: Tensor,
    guidance: float,
    null_class: int | None,
) -> Tensor:
    """Logits at places, with classifier-free guidance (arXiv 2207.12598) unless it is 1."""
    if guidance == 1 or classes is None:
        return denoise_at(tokens, classes, places)
    assert null_class is not None
    both = torch.cat((classes, torch.full_like(classes, null_class)))
    logits = denoise_at(tokens.repeat(2, 1), both, places.repeat(2, 1))
    conditional, null = logits.float().chunk(2)
    return null + guidance * (conditional - null)


class AbsorbingSampler(BaseSampler):
    """Samples of the baseline through the front door of `BaseSampler`: seeds, batches, decoding.

    Only the last state of a batch is yielded, since a mask does not decode.
    """

    @classmethod
    def of_run(
        cls,
        run: Path,
        *,
        overrides: Sequence[str] = (),
        ema: bool = True,
        device: torch.device,
        codec_device: torch.device | str = "cpu",
        precision: Precision = "auto",
        prefer_best: bool = True,
    ) -> Self:
        """Load the baseline of a run folder or checkpoint; see `BaseSampler.from_pretrained`."""
        checkpoint = open_checkpoint(run, kind=KIND, prefer_best=prefer_best)
        cfg = parse_config(checkpoint.info.config, str(checkpoint.folder), overrides)
        check_same_network(cfg, checkpoint)
        codec = open_codec(cfg)
        check_same_codec(codec.identity, checkpoint)
        sampler = cls(
            load_absorbing(checkpoint, ema=ema).to(device),
            codec.to(codec_device),
            cfg,
            class_names=checkpoint.info.classes or (),
            device=device,
            precision=precision,
            owns_network=True,
        )
        sampler.checkpoint = checkpoint
        return sampler

    def settings(self, **changes: Any) -> SamplingConfig:
        """Also UserError for a strategy that is not the baseline's; confidence is the default."""
        known: Mapping[str, Any] = {"strategy": "confidence"}
        if self.cfg.sampling.strategy in BASELINE:
            known = {}
        sampling = super().settings(**{**known, **changes})
        if sampling.strategy not in BASELINE:
            raise UserError(
                f"strategy {sampling.strategy}: the baseline has {' and '.join(BASELINE)}"
            )
        return sampling

    @torch.inference_mode()
    def _sample(self, rows: list[Tensor | None], sampling: SamplingConfig, canvas: Shape) -> Tensor:
        seeds, classes, *given = rows
        assert seeds is not None
        if canvas != self.grid or any(row is not None for row in given):
            raise UserError("the baseline samples whole images on the trained grid only")
        return unmask(
            self._denoise,
            seeds=seeds,
            length=math.prod(canvas),
            vocab_size=self.cfg.data.vocab_size,
            schedule=sampling,
            grid=canvas,
            classes=classes,
            null_class=self.cfg.net.null_class,
        )

    def _refine_batch(
        self, rows: list[Tensor | None], sampling: SamplingConfig, canvas: Shape
    ) -> Iterator[Refinement]:
        yield Refinement(self._sample(rows, sampling, canvas), sampling.steps, 0, True)
