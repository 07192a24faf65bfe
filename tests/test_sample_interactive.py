"""sample-interactive.py as someone at a terminal, or a pipe, sees it."""

import importlib
import io
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Ended, contents, write_run_file

from sundae.interactive.settings import Settings

ROOT = Path(__file__).parents[1]
Script = Callable[..., Ended]
Talk = Callable[..., Ended]


@pytest.fixture(scope="module")
def trained(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps, to be read only."""
    root = tmp_path_factory.mktemp("trained")
    path = write_run_file(root, tiny_data, {})
    words = ["--cfg-path", path, "--run-dir", root / "run", "--seed", 0, "--no-cuda", "--quiet"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sundae.training.logbook.draw_curves", lambda rows, path: None)
        patch.setattr(sys, "argv", ["train.py", *map(str, words)])
        importlib.import_module("train").main()
    return root / "run"


class Typed(io.StringIO):
    """Input from a keyboard: a line "^C" is the key."""

    def isatty(self) -> bool:
        return True

    def readline(self, *limit: int) -> str:  # type: ignore[override]
        line = super().readline(*limit)
        if line == "^C\n":
            raise KeyboardInterrupt
        return line


@pytest.fixture
def talk(script: Script, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Talk:
    """talk("1", "exit") answers those lines, into OUT; keyboard=True has a terminal."""

    def run(*lines: str, keyboard: bool = False, flags: tuple[object, ...] = ()) -> Ended:
        text = "".join(f"{line}\n" for line in lines)
        monkeypatch.setattr(sys, "stdin", Typed(text) if keyboard else io.StringIO(text))
        out = tmp_path / "out"
        return script("sample-interactive", "--resume", trained, "--out-dir", out, *flags)

    return run


def seeds_of(text: str) -> list[str]:
    return re.findall(r"seed (\d+)", text)


def test_a_conversation_samples_and_says_where_the_files_are(talk: Talk, tmp_path: Path) -> None:
    ended = talk("1", "5", flags=("--seed", 7))
    assert (ended.code, ended.err) == (0, "")
    assert re.search(
        r"5 samples in \d+\.\d\d s, [123] of 3 steps \(renoise\), seed 7: .*/out/0001, side",
        ended.out,
    )
    assert set(contents(tmp_path / "out")) == {
        *(f"0001/0000{number}.png" for number in range(5)),
        "0001/grid.png",
    }


def test_the_samples_are_those_of_sample_py(
    talk: Talk, script: Script, trained: Path, tmp_path: Path
) -> None:
    talk("sample", flags=("--seed", 7, "--temperature", 0.5))
    options = ("--seed", 7, "--temperature", 0.5, "--out-dir", tmp_path / "bulk")
    assert script("sample", "--resume", trained, *options).code == 0
    ours = contents(tmp_path / "out" / "0001")
    assert {name: ours[name] for name in ours if name != "grid.png"} == contents(tmp_path / "bulk")


def test_the_end_of_the_input_is_an_end_anywhere(talk: Talk) -> None:
    for lines in ((), ("3",), ("3", "steps"), ("1",)):
        ended = talk(*lines)
        assert (ended.code, ended.err) == (0, "")
        assert ended.out.endswith("\n")


def test_a_setting_is_changed_and_used(talk: Talk, tmp_path: Path) -> None:
    ended = talk("change", "nb_samples", "2", "3", "class", "two", "show", "1")
    shown = ended.out.splitlines()
    assert "nb_samples is 2" in shown and "class is two" in shown
    assert any(line.split()[1:] == ["nb_samples", "2"] for line in shown[-25:])
    assert len(list((tmp_path / "out/0001").glob("0*.png"))) == 2


def test_what_auto_means_is_shown_with_the_steps_as_they_are(talk: Talk) -> None:
    ended = talk("4", "3", "steps", "17", "4", "3", "strategy", "halton", "4", "5")
    shown = [line.split(maxsplit=2)[2] for line in ended.out.splitlines() if " strategy  " in line]
    assert shown[0] == "auto (renoise)"
    assert "auto (random)" in shown and shown[-1] == "halton"
    assert "strategy is halton" in ended.out


def test_class_names_cannot_control_the_terminal(
    script: Script, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    for path in run.glob("checkpoints/*/checkpoint.json"):
        path.write_text(path.read_text().replace('"one"', '"\\u001b[31m\\u009b2J\\nred"'))
    lines = ("3", "class", "x", "1", "4", "5")
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    ended = script("sample-interactive", "--resume", run, "--out-dir", tmp_path / "out")
    assert ended.code == 0
    name = r"\x1b[31m\x9b2J\nred"
    assert f"class: 'all', or some of zero, {name}, two" in ended.out
    assert f"class x: expected one of zero, {name}, two" in ended.out
    assert f"class is {name}\n" in ended.out
    assert not set("\x1b\x9b") & set(ended.out)


def test_a_bad_value_is_read_again_and_enter_keeps_the_old_one(talk: Talk) -> None:
    ended = talk("3", "steps", "ten", "0", "9", "3", "steps", "x", "", "4")
    lines = ended.out.splitlines()
    assert "steps: an integer at least 1; Enter keeps 3" in lines
    assert "steps: expected an integer at least 1, got 'ten'" in lines
    assert "steps: expected an integer at least 1, got 0" in lines
    assert lines.count("steps is 9") == 2
    assert ended.code == 0


def test_an_unknown_choice_is_read_again(talk: Talk) -> None:
    ended = talk("6", "sampel", "s", "exit")
    assert "expected a number from 1 to 5 or a name, got '6'" in ended.out
    assert "got 'sampel'; did you mean 'sample'?" in ended.out
    assert "got 's'; valid names: sample, show" in ended.out
    assert ended.code == 0


def test_repeating_takes_the_same_seed_and_the_settings_of_then(talk: Talk, tmp_path: Path) -> None:
    ended = talk("1", "3", "nb", "2", "3", "history", "yes", "2", "1")
    first, again, other = seeds_of(ended.out)
    assert first == again != other
    out = tmp_path / "out"
    first_files = contents(out / "0001")
    assert len(first_files) == 6  # five and their grid
    assert first_files.items() <= contents(out / "0002").items()
    assert {path.name for path in (out / "0002").iterdir()} >= {"history", "history.webp"}
    assert "each step in history/, played by history.webp" in ended.out
    assert len(list((out / "0003").glob("0*.png"))) == 2


def test_there_must_be_something_to_repeat(talk: Talk) -> None:
    ended = talk("2", "5")
    assert "there is nothing to repeat yet; sample first" in ended.out
    assert ended.code == 0


def test_ctrl_c_at_the_menu_leaves(talk: Talk) -> None:
    ended = talk("4", "^C", "1", keyboard=True)
    assert (ended.code, ended.err) == (130, "interrupted\n")
    assert "samples in" not in ended.out


@pytest.mark.parametrize("keyboard", [True, False])
def test_ctrl_c_while_sampling_goes_back_to_the_menu_where_somebody_is(
    talk: Talk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keyboard: bool
) -> None:
    sample = Settings.sample

    def interrupted(self):  # type: ignore[no-untyped-def]
        monkeypatch.setattr(Settings, "sample", sample)  # the next one is left alone
        yield from list(sample(self))[:2]
        raise KeyboardInterrupt

    monkeypatch.setattr(Settings, "sample", interrupted)
    ended = talk("1", "1", "5", keyboard=keyboard)
    if keyboard:
        assert ended.code == 0
        assert "stopped; nothing of it was kept" in ended.out
        assert [folder.name for folder in (tmp_path / "out").iterdir()] == ["0001"]
    else:
        assert ended.code == 130
        assert not (tmp_path / "out").exists()


def test_folders_of_before_are_left_alone(talk: Talk, tmp_path: Path) -> None:
    talk("1")
    before = contents(tmp_path / "out")
    talk("1")
    assert before.items() < contents(tmp_path / "out").items()


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--steps", 0], "--steps: expected an integer at least 1"),
        (["--web", "--port", 99999], "--port 99999: expected a number from 0 to 65535"),
        (["--web"], "--web needs Gradio 6: pip install -r requirements-web.txt"),
        (["--web", "--auth", "ann:x", "--no-auth"], "--auth and --no-auth contradict each other"),
        (["--web", "--auth", "ann"], "--auth: expected USER:PASSWORD, neither of them empty"),
        (["--web", "--auth", ":secret"], "--auth: expected USER:PASSWORD"),
        (["--resume", "nowhere"], "nowhere does not exist"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    script: Script,
    trained: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: list[object],
    complaint: str,
) -> None:
    module = importlib.import_module("sample-interactive")
    found = flags != ["--web"]
    monkeypatch.setattr(module, "gradio_version", lambda: 6 if found else 5)
    words = flags if "--resume" in flags else ["--resume", trained, *flags]
    assert complaint in script("sample-interactive", *words).refusal()


def test_a_folder_that_cannot_be_written_is_said_and_the_menu_goes_on(
    talk: Talk, tmp_path: Path
) -> None:
    (tmp_path / "out").write_text("in the way")
    ended = talk("1", "4", "5")
    assert f"cannot write to {tmp_path}/out" in ended.out
    assert ended.code == 0


def test_a_pipe_can_drive_it(trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    command = [sys.executable, "sample-interactive.py", "--resume", run, "--no-cuda", "--quiet"]
    done = subprocess.run(
        [*map(str, command), "--out-dir", str(tmp_path / "out")],
        input="1\n2\n",
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, "")
    first, again = seeds_of(done.stdout)
    assert first == again
    assert contents(tmp_path / "out/0001") == contents(tmp_path / "out/0002")
