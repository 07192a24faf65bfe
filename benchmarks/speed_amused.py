"""The track of `speed.py` against diffusers' `AmusedPipeline` at the same grid and vocabulary.

Random weights, no text encoder, no decoding. Three comparisons: at its parameters and at its FLOP,
both with its number of network evaluations; and each system as its authors recommend.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from speed_jobs import CONFIGS, Bench, Costs, Job, Track, Way, sampling_job
from torch import Tensor

from sundae.common.compiling import compile_modules
from sundae.common.errors import UserError
from sundae.config.run_file import RunConfig, load_config, update_config
from sundae.evaluation.cost import flop_of

# What aMUSEd's authors recommend.
STEPS, GUIDANCE = 12, 10.0
TEXT_TOKENS = 77

# The network of diffusers' defaults is aMUSEd's; this is one for tests.
_TINY: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "in_channels": 24,
    "block_out_channels": 24,
    "block_num_heads": 2,
    "num_res_blocks": 1,
}
# Widths of the text encoder's output that the network's defaults expect.
_POOLED, _STATES = 768, 768


def amused(bench: Bench, batch: int) -> Track:
    """Whole sampling of a batch, tokens only.

    Raises:
        UserError: diffusers or transformers is missing.
    """
    theirs = Theirs(bench, batch)
    ways = []
    for compiled in [False, True][: 1 + bench.setup.compiles]:
        ways += theirs.ways(compiled)
        ways += ours(bench, batch, theirs, compiled)
    height, width = bench.cfg.grid_shape
    codes = bench.cfg.data.vocab_size
    title = f"sampling {batch} grids of {height}x{width} tokens, {codes} codes, against aMUSEd"
    return Track("amused", title, ways, batch)


def diffusers_pipeline() -> Any:
    """(AmusedPipeline, AmusedScheduler, UVit2DModel)

    Raises:
        UserError: they are not installed.
    """
    try:
        from diffusers import AmusedPipeline, AmusedScheduler, UVit2DModel
        from diffusers.utils import is_transformers_available, logging

        logging.set_verbosity_error()  # that the pipeline is no longer maintained is known
        if not is_transformers_available():  # AmusedPipeline is a stand-in then
            raise ImportError
    except (ImportError, RuntimeError) as error:
        raise UserError(
            "the comparison with aMUSEd needs diffusers and transformers: "
            f"pip install -r requirements-bench.txt ({type(error).__name__}: {str(error)[:100]})"
        ) from None
    return AmusedPipeline, AmusedScheduler, UVit2DModel


class Theirs:
    """aMUSEd at a bench's grid and vocabulary."""

    def __init__(self, bench: Bench, batch: int) -> None:
        self.bench, self.batch = bench, batch
        self.pipeline_class, self.scheduler_class, self.network_class = diffusers_pipeline()
        with torch.device("meta"):
            counted = self._network()
            tokens = torch.zeros(1, *bench.cfg.grid_shape, dtype=torch.long)
            pooled, states = torch.zeros(1, _POOLED), torch.zeros(1, TEXT_TOKENS, _STATES)
            sizes = torch.zeros(1, 5)
        self.parameters = sum(p.numel() for p in counted.parameters())
        self.flop = flop_of(lambda: counted(tokens, states, pooled, sizes))

    def _network(self) -> Any:
        codes, side = self.bench.cfg.data.vocab_size, self.bench.cfg.grid_shape[0]
        tiny = _TINY if self.bench.cfg.net.dim < 64 else {}
        halves = side >= 32  # aMUSEd-512 halves its grid inside, aMUSEd-256 does not
        return self.network_class(
            vocab_size=codes + 64,
            codebook_size=codes,
            downsample=halves,
            upsample=halves,
            sample_size=side,
            **tiny,
        )

    def ways(self, compiled: bool) -> Iterator[Way]:
        """At as many evaluations as steps, and as recommended."""
        bf16 = self.bench.precision
        suffix = " compiled" if compiled else ""
        for guided in (False, True):
            evaluations = STEPS * (1 + guided)
            what = f"guidance {GUIDANCE:g}, recommended" if guided else "no guidance"
            yield Way(
                f"aMUSEd, {STEPS} steps, {what}{suffix}",
                partial(self._job, compiled, guided),
                bf16,
                self.parameters,
                self.batch * evaluations * self.flop,
                evaluations,
                compiled,
            )

    def _job(self, compiled: bool, guided: bool) -> Job | None:
        bench = self.bench
        dtype = torch.bfloat16 if bench.precision == "bf16" else torch.float32
        torch.manual_seed(0)
        with bench.device:
            net = self._network().eval().to(dtype)
        if compiled and not compile_modules(net):
            return None
        pipeline = self.pipeline_class(
            vqvae=None,
            tokenizer=None,
            text_encoder=None,
            transformer=net,
            scheduler=self.scheduler_class(mask_token_id=bench.cfg.data.vocab_size + 63),
        )
        pipeline.set_progress_bar_config(disable=True)
        text = self._text(dtype)
        call = partial(pipeline, **text, output_type="latent", return_dict=False)
        call = partial(call, guidance_scale=GUIDANCE if guided else 1.0)
        call = partial(_as_shipped, call)
        return Job(partial(call, num_inference_steps=STEPS), partial(call, num_inference_steps=2))

    def _text(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Stands for the text encoder's output."""
        place: dict[str, Any] = {"device": self.bench.device, "dtype": dtype}
        pooled = torch.randn(self.batch, _POOLED, **place)
        states = torch.randn(self.batch, TEXT_TOKENS, _STATES, **place)
        return {
            "prompt_embeds": pooled,
            "encoder_hidden_states": states,
            "negative_prompt_embeds": pooled,
            "negative_encoder_hidden_states": states,
        }


def _as_shipped(call: Callable[..., Any], **options: Any) -> Any:
    """The call with every attention kernel that PyTorch allows; our network leaves out cuDNN's."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        return call(**options)
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


# -- our side -------------------------------------------------------------------------------------


def ours(bench: Bench, batch: int, theirs: Theirs, compiled: bool) -> Iterator[Way]:
    """At its parameters, at its FLOP, as recommended; the fast network where there is one."""
    cfg = bench.cfg
    steps = bench.schedule().steps
    yield _way("its parameters", bench, matched(cfg, _parameters, theirs.parameters), batch,
               STEPS, compiled)  # fmt: skip
    yield _way("its FLOP", bench, matched(cfg, _flop, theirs.flop), batch, STEPS, compiled)
    yield _way("recommended", bench, cfg, batch, steps, compiled)
    fast = CONFIGS / bench.setup.config.stem / "fast.toml"
    if fast.exists() and not bench.setup.overrides:  # which make the network another one
        cfg = load_config(fast)
        yield _way("fast, recommended", bench, cfg, batch, cfg.sampling.steps, compiled)


def _way(what: str, bench: Bench, cfg: RunConfig, batch: int, steps: int, compiled: bool) -> Way:
    own = Bench(bench.setup, cfg)
    schedule = replace(own.schedule(), steps=steps)
    flop = batch * own.costs.sampling(schedule, all_logits=False)
    name = f"ours, {steps} steps, {what}" + (" compiled" if compiled else "")

    def make() -> Job | None:
        brief = replace(schedule, steps=min(3, steps))
        return sampling_job(own, own.prior(compiled), batch, schedule, brief)

    return Way(
        name, make, own.precision, own.costs.parameters, flop, steps, compiled, graphs=compiled
    )


def _parameters(costs: Costs) -> int:
    return costs.parameters


def _flop(costs: Costs) -> int:
    return costs.forward()


def matched(cfg: RunConfig, measure: Callable[[Costs], int], wanted: int) -> RunConfig:
    """The run file at the width whose measure comes nearest to what is wanted.

    Heads stay as many on every grid, each a multiple of 8 wide.
    """
    net = cfg.net
    heads = [net.nb_heads * width // net.dim for width in net.dims or ()]

    def at(multiple: int) -> RunConfig:
        wide = 8 * multiple
        dims = [wide * count for count in heads] or None
        return update_config(cfg, {"net.dim": wide * net.nb_heads, "net.dims": dims})

    def excess(multiple: int) -> int:
        return measure(Costs(at(multiple))) - wanted

    low, high = 1, 2
    while excess(high) < 0:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if excess(middle) < 0 else (low, middle)
    return at(min((low, high), key=lambda multiple: abs(excess(multiple))))
