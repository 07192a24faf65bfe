"""A network with its codec, ready to sample: `BaseSampler`, which `sundae.Sampler` extends."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor, nn

from hourglass_transformer import HourglassTransformer
from sundae.codec.interface import Codec, open_codec
from sundae.common import memory
from sundae.common.compiling import Compiled, should_compile
from sundae.common.errors import UserError
from sundae.common.images import to_pil
from sundae.common.precision import Precision, cast_linears_to_bf16, uses_bf16
from sundae.config.run_file import RunConfig, load_config, parse_config
from sundae.config.sections import SamplingConfig
from sundae.prior.categorical import draw_seeds
from sundae.prior.checkpoint import Checkpoint
from sundae.prior.compatibility import check_same_codec, check_same_network
from sundae.prior.pretrained import checkpoint_or_bundled
from sundae.sampling.canvas import Shape, check_canvas, windowed
from sundae.sampling.image_codec import ImageCodec
from sundae.sampling.loop import Refinement, sample

BATCH_SIZE = 64
SEEDS = 2**32  # a seed is below this

# One class by its name or number, or several that samples take in turn; None for the default.
Classes = str | int | Sequence[str | int] | None


@dataclass(frozen=True)
class SampleBatch:
    """A batch of samples after a step.

    Attributes:
        first: number of the batch's first sample among those of the call, from 0.
        step: steps done; 0 is the start.
        num_steps: steps at most.
        num_running: samples of the batch that may still change.
        is_final: whether this is the batch's last step.
        tokens: (batch, height, width) int64, on the sampler's device; later steps do not write it.
    """

    first: int
    step: int
    num_steps: int
    num_running: int
    is_final: bool
    tokens: Tensor
    _decode: Callable[[Tensor], Tensor]

    def pixels(self) -> Tensor:
        """Decode: (batch, 3, H, W) float32 in [0, 1] on the CPU."""
        return self._decode(self.tokens)

    def images(self) -> list[Image.Image]:
        """Decode: one PIL image a sample."""
        return [to_pil(image) for image in self.pixels()]


class BaseSampler:
    """A network with its codec, ready to sample; `sundae.Sampler` adds editing to it.

    Everything that samples goes through `refine_tokens`, which alone divides samples into batches
    that fit into memory.

    Attributes:
        network: tokens (batch, length), classes (batch,) or None -> logits (batch, length, vocab).
        codec: turns images into token grids and back; takes and returns PIL images, too.
        cfg: the run file of the network; its [sampling] has the defaults of all settings.
        class_names: of a conditional network, else empty.
        device: of the network.
        checkpoint: where the network is from, if it is from one.
        compiled: runs the steps compiled, if any do.
    """

    checkpoint: Checkpoint | None = None

    def __init__(
        self,
        network: nn.Module,
        codec: Codec,
        cfg: RunConfig,
        *,
        class_names: Sequence[str] = (),
        device: torch.device | str = "cpu",
        precision: Precision = "auto",
        owns_network: bool = False,
        compile: bool = False,
        quiet: bool = True,
    ) -> None:
        """Make a sampler of its parts; `from_pretrained` reads them from disk.

        Args:
            network: on `device` already.
            codec: that the tokens were encoded with, on any device.
            cfg: of the run that trained the network.
            class_names: of a conditional network; the numbers of its classes unless given.
            device: where samples are computed.
            precision: of the network.
            owns_network: nothing else uses the network, so that its linear maps may be cast to
                bfloat16 where the precision is that.
            compile: compile the steps, from the first on; see `Compiled`.
            quiet: no line on stderr about a compiler that does not work.
        """
        self.network, self.cfg, self.device = network.eval(), cfg, torch.device(device)
        self.codec = ImageCodec(codec)
        numbers = map(str, range(cfg.net.num_classes))
        self.class_names = tuple(class_names or numbers) if cfg.net.conditional else ()
        self.bf16 = uses_bf16(precision, self.device)
        if owns_network and self.bf16:
            cast_linears_to_bf16(network)
        self._quiet = quiet
        self.compiled = Compiled(self.device, quiet=quiet) if compile else None

    @classmethod
    def from_pretrained(
        cls,
        path: Path | str | None = None,
        *,
        run_file: Path | None = None,
        overrides: Sequence[str] = (),
        flags: Mapping[str, Any] | None = None,
        ema: bool = True,
        device: torch.device | str | None = None,
        codec_device: torch.device | str | None = None,
        precision: Precision = "auto",
        quiet: bool = True,
    ) -> Self:
        """Load a network and its codec.

        Args:
            path: a run folder (its best checkpoint), a checkpoint or a released folder; the bundled
                model unless given.
            run_file: instead of the one that the network was trained with.
            overrides: 'section.key=value' each, as --set takes them.
            flags: dotted key -> value of the flag of that name; None where it was not given.
            ema: the moving average of the weights, where there is one.
            device: of the network; the GPU where there is one unless given.
            codec_device: of the codec; that of the network unless given.
            precision: of the network.
            quiet: see `__init__`.

        Raises:
            UserError: something is missing, damaged, or does not belong together.
        """
        checkpoint = checkpoint_or_bundled(None if path is None else Path(path))
        source = str(checkpoint.folder)
        if run_file is not None:
            cfg = load_config(run_file, overrides, flags)
        else:
            cfg = parse_config(checkpoint.info.config, source, overrides, flags)
        check_same_network(cfg, checkpoint)
        codec = open_codec(cfg)
        check_same_codec(codec.identity, checkpoint)
        if cfg.net.conditional and not checkpoint.info.classes:
            raise UserError(f"{source} names no classes; it is damaged, use another checkpoint")
        network = checkpoint.load_network(ema=ema)
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        sampler = cls(
            network.to(device),
            codec.to(codec_device or device),
            cfg,
            class_names=checkpoint.info.classes or (),
            device=device,
            precision=precision,
            owns_network=True,
            compile=bool(cfg.sampling.compile),
            quiet=quiet,
        )
        sampler.checkpoint = checkpoint
        return sampler

    def sample(self, num_samples: int | None = None, **options: Any) -> list[Image.Image]:
        """Sample images.

        Args:
            num_samples: how many; sampling.nb_samples unless given.
            options: see `refine`.
        """
        states = self.refine(num_samples, **options)
        return [image for state in states if state.is_final for image in state.images()]

    def refine(
        self,
        num_samples: int | None = None,
        *,
        classes: Classes = None,
        seed: int | None = None,
        first: int = 0,
        batch_size: int = BATCH_SIZE,
        canvas: Shape | None = None,
        **settings: Any,
    ) -> Iterator[SampleBatch]:
        """Sample, batch after batch, step by step.

        Sample i is the same for a seed however many there are and however they are batched.

        Args:
            num_samples: how many; sampling.nb_samples unless given.
            classes: names or numbers of classes, which samples take in turn; all unless given.
            seed: 0 to 2**32 - 1; a new one unless given.
            first: number of the first sample: samples 5 .. 9 of a seed are `refine(5, first=5)`.
            batch_size: samples that are refined together at most.
            canvas: (height, width) in tokens, at least the trained grid in both directions; that
                grid unless given.
            settings: keys of [sampling], such as steps=40.

        Returns:
            an iterator of the state of each batch after 0, 1, 2 .. steps.

        Raises:
            UserError: a setting or a class that does not exist, or a canvas that is too small.
        """
        sampling = self.settings(**settings)
        count = sampling.nb_samples if num_samples is None else num_samples
        return self.refine_tokens(
            sample_seeds(secrets.randbelow(SEEDS) if seed is None else seed, count, first),
            self.class_rows(classes, count, first),
            sampling,
            batch_size=batch_size,
            canvas=canvas,
        )

    def refine_tokens(
        self,
        seeds: Tensor,
        classes: Tensor | None,
        sampling: SamplingConfig | None = None,
        *,
        tokens: Tensor | None = None,
        frozen: Tensor | None = None,
        canvas: Shape | None = None,
        batch_size: int = BATCH_SIZE,
        finish: Callable[[Tensor], Tensor] | None = None,
    ) -> Iterator[SampleBatch]:
        """Refine given rows, batch after batch, step by step; see `sundae.sampling.loop.sample`.

        Args:
            seeds: (N,) int64, any device, as all of the following.
            classes: (N,) int64 for a conditional network, else None; see `class_rows`.
            sampling: how to refine; the run file's unless given.
            tokens: (N, height, width) int64 to start from; uniform noise unless given.
            frozen: (N, height, width) bool: tokens that do not change.
            canvas: (height, width) in tokens where no tokens are given; the trained grid unless
                given.
            batch_size: samples that are refined together at most, fewer where memory says so.
            finish: decoded pixels (batch, 3, H, W) on the CPU -> what `SampleBatch.pixels` returns.

        Raises:
            UserError: the canvas is too small.
        """
        canvas = self.grid if canvas is None else canvas
        if tokens is not None:
            canvas = (tokens.shape[1], tokens.shape[2])
        check_canvas(canvas, self.grid)
        rows = (seeds, classes, tokens, frozen)
        return self._batches(rows, sampling or self.cfg.sampling, canvas, batch_size, finish)

    def _batches(
        self,
        rows: tuple[Tensor | None, ...],
        sampling: SamplingConfig,
        canvas: Shape,
        batch_size: int,
        finish: Callable[[Tensor], Tensor] | None,
    ) -> Iterator[SampleBatch]:
        assert rows[0] is not None
        count, size = len(rows[0]), self.batch_size_for(canvas, batch_size)

        def decode(tokens: Tensor) -> Tensor:
            images: Tensor = self.codec.decode(tokens).cpu()
            return images if finish is None else finish(images)

        for first in range(0, count, size):
            # Compiled steps have batches of one size: samples that are done fill up the last one.
            begin = max(0, min(first, count - size)) if self.compiled else first
            part = slice(begin, begin + size)
            some = [None if row is None else row[part].to(self.device) for row in rows]
            for state in self._refine_batch(some, sampling, canvas):
                yield SampleBatch(
                    first,
                    state.step,
                    sampling.steps,
                    state.num_running,
                    state.is_final,
                    state.tokens[first - begin :].unflatten(1, canvas),
                    decode,
                )

    def _refine_batch(
        self, rows: list[Tensor | None], sampling: SamplingConfig, canvas: Shape
    ) -> Iterator[Refinement]:
        seeds, classes, tokens, frozen = rows
        assert seeds is not None
        # Windows overlap, so on a larger canvas a token's logits come from several of them.
        at_positions = isinstance(self.network, HourglassTransformer) and canvas == self.grid
        return sample(
            windowed(self._denoise, self.grid, canvas),
            seeds=seeds,
            length=math.prod(canvas),
            vocab_size=self.cfg.data.vocab_size,
            schedule=sampling,
            grid=canvas,
            null_class=self.cfg.net.null_class,
            denoise_at=self._denoise if at_positions else None,
            classes=classes,
            tokens=None if tokens is None else tokens.flatten(1),
            frozen=None if frozen is None else frozen.flatten(1),
            compiled=self.compiled,
        )

    def _denoise(self, tokens: Tensor, classes: Tensor | None, *positions: Tensor) -> Tensor:
        """Logits of all positions, or of the given ones (batch, count)."""
        with torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext():
            logits: Tensor = self.network(tokens, classes, *positions)
        return logits

    @property
    def step(self) -> int:
        """Training steps of the network, 0 where it is from no checkpoint."""
        return self.checkpoint.info.step if self.checkpoint else 0

    @property
    def grid(self) -> Shape:
        """(height, width) in tokens that the network was trained on."""
        return self.cfg.grid_shape

    def batch_size_for(self, canvas: Shape, batch_size: int = BATCH_SIZE) -> int:
        """A batch size, at most the given one, whose logits fit into memory."""
        logits = math.prod(canvas) * self.cfg.data.vocab_size
        return max(1, min(batch_size, memory.LOGITS // logits))

    def compile_for(self, num_samples: int, batch_size: int = BATCH_SIZE) -> None:
        """Compile the steps from now on, where that pays for so many samples."""
        batches = math.ceil(num_samples / self.batch_size_for(self.grid, batch_size))
        steps = self.cfg.sampling.steps * batches
        if should_compile(self.cfg.sampling.compile, self.device, steps):
            self.compiled = self.compiled or Compiled(self.device, quiet=self._quiet)

    def settings(self, **changes: Any) -> SamplingConfig:
        """[sampling] with some keys changed, checked as a run file is.

        Raises:
            UserError: no such key, or a value out of range, or one that the network does not allow;
                or another value of `compile`, which `from_pretrained` reads.
        """
        if changes.get("compile", self.cfg.sampling.compile) != self.cfg.sampling.compile:
            raise UserError(
                "compile is fixed when the sampler is made: "
                "from_pretrained(overrides=['sampling.compile=true'])"
            )
        if not changes:
            return self.cfg.sampling
        values = self.cfg.to_dict()
        table = values["sampling"] | changes
        values["sampling"] = {key: value for key, value in table.items() if value is not None}
        return parse_config(values, "settings").sampling

    def class_rows(
        self,
        classes: Classes,
        count: int,
        first: int = 0,
        *,
        null_default: bool = False,
        guided: bool = False,
    ) -> Tensor | None:
        """The classes of samples first .. first+count-1, in turn.

        Args:
            classes: names or numbers.
            null_default: without classes take the null class, if the network has learned one,
                instead of all classes.
            guided: whether there is guidance, which the null class gives no direction.

        Returns:
            (count,) int64; None for an unconditional network.

        Raises:
            UserError: there is no such class, or there are none at all.
        """
        names = [classes] if isinstance(classes, str | int) else list(classes or ())
        if not self.class_names:
            if names:
                source = self.checkpoint.folder if self.checkpoint else "the network"
                raise UserError(
                    f"class {names[0]}: {source} was trained without classes; name none"
                )
            return None
        null = self.cfg.net.null_class
        if null_default and not names and null is not None:
            if guided:
                raise UserError("guidance leads towards a class: name one, or set guidance to 1")
            return torch.full((count,), null)
        every = range(len(self.class_names))
        numbers = [class_number(str(name), self.class_names) for name in names or every]
        return torch.tensor(numbers)[torch.arange(first, first + count) % len(numbers)]


def class_number(name: str, names: Sequence[str]) -> int:
    """The index of a class given by name, or by number where no class has that name.

    Raises:
        UserError: there is no such class.
    """
    if name in names:
        return names.index(name)
    if name.isdecimal() and int(name) < len(names):
        return int(name)
    raise UserError(f"class {name}: expected one of {', '.join(names)}, or 0 to {len(names) - 1}")


def sample_seeds(seed: int, count: int, first: int = 0) -> Tensor:
    """(count,) int64: the seeds of samples first .. first+count-1 of a run with this seed.

    Sample i has the same seed however many there are and whichever is the first.
    """
    return draw_seeds(first + count, torch.Generator().manual_seed(seed))[first:]
