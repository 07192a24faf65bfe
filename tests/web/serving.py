"""A page over a tiny run, in a process that may open no connection beyond this machine."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conftest import write_run_file

ROOT = Path(__file__).parents[2]
LONG = 3000  # steps, so many that they can be watched
PATIENCE = 180  # seconds; the machine may be busy

_ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


class Server:
    """A running page.

    Attributes:
        process: that serves it.
        folder: its --out-dir.
        calls: list of the foreign hosts it called; does not exist while there are none.
        link: what it said to open.
    """

    def __init__(self, process: "subprocess.Popen[str]", folder: Path, calls: Path) -> None:
        self.process, self.folder, self.calls = process, folder, calls
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("open http://"), line
        self.link = line.split()[1]
        self.url = self.link.partition("/?")[0]
        self.port = int(self.url.rpartition(":")[2])


def train_tiny_run(root: Path, data: Path) -> Path:
    """A run of two steps in ROOT/run."""
    path = write_run_file(root, data, {})
    training = [sys.executable, "train.py", "--cfg-path", path, "--run-dir", root / "run"]
    words = [*map(str, training), "--seed", "0", "--no-cuda", "--quiet"]
    subprocess.run(words, cwd=ROOT, env=_ENVIRONMENT, check=True, capture_output=True)
    return root / "run"


@contextmanager
def serving(run: Path, root: Path, *flags: object, checked: bool = True) -> Iterator[Server]:
    """Serves the page at a free port; at the end, nothing may have gone wrong or gone out.

    Args:
        run: what to sample from.
        root: gets OUT, the --out-dir, and the list of calls.
        flags: further ones.
        checked: nothing may have been complained of.
    """
    calls = root / "calls.txt"
    command = [sys.executable, Path(__file__).with_name("guarded.py"), calls,
               "sample-interactive.py", "--resume", run, "--web", "--port", 0, "--no-cuda",
               "--quiet", "--out-dir", root / "out", "--steps", LONG, "--no-early-stop",
               *flags]  # fmt: skip
    with (root / "stderr.txt").open("w") as stderr:  # a pipe that nobody reads would fill up
        process = subprocess.Popen(
            list(map(str, command)),
            cwd=ROOT,
            env=_ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    try:
        yield Server(process, root / "out", calls)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE)
        complaints = (root / "stderr.txt").read_text()
        assert process.returncode == 130
        if "--no-auth" in flags:
            assert complaints.startswith("warning: --no-auth lets everybody in"), complaints
            complaints = complaints.partition("\n")[2]
        # no trace of any mistake made here
        assert not checked or complaints == "interrupted\n", complaints
        assert not calls.exists(), calls.read_text()
    finally:
        process.kill()
        process.wait()
