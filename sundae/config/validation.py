"""What each key of a run file cannot know alone: the keys that contradict each other."""

import itertools
import math
import re

from sundae.common.errors import UserError
from sundae.config.schema import Origin, Rule, check, suggestion
from sundae.config.sections import DataConfig, NetConfig, RunConfig, TrainerConfig

# What ptpt's learning-rate schedules take.
_SCHEDULE_VALUES: dict[str, tuple[type, Rule]] = {
    "nb_warmup_steps": (int, Rule(at_least=0)),
    "nb_training_steps": (int, Rule(at_least=1)),
    "nb_cycles": (float, Rule(above=0)),
    "lr_end": (float, Rule(at_least=0)),
    "power": (float, Rule(above=0)),
}
_SCHEDULE_EXTRAS = {"cosine": {"nb_cycles"}, "polynomial": {"lr_end", "power"}}


def check_agreement(cfg: RunConfig, origin: Origin) -> None:
    """Compare keys with each other.

    Raises:
        UserError: two keys contradict each other; names both, and what to change.
    """
    check_batches(cfg.trainer, origin)
    check_schedule(cfg.trainer, origin)
    check_precision(cfg.trainer, origin)
    _check_metrics(cfg, origin)
    _check_data_folders(cfg.data, origin)
    _check_split_sizes(cfg.data, origin)
    _check_grid(cfg, origin)
    _check_heads(cfg.net, origin)
    _check_classes(cfg.net, origin)
    _check_guidance(cfg, origin)
    _check_depth(cfg.net, origin)
    _check_shortening(cfg, origin)
    _check_dims(cfg.net, origin)
    _check_windows(cfg, origin)


def schedule_keys(name: str) -> tuple[set[str], set[str]]:
    """(required, optional) keys of trainer.lr_scheduler_kwargs for a schedule of that name."""
    required = {"nb_warmup_steps"} if name.endswith("with_warmup") else set()
    if not name.startswith("constant"):
        required.add("nb_training_steps")
    return required, _SCHEDULE_EXTRAS.get(name.split("_")[0], set())


def check_batches(trainer: TrainerConfig, origin: Origin) -> None:
    """UserError unless mini-batches make up a batch."""
    size, mini = trainer.batch_size, trainer.mini_batch_size
    if mini is not None and size % mini:
        raise UserError(
            f"{origin.at('trainer.mini_batch_size')}: {mini} does not divide "
            f"trainer.batch_size = {size}; choose a divisor of it"
        )


def check_precision(trainer: TrainerConfig, origin: Origin) -> None:
    """UserError when the older key for the precision contradicts the newer one."""
    if trainer.precision == "bf16" and not trainer.use_amp:
        raise UserError(
            f"{origin.at('trainer.precision')}: 'bf16' contradicts trainer.use_amp = false; drop "
            "use_amp"
        )


def check_schedule(trainer: TrainerConfig, origin: Origin) -> None:
    """UserError unless the learning rate's schedule has all that it needs and nothing else."""
    name, given = trainer.lr_scheduler_name, trainer.lr_scheduler_kwargs
    required, optional = schedule_keys(name)
    for key, value in given.items():
        where = origin.at(f"trainer.lr_scheduler_kwargs.{key}")
        if key not in required | optional:
            hint = suggestion(key, required | optional) or "; it takes none"
            raise UserError(f"{where}: not a key of the schedule '{name}'{hint}")
        check(value, *_SCHEDULE_VALUES[key], where)
    for key in sorted(required - given.keys()):
        raise UserError(
            f"{origin.at('trainer.lr_scheduler_kwargs')}: the schedule '{name}' needs {key}"
        )
    warmup, total = given.get("nb_warmup_steps", 0), given.get("nb_training_steps", math.inf)
    if warmup >= total:
        raise UserError(
            f"{origin.at('trainer.lr_scheduler_kwargs')}: nb_warmup_steps = {warmup} must be "
            f"below nb_training_steps = {total}"
        )


def _check_metrics(cfg: RunConfig, origin: Origin) -> None:
    best, direction = cfg.trainer.metric_best
    for key, names in (("metric_names", cfg.trainer.metric_names), ("metric_best", (best,))):
        for name in names:
            match = re.fullmatch(r"(?:loss|accuracy)(?:_([1-9]\d*))?", name)
            if not match or int(match[1] or 1) > cfg.unroll_steps:
                raise UserError(
                    f"{origin.at(f'trainer.{key}')}: expected 'loss' or 'accuracy', or one unroll "
                    f"step's from 'loss_1' to 'loss_{cfg.unroll_steps}', got '{name}'"
                )
    if direction not in ("asc", "des"):
        raise UserError(
            f"{origin.at('trainer.metric_best')}: expected [metric, 'des'] when less is better or "
            f"[metric, 'asc'] when more is, got '{direction}'"
        )


def _check_data_folders(data: DataConfig, origin: Origin) -> None:
    styles = [("root", "split_sizes"), ("train_root", "eval_root")]
    given = [[k for k in style if getattr(data, k) is not None] for style in styles]
    if all(given):
        raise UserError(
            f"{origin.at(f'data.{given[0][0]}')}: contradicts data.{given[1][0]}; give either "
            "root and split_sizes, or train_root and eval_root"
        )
    for style, present in zip(styles, given, strict=True):
        if len(present) == 1:
            (absent,) = set(style) - set(present)
            raise UserError(f"{origin.file}: data.{absent} is missing; data.{present[0]} needs it")
    if not any(given):
        raise UserError(
            f"{origin.file}: data.root is missing; expected root and split_sizes, or train_root "
            "and eval_root"
        )


def _check_split_sizes(data: DataConfig, origin: Origin) -> None:
    sizes = data.split_sizes
    # The tolerance lets 0.9 + 0.1 through, whichever way its sum rounds.
    if sizes and isinstance(sizes[0], float) and sum(sizes) > 1 + 1e-9:
        raise UserError(
            f"{origin.at('data.split_sizes')}: the fractions {list(sizes)} add up to more than 1; "
            "give fractions, or counts without a decimal point"
        )


def _check_grid(cfg: RunConfig, origin: Origin) -> None:
    length = cfg.data.sequence_length
    shapes = {"data.latent_shape": cfg.data.latent_shape}
    if cfg.vqgan:
        shapes["vqgan.latent_shape"] = cfg.vqgan.latent_shape
    given = {key: shape for key, shape in shapes.items() if shape}
    for key, (height, width) in given.items():
        if height * width != length:
            raise UserError(
                f"{origin.at(key)}: [{height}, {width}] makes {height * width} tokens but "
                f"data.sequence_length is {length}; change one of them"
            )
    if len(set(given.values())) > 1:
        raise UserError(
            f"{origin.at('data.latent_shape')}: {list(given['data.latent_shape'])} contradicts "
            f"vqgan.latent_shape = {list(given['vqgan.latent_shape'])}; keep one of them"
        )
    if not given and math.isqrt(length) ** 2 != length:
        raise UserError(
            f"{origin.at('data.sequence_length')}: {length} tokens make no square grid; say which "
            "with data.latent_shape = [height, width]"
        )


def _check_heads(net: NetConfig, origin: Origin) -> None:
    if net.dim_head is None and net.dim % net.nb_heads:
        raise UserError(
            f"{origin.at('net.nb_heads')}: {net.nb_heads} does not divide net.dim = {net.dim}; "
            "choose a divisor of it or set net.dim_head"
        )
    width = net.dim_head or net.dim // net.nb_heads
    if net.use_rotary and width % 4:
        raise UserError(
            f"{origin.at('net.dim_head' if net.dim_head else 'net.nb_heads')}: heads are {width} "
            "wide but net.use_rotary needs a multiple of 4 (pairs of values for two axes); change "
            "one of them"
        )


def _check_classes(net: NetConfig, origin: Origin) -> None:
    if net.conditional and not net.num_classes:
        raise UserError(
            f"{origin.file}: net.num_classes is missing or 0 but net.conditional is true; say how "
            "many classes the data has"
        )
    if net.num_classes and not net.conditional:
        raise UserError(
            f"{origin.at('net.num_classes')}: {net.num_classes} classes but net.conditional is "
            "false; set it to true or drop num_classes"
        )
    if net.class_dropout and not net.conditional:
        raise UserError(
            f"{origin.at('net.class_dropout')}: there is no class to hide, net.conditional is "
            "false; set it to true or drop class_dropout"
        )


def _check_guidance(cfg: RunConfig, origin: Origin) -> None:
    for name, value in zip(("guidance", "end_guidance"), cfg.sampling.guidance_ramp, strict=True):
        if value != 1 and not cfg.net.class_dropout:
            raise UserError(
                f"{origin.at(f'sampling.{name}')}: {value:g} needs a network that also learned to "
                "do without the class; train one with net.class_dropout = 0.1, or leave it at 1"
            )


def _check_depth(net: NetConfig, origin: Origin) -> None:
    expected = {
        "hourglass": (3, "[pre, valley, post], for example [2, 10, 2]"),
        "transformer": (1, "one integer, the number of layers"),
    }
    entries, words = expected[net.type]
    if len(net.depth) != entries:
        raise UserError(
            f"{origin.at('net.depth')}: net.type = '{net.type}' expects {words}, got "
            f"{list(net.depth)}"
        )


def _check_shortening(cfg: RunConfig, origin: Origin) -> None:
    net, (height, width) = cfg.net, cfg.grid_shape
    if net.type != "hourglass":
        return
    if len(net.shorten_factors) != net.nb_levels:
        raise UserError(
            f"{origin.at('net.shorten_factor')}: {len(net.shorten_factors)} factors for the "
            f"{net.nb_levels} levels of net.depth; give one integer, or one for each level"
        )
    for factor in itertools.accumulate(net.shorten_factors, lambda a, b: a * b):
        side = math.isqrt(factor)
        if height % side or width % side:
            raise UserError(
                f"{origin.at('net.shorten_factor')}: blocks of {side}x{side} tokens do not divide "
                f"the {height}x{width} grid; choose a smaller factor or fewer levels"
            )


def _check_dims(net: NetConfig, origin: Origin) -> None:
    if net.dims is None:
        return
    where, grids = origin.at("net.dims"), net.nb_levels + 1
    if len(net.dims) != grids:
        raise UserError(
            f"{where}: {len(net.dims)} widths for the {grids} grids of net.depth; give one for "
            "each, outermost first"
        )
    if net.dims[-1] != net.dim:
        raise UserError(
            f"{where}: the valley is {net.dims[-1]} wide but net.dim is {net.dim}; make them equal"
        )
    for width in net.dims:
        if net.nb_heads * width % net.dim:
            raise UserError(
                f"{where}: a width of {width} has no whole number of heads when net.dim = "
                f"{net.dim} has net.nb_heads = {net.nb_heads}; choose a multiple of "
                f"{net.dim // math.gcd(net.dim, net.nb_heads)}"
            )
    if net.resampling == "average" and len(set(net.dims)) > 1:
        raise UserError(
            f"{where}: net.resampling = 'average' cannot change the width; use 'linear', or one "
            "width for all grids"
        )


def _check_windows(cfg: RunConfig, origin: Origin) -> None:
    net, (height, width) = cfg.net, cfg.grid_shape
    where, windows, grids = origin.at("net.window"), net.windows, net.nb_levels + 1
    if windows and len(windows) != grids:
        raise UserError(
            f"{where}: {len(windows)} sides for the {grids} grids of net.depth; give one for each, "
            "outermost first, or one integer for the outermost alone"
        )
    # Cells of one token below the innermost grid: nothing is shortened there.
    cells = [*map(math.isqrt, net.shorten_factors), 1]
    for window, cell in zip(windows, cells, strict=False):
        if 0 < window < max(height, width):
            attends = net.attn_resampling and cell > 1
            _check_window(window, (height, width), cell if attends else 1, where)
        height, width = height // cell, width // cell


def _check_window(window: int, grid: tuple[int, int], cell: int, where: str) -> None:
    """cell: side of the cells whose coarse tokens a window attends to, 1 for none."""
    if window % 2:
        raise UserError(
            f"{where}: expected an even side, got {window}; every second layer moves its windows "
            "by half of it"
        )
    rows, columns = (min(window, size) for size in grid)
    if grid[0] % rows or grid[1] % columns:
        raise UserError(
            f"{where}: windows of {window}x{window} tokens do not divide the "
            f"{grid[0]}x{grid[1]} grid; choose another side, or 0 for full attention"
        )
    if cell > 1 and (rows % cell or columns % cell or rows * columns < 4 * cell**2):
        raise UserError(
            f"{where}: a window of {window}x{window} tokens must hold at least 2x2 whole blocks of "
            f"the {cell}x{cell} that net.shorten_factor merges; choose a multiple of {cell} from "
            f"{2 * cell} up"
        )
