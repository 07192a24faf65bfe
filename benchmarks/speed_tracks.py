"""The tracks of `speed.py`: each is one kind of work with its variants."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from speed_jobs import (
    TEXTBOOK,
    Bench,
    Job,
    Track,
    Variant,
    bytes_of,
    forward_job,
    sampling_job,
    textbook_training_job,
    training_job,
)
from textbook import Textbook, sample
from torch import Tensor

from sundae.codec.vqgan import VQGANCodec, new_vqgan
from sundae.config.sections import SamplingConfig
from sundae.evaluation.cost import Cost, flop_of, parameter_count

# Steps of a call that measures one step: enough to drown what a call costs once.
_STEPS_OF_A_CALL = 2


def network_variants(
    bench: Bench,
    flop: int,
    evaluations: int,
    textbook: Callable[[], Job],
    ours: Callable[[bool], Job | None],
    *,
    textbook_flop: int | None = None,
    graphs: bool = False,
) -> list[Variant]:
    """The textbook's, and ours eager and compiled."""
    parameters = bench.cost.parameters
    found = [Variant(TEXTBOOK, textbook, "fp32", parameters, textbook_flop or flop, evaluations)]
    for name, compiled in bench.eager_and_compiled():
        make = partial(ours, compiled)
        found.append(Variant(name, make, bench.precision, parameters, flop, evaluations, compiled,
                             graphs and compiled))  # fmt: skip
    return found


def forward(bench: Bench, batch: int) -> Track:
    """Logits of all positions."""

    def ours(compiled: bool) -> Job | None:
        net = bench.compiled_net() if compiled else bench.twin()
        return forward_job(bench, net, batch, "auto")

    def textbook() -> Job | None:
        return forward_job(bench, Textbook.around(bench.twin()), batch, "fp32")

    variants = network_variants(bench, batch * bench.cost.forward_flops(), 1, textbook, ours)
    return Track("forward", f"network forward, batch {batch}", variants, batch)


def train(bench: Bench, batch: int) -> Track:
    """Forward, backward, clipping, optimiser."""

    def ours(compiled: bool, checkpointing: bool = False) -> Job | None:
        net = bench.compiled_net() if compiled else bench.twin()
        if checkpointing:
            net.set_gradient_checkpointing(True)
        return training_job(bench, net, batch)

    unroll, flop = bench.cfg.unroll_steps, batch * bench.cost.training_flops()
    textbook = partial(textbook_training_job, bench, batch)
    variants = network_variants(bench, flop, unroll, textbook, ours)
    checkpointed = partial(ours, False, checkpointing=True)
    name = f"ours {bench.precision} checkpointed"
    variants.append(replace(variants[1], name=name, make=checkpointed))
    return Track("train", f"training step, batch {batch}, unroll {unroll}", variants, batch)


def step(bench: Bench, batch: int) -> Track:
    """One sampling step at the mean proportion of the run file."""
    mean = sum(bench.sampling().proportion_ramp) / 2
    sampling = replace(bench.sampling(_STEPS_OF_A_CALL), sample_proportion=mean,
                       end_sample_proportion=mean)  # fmt: skip
    variants = _sampling_variants(bench, batch, sampling, sampling)
    title = f"sampling step, batch {batch}, proportion {mean:.2g}"
    return Track("sampling step", title, variants, batch, parts=sampling.steps)


def sampling(bench: Bench, batch: int) -> Track:
    """From noise to tokens."""
    config = bench.sampling()
    title = f"sampling {batch} images, {config.steps} steps, without decoding"
    return Track("sampling", title, _sampling_variants(bench, batch, config, brief(config)), batch)


def brief(sampling: SamplingConfig) -> SamplingConfig:
    """Three steps between the same proportions: shapes that vary have varied."""
    return replace(sampling, steps=min(3, sampling.steps))


def _sampling_variants(
    bench: Bench, batch: int, sampling: SamplingConfig, warm_up: SamplingConfig
) -> list[Variant]:
    def textbook() -> Job:
        net, classes = Textbook.around(bench.twin()), bench.classes(batch)

        def run(sampling: SamplingConfig) -> Tensor:
            steps = range(sampling.steps)
            return sample(net, batch, classes, length=bench.cfg.data.sequence_length,
                          vocab_size=bench.cfg.data.vocab_size,
                          temperatures=[sampling.temperature_at(step) for step in steps],
                          proportions=[sampling.proportion_at(step) for step in steps])  # fmt: skip

        return Job(lambda: run(sampling), lambda: run(warm_up))

    def ours(compiled: bool) -> Job | None:
        return sampling_job(bench, compiled, batch, sampling, warm_up)

    flop = batch * Cost(replace(bench.cfg, sampling=sampling)).sampling_flops()
    return network_variants(
        bench, flop, sampling.steps, textbook, ours, graphs=True,
        textbook_flop=batch * sampling.steps * bench.cost.forward_flops(),
    )  # fmt: skip


# -- the codec ------------------------------------------------------------------------------------


class PlainCodec:
    """A VQ-GAN in float32 with channels before pixels, all distances to the codebook at once."""

    def __init__(self, codec: VQGANCodec) -> None:
        self.model = codec.model.to(memory_format=torch.contiguous_format)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, h, w)"""
        vectors = self.model.encode(images.contiguous() * 2 - 1).permute(0, 2, 3, 1)
        codebook = self.model.quantize.codebook()
        distances = (
            vectors.pow(2).sum(-1, keepdim=True)
            - 2 * torch.einsum("bhwd,kd->bhwk", vectors, codebook)
            + codebook.pow(2).sum(-1)
        )
        return distances.argmin(-1)

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """(B, h, w) -> (B, 3, H, W) in [0, 1]"""
        vectors = self.model.quantize.embed(tokens).contiguous()
        return ((self.model.decode(vectors) + 1) / 2).clamp(0, 1)


def _codec_track(direction: str, bench: Bench, batch: int) -> Track:
    assert bench.setup.codec_config is not None
    with torch.device("meta"):
        counted = new_vqgan(bench.setup.codec_config)
    height, width = bench.cfg.grid_shape
    pixels = (3, height * counted.factor, width * counted.factor)
    if direction == "encode":
        half, shape = counted.model.encode, pixels
        given = torch.rand(batch, *pixels, device=bench.device)
    else:
        half, shape = counted.model.decode, (counted.model.arch.embed_dim, height, width)
        given = bench.tokens(batch).view(batch, height, width) % counted.codebook_size
    flop = batch * flop_of(lambda: half(torch.empty(1, *shape, device="meta")))
    parameters = parameter_count(counted.model)

    def make(plain: bool, compiled: bool) -> Job | None:
        torch.manual_seed(0)
        codec = new_vqgan(bench.setup.codec_config).to(bench.device)
        if compiled and not codec.compile():
            return None
        weights, used = bytes_of(codec.model.parameters()), PlainCodec(codec) if plain else codec
        return Job(lambda: getattr(used, direction)(given), resident=lambda: weights)

    variants = [Variant(TEXTBOOK, partial(make, True, False), "fp32", parameters, flop)]
    variants += [
        Variant(name, partial(make, False, compiled), bench.precision, parameters, flop,
                compiled=compiled)
        for name, compiled in bench.eager_and_compiled()
    ]  # fmt: skip
    title = f"codec: {direction} {batch} x {pixels[1]}x{pixels[2]} px"
    return Track(direction, title, variants, batch)


TRACKS: dict[str, Callable[[Bench, int], Track]] = {
    "forward": forward,
    "train": train,
    "step": step,
    "sampling": sampling,
    "encode": partial(_codec_track, "encode"),
    "decode": partial(_codec_track, "decode"),
}
