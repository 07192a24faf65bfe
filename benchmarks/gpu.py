"""Everything of this project that needs a GPU, in one command that cannot waste one.

    python benchmarks/gpu.py --minutes 9 --out out/gpu --train RUNFILE
    python benchmarks/gpu.py --pack out/pack --train RUNFILE
    python benchmarks/gpu.py --device cpu --tiny --out out/gpu-tiny

Three stages: *smoke* (is everything right?), *speed* (how fast is it?) and *showcase* (a training
for the rest of the time). Each part of them is a process of its own with a time limit. After every
part, OUT/results.json and OUT/report.md are written anew; GPU.md says what is in them.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gpu_report import RESULTS, write_report
from gpu_run import ROOT, Outcome, Stage, run_stage
from gpu_stages import PARTS, stages

from sundae.common.errors import UserError
from sundae.common.files import make_folder, named_path, write_text
from sundae.common.folders import remove_tree
from sundae.common.locking import folder_lock

MEASURED = Path(__file__).with_name("efficiency.json")

# Prints what a GPU and its software are, without allocating its memory in this process; and
# fails where a package is missing that the stages need.
_PROBE = """
import json, torch
import sundae.sampling.sampler, sundae.training.trainer, torchvision
cuda = torch.cuda.is_available()
about = {"torch": torch.__version__, "CUDA": torch.version.cuda or "none", "device": "CPU"}
if cuda:
    card = torch.cuda.get_device_properties(0)
    about |= {"device": card.name, "memory": f"{card.total_memory / 2**30:.1f} GiB"}
print(json.dumps(about | {"available": cuda}))
"""
_PROBE_SECONDS = 120
_DRIVER = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]


# -- what was done --------------------------------------------------------------------------------


class Record:
    """The outcomes so far, on disk after every part, so that a later call can go on."""

    def __init__(
        self,
        out: Path,
        work: Path,
        about: dict[str, Any],
        kept: Sequence[Outcome],
        order: Sequence[str],
    ) -> None:
        """kept: outcomes of an earlier call. order: keys of the parts, as they are planned."""
        self.out, self.path, self.about = out, work / "outcomes.json", about
        self.outcomes = {outcome.key: outcome for outcome in kept}
        self.order = {key: place for place, key in enumerate([*self.outcomes, *order])}

    def add(self, outcome: Outcome) -> None:
        """Keep an outcome, print it in a line, and write the report.

        A part that is not reached has the outcome of an earlier call.
        """
        print(f"{outcome.state:>12} {outcome.seconds:6.0f} s  {outcome.key}", flush=True)
        if outcome.state == "not reached":
            outcome = self.outcomes.get(outcome.key, outcome)
        self.outcomes[outcome.key] = outcome
        sorted_outcomes = sorted(self.outcomes.values(), key=lambda o: self.order[o.key])
        write_text(self.path, json.dumps([asdict(o) for o in sorted_outcomes]) + "\n")
        write_report(self.out, self.about, sorted_outcomes, redraw="images" in outcome.result)

    @property
    def passed(self) -> bool:
        """Whether every part passed that has to."""
        return all(outcome.good for outcome in self.outcomes.values())


def read_record(work: Path) -> list[Outcome]:
    """What an earlier call did in a work folder; nothing where there was none.

    Raises:
        UserError: the file is damaged.
    """
    path = work / "outcomes.json"
    if not path.exists():
        return []
    try:
        return [Outcome(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); leave out --resume") from None


class Interrupted:
    """Set by Ctrl-C, SIGTERM and a hang-up: the parts are killed, and the report is written."""

    def __init__(self) -> None:
        self.signal = 0
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
                signal.signal(number, self._note)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.signal = number

    def __call__(self) -> bool:
        return self.signal != 0


# -- the machine ----------------------------------------------------------------------------------


def machine(device: str, tiny: bool) -> dict[str, Any]:
    """What the results belong to.

    Raises:
        UserError: there is no GPU, or no working PyTorch.
    """
    try:
        done = subprocess.run([sys.executable, "-c", _PROBE], cwd=ROOT, capture_output=True,
                              text=True, timeout=_PROBE_SECONDS)  # fmt: skip
    except subprocess.TimeoutExpired:
        raise UserError(f"PyTorch did not start within {_PROBE_SECONDS} s; try again") from None
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        remedy = (
            "install requirements.txt, or gather what is missing with --pack where it can be had"
        )
        raise UserError(f"the project does not start here ({last[0]}): {remedy}")
    about = json.loads(done.stdout.splitlines()[-1])
    if not about.pop("available") and device == "cuda":
        raise UserError("there is no CUDA device here; --device cpu --tiny proves the command")
    if device == "cpu":
        about |= {"device": f"CPU, {platform.machine()}"}
    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        **about,
        "driver": _first_line(_DRIVER),
        "Python": platform.python_version(),
        "commit": _first_line(["git", "rev-parse", "--short", "HEAD"]),
        "sizes": "tiny, to prove the command" if tiny else "full",
    }  # fmt: skip


def _first_line(command: list[str]) -> str:
    """Of a command's output; "unknown" where it cannot be run."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return (done.stdout.strip().splitlines() or ["unknown"])[0]


# -- the command ----------------------------------------------------------------------------------


def parse_args() -> argparse.Namespace:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flag = parser.add_argument
    flag("--out", type=Path, metavar="DIR", help="folder for the results")
    flag("--work", type=Path, metavar="DIR", help="folder for logs and scratch files (OUT-work)")
    flag("--minutes", type=float, default=9.0, metavar="N", help="for everything (9)")
    flag("--device", choices=("cuda", "cpu"), default="cuda")
    flag("--tiny", action="store_true", help="everything as small as it can be, in two minutes")
    flag("--only", action="append", metavar="STAGE", help="a stage or a part, such as smoke or "
         "speed/train; may be repeated")  # fmt: skip
    flag("--train", metavar="FILE", help="run file that the showcase trains; none without it")
    flag("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE",
         help="override a key of that run file; may be repeated")  # fmt: skip
    flag("--resume", action="store_true", help="skip the parts that have passed already")
    flag("--overwrite", action="store_true", help="replace the results of an earlier call")
    flag("--list", action="store_true", help="show stages and parts, and do nothing")
    flag("--pack", type=Path, metavar="DIR", help="gather what must travel to a machine without a "
         "network, and print the command to type there")  # fmt: skip
    args = parser.parse_args()
    if not (args.minutes > 0 and math.isfinite(args.minutes)):
        parser.error("--minutes: expected a number above 0")
    if args.list and args.pack:
        parser.error("--list and --pack: only one of them")
    if args.out is None and not (args.list or args.pack):
        parser.error("--out DIR is missing: the folder for the results")
    if args.overrides and not args.train:
        parser.error("--set changes the run file of --train FILE, which is missing")
    return args


def chosen(found: list[Stage], only: Sequence[str] | None) -> list[Stage]:
    """The stages, or the parts of them that --only names; these may take all the minutes.

    Raises:
        UserError: there is no such stage or part.
    """
    if only is None:
        return found
    names = [stage.name for stage in found] + [part.key for stage in found for part in stage.parts]
    for name in only:
        if name not in names:
            hint = " (it needs --train FILE)" if name.startswith("showcase") else ""
            raise UserError(f"--only {name}: expected one of {', '.join(names)}{hint}")
    return [
        Stage(stage.name, None, parts, stage.at_once)
        for stage in found
        if (parts := tuple(p for p in stage.parts if p.stage in only or p.key in only))
    ]


def earlier(args: argparse.Namespace, work: Path) -> list[Outcome]:
    """The outcomes of an earlier call that count.

    Raises:
        UserError: there are results, and neither --resume nor --overwrite is given.
    """
    existing = [path for path in results_of(args.out, work) if path.exists()]
    if existing and not (args.resume or args.overwrite):
        raise UserError(f"{existing[0]} exists; pass --resume to go on, --overwrite to start anew, "
                        "or choose another --out")  # fmt: skip
    return read_record(work) if args.resume else []


def check_run_file(train: str, overrides: Sequence[str]) -> None:
    """UserError where the showcase's run file is wrong, or what it names is not there."""
    from gpu_pack import named_files  # needs packages that `machine` has missed in one line

    from sundae.config.run_file import load_config

    named_files(load_config(train, overrides))


def results_of(out: Path, work: Path) -> list[Path]:
    """Everything that a call writes, there or not."""
    folders = [work / stage for stage in ("smoke", "speed", "showcase")]
    return [*(out / name for name in RESULTS), *out.glob(PARTS), work / "outcomes.json", *folders]


def check_same(out: Path, about: dict[str, Any]) -> None:
    """Refuse to go on with what another device or other sizes gave.

    Raises:
        UserError: it is so.
    """
    try:
        before = json.loads((out / "results.json").read_text(encoding="utf-8"))["about"]
    except (OSError, ValueError, TypeError, KeyError):  # nothing to compare with
        return
    for name in ("device", "sizes", "showcase"):
        if name in before and name in about and before[name] != about[name]:
            raise UserError(f"{out / 'results.json'} is of {name} {before[name]}, not "
                            f"{about[name]}; choose another --out")  # fmt: skip


def print_list(found: Sequence[Stage]) -> None:
    """A line a part."""
    for stage in found:
        limit = "the time that is left" if stage.limit is None else f"{stage.limit:.0f} s"
        print(f"{stage.name}: {limit}, {stage.at_once} at once")
        for part in stage.parts:
            print(f"  {part.key:<24} {part.shows}")


def run_all(args: argparse.Namespace, found: Sequence[Stage], work: Path) -> int:
    """Run what an earlier call has not passed; returns the exit code."""
    began = time.monotonic()
    # A killed process may hold a hundred gigabytes, too many for a core dump on the disk.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    earlier(args, work)
    interrupted = Interrupted()
    about = machine(args.device, args.tiny) | {"command": " ".join(sys.argv)}
    if args.train is not None:
        check_run_file(args.train, args.overrides)
        about["showcase"] = " ".join([args.train, *args.overrides])
    if args.resume:
        check_same(args.out, about)
    with folder_lock(work):
        before = earlier(args, work)  # again: another call may have ended meanwhile
        make_folder(args.out)
        if not args.resume:
            for path in results_of(args.out, work):
                remove_tree(path)
        print(", ".join(f"{name} {value}" for name, value in about.items()), flush=True)
        done = {outcome.key for outcome in before if outcome.state == "passed"}
        order = [part.key for stage in found for part in stage.parts]
        record = Record(args.out, work, about, before, order)
        for stage in found:
            left = tuple(part for part in stage.parts if part.key not in done)
            run_stage(replace(stage, parts=left), work, began + 60 * args.minutes, record.add,
                      interrupted=interrupted)  # fmt: skip
            if stage.name == "speed" and args.device == "cuda" and not args.tiny:
                keep_efficiency(args.out / "efficiency.json")
    print(f"{'all parts passed' if record.passed else 'NOT all parts passed'} after "
          f"{time.monotonic() - began:.0f} s: {args.out / 'report.md'}")  # fmt: skip
    return 128 + interrupted.signal if interrupted.signal else int(not record.passed)


def keep_efficiency(path: Path) -> None:
    """Add what was measured to the file that the planner reads; say so where that fails."""
    if path.exists():
        from sundae.evaluation.plan import read_efficiency  # may lack packages

        try:
            measured = {**read_efficiency(MEASURED), **read_efficiency(path)}
            write_text(MEASURED, json.dumps(measured, indent=2) + "\n")
        except UserError as error:  # the parts that follow are worth more
            print(f"{MEASURED.name} stays as it was: {error}", file=sys.stderr)


def run() -> int:
    """Does what the flags say; returns the exit code."""
    args = parse_args()
    if args.pack:
        from gpu_pack import pack

        pack(args.pack, args.train, args.overrides)
        return 0
    if args.train is not None:
        args.train = str(Path(args.train).resolve())  # the parts run in the project's folder
    out = named_path(args.out or Path("out"))
    found = chosen(
        stages(args.device, args.tiny, args.train, args.overrides, out.resolve()), args.only
    )
    if args.list:
        print_list(found)
        return 0
    work = args.work or out.with_name(f"{out.name}-work")
    return run_all(args, found, work.resolve())


def main() -> None:
    """Ends as a shell expects: 0 passed, 1 a part did not, 2 a mistake of the user's."""
    try:
        code = run()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    sys.exit(code)


if __name__ == "__main__":
    main()
