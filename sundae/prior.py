"""The discrete image prior: what the trainer minimises, and how images come out of a network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from copy import copy
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from tqdm import tqdm

from hourglass_transformer import HourglassTransformer
from sundae.canvas import Shape, check_canvas, windowed
from sundae.categorical import draw_seeds
from sundae.codecs import Codec, SparingCodec
from sundae.compiling import Compiled
from sundae.config import NetConfig, RunConfig, SamplingConfig
from sundae.errors import UserError
from sundae.files import make_folder, named_path, writing_to
from sundae.images import make_grid, save_grid, save_image
from sundae.objective import unroll
from sundae.precision import halve_linears, has_bf16
from sundae.sampling import Refinement, Schedule, sample
from sundae.strategies import chosen_strategy

if TYPE_CHECKING:
    from sundae.trainer import Batch, Losses, Trainer

# Pictures of a grid; more cannot be told apart.
GRID_LIMIT = 100

# Of all rows of a batch together; 2**30 are 4 GB in float32.
_LOGITS_AT_ONCE = 2**30


class PriorTask:
    """The SUNDAE objective as a trainer's task: one loss for every unroll step."""

    def __init__(self, cfg: RunConfig) -> None:
        self.parts = cfg.unroll_steps
        self.vocab_size = cfg.data.vocab_size
        self.conditional = cfg.net.conditional
        self.num_classes, self.class_dropout = cfg.net.num_classes, cfg.net.class_dropout

    def losses(self, net: nn.Module, batch: Batch, generator: torch.Generator) -> Losses:
        """Yield (loss, metrics) of each unroll step; see `sundae.objective.unroll`."""
        classes = batch["classes"] if self.conditional else None
        if classes is not None and net.training and self.class_dropout:
            classes = drop_classes(classes, self.class_dropout, self.num_classes, generator)
        head = head_of(net)
        steps = unroll(
            lambda tokens: net(tokens, classes, **({} if head is None else {"head": False})),
            batch["tokens"],
            unroll_steps=self.parts,
            vocab_size=self.vocab_size,
            generator=generator,
            head=head,
        )
        for number, (loss, accuracy) in enumerate(steps, start=1):
            metrics = {"loss": loss, "accuracy": accuracy}
            metrics |= {f"{name}_{number}": value for name, value in metrics.items()}
            yield loss, metrics


def head_of(net: nn.Module) -> nn.Linear | None:
    """The last map of a network that can leave it out, also of one spread over several devices."""
    bare = getattr(net, "module", net)
    return bare.to_logits if isinstance(bare, HourglassTransformer) else None


def drop_classes(
    classes: Tensor, chance: float, null_class: int, generator: torch.Generator
) -> Tensor:
    """Replace each class by the null class with a chance (arXiv 2207.12598, algorithm 1).

    Args:
        classes: (batch,) int64.
        chance: in [0, 1].
        null_class: number of the class that means "any".
        generator: on the device of the classes.

    Returns:
        (batch,) int64.
    """
    hidden = torch.rand(len(classes), generator=generator, device=classes.device) < chance
    return classes.masked_fill(hidden, null_class)


def null_class(net: NetConfig) -> int | None:
    """Number of the class that means any, of a network that has learned one."""
    return net.num_classes if net.conditional and net.class_dropout > 0 else None


def schedule_of(sampling: SamplingConfig) -> Schedule:
    """The run file's [sampling] section as the sampler takes it, its strategy no longer 'auto'."""
    temperature, end_temperature = sampling.temperature_ramp
    proportion, end_proportion = sampling.proportion_ramp
    guidance, end_guidance = sampling.guidance_ramp
    return Schedule(
        steps=sampling.steps,
        temperature=temperature,
        end_temperature=end_temperature,
        sample_proportion=proportion,
        end_sample_proportion=end_proportion,
        min_steps=sampling.min_steps,
        early_stop=sampling.early_stop,
        strategy=chosen_strategy(sampling),
        temperature_curve=sampling.temperature_curve,
        proportion_curve=sampling.proportion_curve,
        guidance=guidance,
        end_guidance=end_guidance,
        guidance_curve=sampling.guidance_curve,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        choice_temperature=sampling.choice_temperature,
    )


class Prior:
    """A trained network, ready to sample: rows of seeds and classes in, token grids out."""

    def __init__(
        self,
        net: nn.Module,
        cfg: RunConfig,
        device: torch.device,
        *,
        use_amp: bool = True,
        canvas: Shape | None = None,
        owns_net: bool = False,
        compiled: bool = False,
        quiet: bool = False,
    ) -> None:
        """Make a network ready to sample.

        Args:
            net: (tokens, classes) -> logits, on `device` already.
            cfg: of the run that trained it.
            use_amp: bfloat16 where the device has it.
            canvas: (height, width) in tokens of what is sampled, at least the grid of the run file
                in both directions; that grid unless given. See `sundae.canvas.windowed`.
            owns_net: nobody else needs the network, so that its linear maps may become bfloat16
                where they are used as such.
            compiled: compile the steps, as soon as there is one; see `sundae.compiling.Compiled`.
            quiet: do not say why they cannot be compiled.

        Raises:
            UserError: the canvas is too small.
        """
        self.net, self.cfg, self.device = net.eval(), cfg, device
        self.bf16 = use_amp and has_bf16(device)
        self.trained_grid = cfg.grid_shape
        self.canvas = canvas or cfg.grid_shape
        check_canvas(self.canvas, self.trained_grid)
        if owns_net and self.bf16:
            halve_linears(net)
        self.compiled = Compiled(device, quiet=quiet) if compiled else None

    def on_canvas(self, canvas: Shape) -> Prior:
        """The same network on a canvas of (height, width) tokens; UserError for one too small."""
        check_canvas(canvas, self.trained_grid)
        other = copy(self)
        other.canvas = canvas
        return other

    def rows_at_once(self, wanted: int, tokens: int | None = None) -> int:
        """A batch size, at most `wanted`, whose logits stay within a few gigabytes.

        tokens: of a sample, those of the canvas unless given.
        """
        logits = (tokens or prod(self.canvas)) * self.cfg.data.vocab_size
        return max(1, min(wanted, _LOGITS_AT_ONCE // logits))

    def refine(
        self,
        seeds: Tensor,
        classes: Tensor | None,
        schedule: Schedule,
        *,
        tokens: Tensor | None = None,
        frozen: Tensor | None = None,
    ) -> Iterator[Refinement]:
        """Sample one batch, step by step; see `sundae.sampling.sample`.

        Args:
            seeds: (batch,) int64, any device, as all of the following.
            classes: (batch,) int64 for a conditional network, else None.
            schedule: how to refine; guidance other than 1 needs a network with a null class.
            tokens: (batch, length) int64 to start from; uniform noise unless given.
            frozen: (batch, length) bool: tokens that keep the value they start with.
        """
        # Windows overlap, so on a larger canvas a token's logits come from several of them.
        at_positions = (
            isinstance(self.net, HourglassTransformer) and self.canvas == self.trained_grid
        )
        return sample(
            windowed(self._denoise, self.trained_grid, self.canvas),
            seeds=seeds.to(self.device),
            length=prod(self.canvas),
            vocab_size=self.cfg.data.vocab_size,
            schedule=schedule,
            grid=self.canvas,
            null_class=null_class(self.cfg.net),
            denoise_at=self._denoise if at_positions else None,
            classes=self._moved(classes),
            tokens=self._moved(tokens),
            frozen=self._moved(frozen),
            compiled=self.compiled,
        )

    def _moved(self, value: Tensor | None) -> Tensor | None:
        return None if value is None else value.to(self.device)

    def _denoise(self, tokens: Tensor, classes: Tensor | None, *positions: Tensor) -> Tensor:
        """Logits of all positions, or of the given ones (batch, count)."""
        with torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext():
            logits: Tensor = self.net(tokens, classes, *positions)
        return logits

    def grids(self, tokens: Tensor) -> Tensor:
        """(batch, length) -> (batch, height, width), as a codec takes them."""
        return tokens.unflatten(1, self.canvas)


def sample_seeds(seed: int, count: int, offset: int = 0) -> Tensor:
    """(count,) int64: the seeds of samples offset .. offset+count-1 of a run with this seed.

    Sample i has the same seed however many are asked for and wherever the asking starts.
    """
    return draw_seeds(offset + count, torch.Generator().manual_seed(seed))[offset:]


def even_classes(num_classes: int, count: int, offset: int = 0) -> Tensor:
    """(count,) int64: sample i of a run has class i modulo the number of classes."""
    return torch.arange(offset, offset + count) % num_classes


def write_samples(
    prior: Prior,
    codec: Codec,
    out_dir: Path,
    *,
    seeds: Tensor,
    classes: Tensor | None,
    schedule: Schedule,
    batch_size: int,
    offset: int = 0,
    progress: bool = True,
) -> Path:
    """Sample, decode, and write one PNG a sample: OUT_DIR/00000.png and so on.

    The grid goes beside the folder, not into it, because tools that compute an FID read every
    picture of a folder.

    Args:
        seeds: (N,) int64, one a sample.
        classes: (N,) int64 for a conditional network, else None.
        offset: number of the first file.
        progress: show a bar, if this is a terminal.

    Returns:
        the path of the grid, which shows the first samples, at most 100.
    """
    count, shown = len(seeds), []
    batch_size = prior.rows_at_once(batch_size)
    with tqdm(total=count, unit="sample", disable=None if progress else True) as bar:
        for start in range(0, count, batch_size):
            # Compiled for batches of one size: the last one is filled up with what is done already.
            begin = max(0, min(start, count - batch_size)) if prior.compiled else start
            rows = slice(begin, start + batch_size)
            running = prior.refine(
                seeds[rows], None if classes is None else classes[rows], schedule
            )
            for state in running:
                bar.set_postfix(step=f"{state.step}/{schedule.steps}", running=state.running)
            images = codec.decode(prior.grids(state.tokens[start - begin :])).cpu()
            for place, image in enumerate(images, offset + start):
                save_image(image, sample_path(out_dir, place))
            shown.append(images[: max(0, GRID_LIMIT - start)])
            bar.update(len(images))
    grid = grid_path(out_dir, offset)
    save_grid(torch.cat(shown), grid)
    return grid


def sample_path(out_dir: Path, number: int) -> Path:
    """Where sample `number` is written."""
    return out_dir / f"{number:05d}.png"


def grid_path(out_dir: Path, offset: int) -> Path:
    """Where the grid of the samples from `offset` on is written."""
    folder = named_path(out_dir)
    return folder.parent / f"{folder.name}-grid{f'-{offset}' if offset else ''}.png"


def prepare_out_dir(out_dir: Path, count: int, offset: int, *, overwrite: bool) -> None:
    """Create the folder for samples offset .. offset+count-1.

    Raises:
        UserError: a file exists and `overwrite` is false, or the folder cannot be written.
    """
    targets = [
        grid_path(out_dir, offset),
        *(sample_path(out_dir, offset + i) for i in range(count)),
    ]
    with writing_to(out_dir):
        existing = [path for path in targets if path.exists()]
    if existing and not overwrite:
        raise UserError(
            f"{existing[0]} exists; choose another --out-dir or --count-offset, or pass --overwrite"
        )
    make_folder(targets[0].parent)
    make_folder(out_dir)


class SampleGrids:
    """A trainer's hook: draws the run file's number of samples and saves them as one picture."""

    def __init__(self, cfg: RunConfig, codec: Codec) -> None:
        self.cfg, self.codec = cfg, SparingCodec(codec)

    def __call__(self, trainer: Trainer) -> None:
        """Write RUN/samples/step-NNNNNNN.png; the seeds are the same every time."""
        if not trainer.accelerator.is_main_process:
            return
        # Without an average the network is the compiled one, and every step has another shape here.
        with torch.compiler.set_stance("force_eager"):
            grid = make_grid(self._drawn(trainer))
        if trainer.run is not None:
            folder = make_folder(trainer.run / "samples")
            save_image(grid, folder / f"step-{trainer.step:07d}.png")
        trainer.logbook.log_picture("samples", grid, trainer.step)

    def _drawn(self, trainer: Trainer) -> Tensor:
        """(nb_samples, 3, H, W) float32 in [0, 1], on the CPU."""
        prior = Prior(trainer.eval_net, self.cfg, trainer.device, use_amp=self.cfg.trainer.use_amp)
        count = self.cfg.sampling.nb_samples
        classes = (
            even_classes(self.cfg.net.num_classes, count) if self.cfg.net.conditional else None
        )
        seeds = sample_seeds(trainer.seed, count)
        batch = prior.rows_at_once(trainer.mini_batch_size)
        pictures = []
        for start in range(0, count, batch):
            rows = slice(start, start + batch)
            *_, last = prior.refine(
                seeds[rows],
                None if classes is None else classes[rows],
                schedule_of(self.cfg.sampling),
            )
            pictures.append(self.codec.decode(prior.grids(last.tokens)).cpu())
        return torch.cat(pictures)
