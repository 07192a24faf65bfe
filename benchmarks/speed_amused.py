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
from speed_jobs import CONFIGS, Bench, Job, Track, Variant, sampling_job
from speed_tracks import brief

from sundae.common.compiling import compile_modules
from sundae.common.errors import UserError
from sundae.config.run_file import RunConfig, load_config, update_config
from sundae.evaluation.cost import Cost, flop_of, parameter_count

# What aMUSEd's authors recommend.
STEPS, GUIDANCE = 12, 10.0
TEXT_TOKENS = 77

# The network of diffusers' defaults is aMUSEd's; this is one for tests.
_TINY: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64,
    "in_channels": 24, "block_out_channels": 24, "block_num_heads": 2, "num_res_blocks": 1,
}  # fmt: skip
# Width of the text encoder's output that the network's defaults expect.
_TEXT = 768


def amused(bench: Bench, batch: int) -> Track:
    """Whole sampling of a batch, tokens only.

    Raises:
        UserError: diffusers or transformers is missing.
    """
    amused = Amused(bench, batch)
    variants = []
    for compiled in [False, True][: 1 + bench.setup.compiles]:
        variants += amused.variants(compiled)
        variants += ours(bench, batch, amused, compiled)
    height, width = bench.cfg.grid_shape
    codes = bench.cfg.data.vocab_size
    title = f"sampling {batch} grids of {height}x{width} tokens, {codes} codes, against aMUSEd"
    return Track("amused", title, variants, batch)


class Amused:
    """aMUSEd at a bench's grid and vocabulary."""

    def __init__(self, bench: Bench, batch: int) -> None:
        """Raises UserError where diffusers or transformers is missing."""
        self.bench, self.batch = bench, batch
        try:
            import diffusers

            diffusers.utils.logging.set_verbosity_error()  # that it is unmaintained is known
            if not diffusers.utils.is_transformers_available():  # the pipeline is a stand-in then
                raise ImportError
            self.pipeline, self.scheduler = diffusers.AmusedPipeline, diffusers.AmusedScheduler
            self.network_class = diffusers.UVit2DModel
        except (ImportError, RuntimeError) as error:
            raise UserError(
                "the comparison with aMUSEd needs diffusers and transformers: pip install -r "
                f"requirements-bench.txt ({type(error).__name__}: {str(error)[:100]})"
            ) from None
        with torch.device("meta"):
            counted = self._network()
            tokens = torch.zeros(1, *bench.cfg.grid_shape, dtype=torch.long)
            pooled, states = torch.zeros(1, _TEXT), torch.zeros(1, TEXT_TOKENS, _TEXT)
            sizes = torch.zeros(1, 5)
        self.parameters = parameter_count(counted)
        self.flop = flop_of(lambda: counted(tokens, states, pooled, sizes))

    def _network(self) -> Any:
        codes, side = self.bench.cfg.data.vocab_size, self.bench.cfg.grid_shape[0]
        tiny = _TINY if self.bench.cfg.net.dim < 64 else {}
        halves = side >= 32  # aMUSEd-512 halves its grid inside, aMUSEd-256 does not
        return self.network_class(vocab_size=codes + 64, codebook_size=codes, downsample=halves,
                                  upsample=halves, sample_size=side, **tiny)  # fmt: skip

    def variants(self, compiled: bool) -> Iterator[Variant]:
        """At as many evaluations as steps, and as recommended."""
        for guided in (False, True):
            evaluations = STEPS * (1 + guided)
            what = f"guidance {GUIDANCE:g}, recommended" if guided else "no guidance"
            name = f"aMUSEd, {STEPS} steps, {what}" + (" compiled" if compiled else "")
            flop = self.batch * evaluations * self.flop
            yield Variant(name, partial(self._job, compiled, guided), self.bench.precision,
                          self.parameters, flop, evaluations, compiled)  # fmt: skip

    def _job(self, compiled: bool, guided: bool) -> Job | None:
        bench = self.bench
        dtype = torch.bfloat16 if bench.precision == "bf16" else torch.float32
        torch.manual_seed(0)
        with bench.device:
            net = self._network().eval().to(dtype)
        if compiled and not compile_modules(net):
            return None
        pipeline = self.pipeline(
            vqvae=None, tokenizer=None, text_encoder=None, transformer=net,
            scheduler=self.scheduler(mask_token_id=bench.cfg.data.vocab_size + 63),
        )  # fmt: skip
        pipeline.set_progress_bar_config(disable=True)
        pooled = torch.randn(self.batch, _TEXT, device=bench.device, dtype=dtype)
        states = torch.randn(self.batch, TEXT_TOKENS, _TEXT, device=bench.device, dtype=dtype)

        def run(steps: int) -> None:
            # With every attention kernel that PyTorch allows; our network leaves out cuDNN's.
            before = torch.backends.cuda.cudnn_sdp_enabled()
            torch.backends.cuda.enable_cudnn_sdp(True)
            try:
                pipeline(prompt_embeds=pooled, encoder_hidden_states=states,
                         negative_prompt_embeds=pooled, negative_encoder_hidden_states=states,
                         guidance_scale=GUIDANCE if guided else 1.0, num_inference_steps=steps,
                         output_type="latent", return_dict=False)  # fmt: skip
            finally:
                torch.backends.cuda.enable_cudnn_sdp(before)

        return Job(partial(run, STEPS), partial(run, 2))


# -- our side -------------------------------------------------------------------------------------


def ours(bench: Bench, batch: int, amused: Amused, compiled: bool) -> Iterator[Variant]:
    """At its parameters, at its FLOP, as recommended; the fast network where there is one."""
    cfg = bench.cfg

    def variant(what: str, cfg: RunConfig, steps: int) -> Variant:
        own = Bench(bench.setup, cfg)
        sampling = own.sampling(steps)
        cost = Cost(replace(cfg, sampling=sampling))
        name = f"ours, {steps} steps, {what}" + (" compiled" if compiled else "")
        make = partial(sampling_job, own, compiled, batch, sampling, brief(sampling))
        return Variant(name, make, own.precision, cost.parameters, batch * cost.sampling_flops(),
                       steps, compiled, graphs=compiled)  # fmt: skip

    yield variant("its parameters", matched(cfg, parameters_of, amused.parameters), STEPS)
    yield variant("its FLOP", matched(cfg, Cost.forward_flops, amused.flop), STEPS)
    yield variant("recommended", cfg, bench.sampling().steps)
    fast = CONFIGS / bench.setup.config.stem / "fast.toml"
    if fast.exists() and not bench.setup.overrides:  # which make the network another one
        cfg = load_config(fast)
        yield variant("fast, recommended", cfg, cfg.sampling.steps)


def parameters_of(cost: Cost) -> int:
    """Of the network."""
    return cost.parameters


def matched(cfg: RunConfig, measure: Callable[[Cost], int], target: int) -> RunConfig:
    """The run file at the width whose measure comes nearest to the target.

    Heads stay as many on every grid, each a multiple of 8 wide.
    """
    net = cfg.net
    heads = [net.nb_heads * width // net.dim for width in net.dims or ()]

    def at(multiple: int) -> RunConfig:
        wide = 8 * multiple
        dims = [wide * count for count in heads] or None
        return update_config(cfg, {"net.dim": wide * net.nb_heads, "net.dims": dims})

    def excess(multiple: int) -> int:
        return measure(Cost(at(multiple))) - target

    low, high = 1, 2
    while excess(high) < 0:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if excess(middle) < 0 else (low, middle)
    return at(min((low, high), key=lambda multiple: abs(excess(multiple))))
