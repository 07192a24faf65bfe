"""The tracks of `speed.py`: each says what is done, and the ways to do it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from latents import OneFilePerImage, seconds_to_read, write_both
from speed_jobs import (
    Bench,
    Job,
    Track,
    Way,
    bytes_of,
    forward_job,
    sampling_job,
    textbook_training_job,
    training_job,
)
from textbook import Textbook, sample
from torch import Tensor
from torch.utils.data import DataLoader

from sundae.codec.vqgan import VQGANCodec, new_vqgan
from sundae.config.sections import SamplingConfig
from sundae.data.dataset import TokenDataset, collate_batched, open_latents
from sundae.evaluation.cost import flop_of

TEXTBOOK = "textbook fp32"

# Steps of a call that measures one step: enough to drown what a call costs once.
_STEPS_OF_A_CALL = 2


def eager_and_compiled(bench: Bench) -> Iterator[tuple[str, bool]]:
    """(name, compiled) of our own ways."""
    yield f"ours {bench.precision}", False
    if bench.setup.compiles:
        yield f"ours {bench.precision} compiled", True


def forward(bench: Bench, batch: int) -> Track:
    """Logits of all positions."""
    costs = bench.costs

    def way(name: str, precision: str, make: Callable[[], Job | None], compiled: bool) -> Way:
        flop = batch * costs.forward()
        return Way(name, make, precision, costs.parameters, flop, 1, compiled)

    def ours(compiled: bool) -> Job | None:
        net = bench.compiled_net() if compiled else bench.twin()
        return forward_job(bench, net, batch, amp=True)

    def plain() -> Job | None:
        return forward_job(bench, Textbook.around(bench.twin()), batch, amp=False)

    ways = [way(TEXTBOOK, "fp32", plain, False)]
    for name, compiled in eager_and_compiled(bench):
        ways.append(way(name, bench.precision, lambda c=compiled: ours(c), compiled))
    return Track("forward", f"network forward, batch {batch}", ways, batch)


def train(bench: Bench, batch: int) -> Track:
    """Forward, backward, clipping, optimiser."""
    costs, unroll = bench.costs, bench.cfg.unroll_steps

    def way(name: str, precision: str, make: Callable[[], Job | None], compiled: bool) -> Way:
        flop = 3 * unroll * batch * costs.forward()  # backward is two products for one
        return Way(name, make, precision, costs.parameters, flop, unroll, compiled)

    def ours(compiled: bool) -> Job | None:
        return training_job(bench, bench.compiled_net() if compiled else bench.twin(), batch)

    ways = [way(TEXTBOOK, "fp32", lambda: textbook_training_job(bench, batch), False)]
    for name, compiled in eager_and_compiled(bench):
        ways.append(way(name, bench.precision, lambda c=compiled: ours(c), compiled))
    name = f"ours {bench.precision} checkpointed"
    ways.append(way(name, bench.precision, lambda: _checkpointed(bench, batch), False))
    return Track("train", f"training step, batch {batch}, unroll {unroll}", ways, batch)


def _checkpointed(bench: Bench, batch: int) -> Job | None:
    net = bench.twin()
    net.set_gradient_checkpointing(True)
    return training_job(bench, net, batch)


def step(bench: Bench, batch: int) -> Track:
    """One sampling step at the mean proportion of the run file."""
    schedule = bench.step_schedule(_STEPS_OF_A_CALL)
    title = f"sampling step, batch {batch}, proportion {schedule.sample_proportion:.2g}"
    ways = _sampling_ways(bench, batch, schedule, None)
    return Track("sampling step", title, ways, batch, parts=schedule.steps)


def sampling(bench: Bench, batch: int) -> Track:
    """From noise to tokens."""
    schedule = bench.schedule()
    title = f"sampling {batch} images, {schedule.steps} steps, without decoding"
    return Track("sampling", title, _sampling_ways(bench, batch, schedule, _brief(schedule)), batch)


def _brief(schedule: SamplingConfig) -> SamplingConfig:
    """Three steps between the same proportions: shapes that vary have varied."""
    return replace(schedule, steps=min(3, schedule.steps))


def _sampling_ways(
    bench: Bench, batch: int, schedule: SamplingConfig, warm_up: SamplingConfig | None
) -> list[Way]:
    costs = bench.costs

    def way(name: str, precision: str, make: Callable[[], Job | None], compiled: bool) -> Way:
        flop = batch * costs.sampling(schedule, all_logits=name == TEXTBOOK)
        return Way(
            name, make, precision, costs.parameters, flop, schedule.steps, compiled, compiled
        )

    def ours(compiled: bool) -> Job | None:
        return sampling_job(bench, bench.prior(compiled), batch, schedule, warm_up)

    def plain() -> Job:
        return _textbook_sampling(bench, batch, schedule, warm_up)

    ways = [way(TEXTBOOK, "fp32", plain, False)]
    for name, compiled in eager_and_compiled(bench):
        ways.append(way(name, bench.precision, lambda c=compiled: ours(c), compiled))
    return ways


def _textbook_sampling(
    bench: Bench, batch: int, schedule: SamplingConfig, warm_up: SamplingConfig | None
) -> Job:
    net, classes = Textbook.around(bench.twin()), bench.classes(batch)

    def run(schedule: SamplingConfig) -> Tensor:
        steps = range(schedule.steps)
        return sample(
            net,
            batch,
            classes,
            length=bench.length,
            vocab_size=bench.cfg.data.vocab_size,
            temperatures=[schedule.temperature_at(step) for step in steps],
            proportions=[schedule.proportion_at(step) for step in steps],
        )

    short = warm_up or schedule
    return Job(lambda: run(schedule), lambda: run(short))


# -- the codec ------------------------------------------------------------------------------------


class PlainCodec:
    """A VQ-GAN in float32 with channels before pixels, all distances to the codebook at once."""

    def __init__(self, codec: VQGANCodec) -> None:
        self.model = codec.model.to(memory_format=torch.contiguous_format)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, h, w)"""
        latents = self.model.encode(images.contiguous() * 2 - 1)
        vectors = latents.permute(0, 2, 3, 1)
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


def encode(bench: Bench, batch: int) -> Track:
    """Pictures to tokens."""
    return _codec_track(bench, batch, "encode")


def decode(bench: Bench, batch: int) -> Track:
    """Tokens to pictures."""
    return _codec_track(bench, batch, "decode")


def _codec_track(bench: Bench, batch: int, direction: str) -> Track:
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
    parameters = sum(p.numel() for p in counted.model.parameters())

    def way(name: str, precision: str, plain: bool, compiled: bool) -> Way:
        def make() -> Job | None:
            codec = _codec(bench, plain, compiled)
            if codec is None:
                return None
            weights = bytes_of(codec.model.parameters())
            return Job(lambda: getattr(codec, direction)(given), resident=lambda: weights)

        return Way(name, make, precision, parameters, flop, None, compiled)

    ways = [way(TEXTBOOK, "fp32", True, False)]
    for name, compiled in eager_and_compiled(bench):
        ways.append(way(name, bench.precision, False, compiled))
    title = f"codec: {direction} {batch} x {pixels[1]}x{pixels[2]} px"
    return Track(direction, title, ways, batch)


def _codec(bench: Bench, plain: bool, compiled: bool) -> VQGANCodec | PlainCodec | None:
    torch.manual_seed(0)
    assert bench.setup.codec_config is not None
    codec = new_vqgan(bench.setup.codec_config).to(bench.device)
    if plain:
        return PlainCodec(codec)
    if compiled and not codec.compile():
        return None
    return codec


# -- latents --------------------------------------------------------------------------------------

_ROWS = 4096


def latents(bench: Bench, batch: int) -> Track:
    """An epoch of token grids in shuffled batches."""
    folder = tempfile.TemporaryDirectory()
    side = bench.cfg.grid_shape[0]
    packed, files = write_both(Path(folder.name), _ROWS, side)
    shared = {"batch_size": 64, "shuffle": True}

    def one_file_each() -> Job:
        loader = DataLoader(OneFilePerImage(files), **shared)
        return Job(lambda: (folder, seconds_to_read(loader)))  # the folder lives as long as the job

    def memory_mapped() -> Job:
        data = TokenDataset(open_latents(packed))
        loader = DataLoader(data, collate_fn=collate_batched, **shared)
        return Job(lambda: (folder, seconds_to_read(loader)))

    ways = [Way("one .npy an image", one_file_each), Way("ours", memory_mapped)]
    return Track("latents", f"reading {_ROWS} grids of {side}x{side} tokens", ways, _ROWS)


TRACKS: dict[str, Callable[[Bench, int], Track]] = {
    "forward": forward,
    "train": train,
    "step": step,
    "sampling": sampling,
    "encode": encode,
    "decode": decode,
    "latents": latents,
}
