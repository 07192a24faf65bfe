"""The stages of `gpu.py` and their parts, most valuable first."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from gpu_run import Part, Stage

HERE = Path(__file__).resolve().parent

# Names of the files that hold the showcase's weights.
PARTS = "showcase.tar.part-*"

# Seconds of a stage.
SMOKE, SPEED = 150.0, 330.0

# Cheap checks before those that compile for long.
SMOKE_PARTS = {
    "train": "digits, 60 steps, eager and compiled: the loss falls, and alike",
    "sample": "bundled model: eager, compiled, CUDA graphs and CPU give equal tokens in fp32",
    "kernels": "draws as on a CPU to the bit; attention right in every shape that is special",
    "codec": "bundled codec: encoding and decoding as on a CPU, in fp32 and bf16",
    "resume": "resumed training equals training without a break, bit for bit",
    "checkpointing": "gradient checkpointing: equal gradients, less memory",
    "windows": "shifted windows: compiled training has the gradients of eager training",
    "waiting": "neither a sampling step nor a training step waits for the GPU",
    "canvas": "sampling on a canvas larger than the grid",
    "inpaint": "inpainting changes the hole only",
    "codec-training": "train-vqgan.py, 20 steps with its discriminator",
    "latents": "generate-latents.py on 64 images gives the tokens of a CPU, eager and compiled",
}


@dataclass(frozen=True)
class _Speed:
    """A part of *speed*.

    Attributes:
        flags: of speed.py.
        limit: seconds.
        compiles: whether *smoke* fills the compiler's cache for it; few do, or a card of 80 GB
            would be too small for them and the checks beside them.
    """

    name: str
    shows: str
    flags: str
    limit: float
    compiles: bool = False

    @property
    def tracks(self) -> str:
        """What is measured."""
        words = self.flags.split()
        return words[words.index("--tracks") + 1]


_AMUSED = (
    "--size config/ffhq1024/fast.toml --tracks amused --batch-size 32 --rounds 3 --limit 5"
    " --no-memory"
)
_OURS = "--size ffhq1024 --paths ^ours --limit 5"

# Compiling takes most of the time, so what is not a goal is measured eager, or last.
SPEED_PARTS = (
    _Speed("train", "ffhq1024: training step at batch 32, share of the matrix product's peak",
           f"{_OURS} --tracks train --batch-size 32 --rounds 7", 70, compiles=True),
    _Speed("decode", "ffhq1024: tokens to 1024x1024 images, 8 at once",
           f"{_OURS} --tracks decode --rounds 7", 75),
    _Speed("sample-32", "ffhq1024: 100 steps at batch 32, share of the peak",
           f"{_OURS} --tracks sampling --batch-size 32 --rounds 2 --no-memory", 70, compiles=True),
    _Speed("fast", "the fast run file: 16 steps at batch 32 and 1",
           "--size config/ffhq1024/fast.toml --paths ^ours --limit 5 --tracks sampling"
           " --batch-size 32 1 --rounds 5", 120),
    _Speed("amused", "aMUSEd-512 and the fast layout in 12 evaluations, at equal parameters and "
           "at equal arithmetic", f"{_AMUSED} --no-compile --paths guidance$|its", 60),
    _Speed("steps", "ffhq1024, eager: forward pass, one sampling step, encoding; peak memory",
           f"{_OURS} --tracks forward,step,encode --batch-size 32 --rounds 5 --no-compile", 45),
    _Speed("sample-1", "ffhq1024: 100 steps at batch 1",
           f"{_OURS} --tracks sampling --batch-size 1 --rounds 3", 60),
    _Speed("amused-compiled", "the same as speed/amused, all compiled",
           f"{_AMUSED} --paths guidance.compiled$|its.*compiled$", 240),
)  # fmt: skip
_TINY_SPEED = "--size ci --no-compile --batch-size 2 --rounds 1 --no-memory"


def stages(device: str, tiny: bool, train: str | None, overrides: list[str], out: Path
           ) -> list[Stage]:  # fmt: skip
    """All stages in order.

    Args:
        device: cpu or cuda.
        tiny: everything as small as it can be.
        train: run file of the showcase, None for no showcase.
        overrides: KEY=VALUE for that run file.
        out: folder that gets the showcase's weights.
    """
    found = [smoke(device, tiny), speed(device, tiny)]
    if train is not None:
        found.append(showcase(device, tiny, train, overrides, out))
    return found


def smoke(device: str, tiny: bool) -> Stage:
    """Checks side by side; with a GPU, the compiler's cache is filled for *speed* meanwhile."""
    limit = SMOKE if not tiny else 4 * SMOKE  # a CPU compiles for long
    checks = [
        Part("smoke", name, shows, _python("gpu_smoke.py", name, *_common(device, tiny)), limit)
        for name, shows in SMOKE_PARTS.items()
    ]
    if tiny or device == "cpu":
        return Stage("smoke", limit, tuple(checks), at_once=2)
    compiling = [
        Part("smoke", f"compile-{part.name}", f"fills the compiler's cache for speed/{part.name}",
             _python("speed.py", *_speed_words(part, device, tiny), "--rounds", "0"), SMOKE,
             optional=True)
        for part in SPEED_PARTS
        if part.compiles
    ]  # fmt: skip
    return Stage("smoke", SMOKE, (*checks[:2], *compiling, *checks[2:]), at_once=8)


def speed(device: str, tiny: bool) -> Stage:
    """One after the other, since they are timed; if tiny, those that measure different things."""
    chosen = {part.tracks: part for part in reversed(SPEED_PARTS)} if tiny else {}
    parts = tuple(
        Part("speed", part.name, part.shows,
             _python("speed.py", *_speed_words(part, device, tiny)), part.limit)
        for part in SPEED_PARTS
        if not tiny or part in chosen.values()
    )  # fmt: skip
    return Stage("speed", SPEED, parts, at_once=2 if tiny else 1)


def showcase(device: str, tiny: bool, train: str, overrides: list[str], out: Path) -> Stage:
    """All the time that is left."""
    settings = [word for setting in overrides for word in ("--set", setting)]
    command = _python("gpu_showcase.py", "--train", train, *settings, "--seconds", "{seconds}",
                      *_common(device, tiny), "--out", str(out))  # fmt: skip
    limit = 75.0 if tiny else float("inf")
    shows = f"{train}: trained for the time that is left, its weights in parts"
    return Stage("showcase", None, (Part("showcase", "train", shows, command, limit),))


def _common(device: str, tiny: bool) -> list[str]:
    words = ["--device", device, "--folder", "{folder}", "--result", "{result}"]
    return [*words, "--tiny"] if tiny else words


def _speed_words(part: _Speed, device: str, tiny: bool) -> list[str]:
    flags = f"{_TINY_SPEED} --tracks {part.tracks}" if tiny else part.flags
    return [*flags.split(), "--device", device, "--json", "{result}"]


def _python(script: str, *words: str) -> tuple[str, ...]:
    return (sys.executable, str(HERE / script), *words)
