"""get-images.py: flags reach the writer of their set, and flags of another set are refused."""

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parent.parent / "get-images.py"


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the script calls the writer of cats with."""
    values: dict[str, Any] = {}

    def write(
        out: Path,
        *,
        count: int = 8,
        background: str = "colours",
        overwrite: bool,
        skip_existing: bool,
        quiet: bool,
    ) -> dict[str, int] | None:
        values.update(locals())
        return None if skip_existing else {"body0": count - 1, "body1": 1}

    monkeypatch.setattr("sundae.datasets.cats.write_cats", write)
    return values


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_flags_reach_the_writer_and_others_have_its_defaults(
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "cats", "out", "--background", "scenes")
    assert (given["out"], given["count"], given["background"]) == (Path("out"), 8, "scenes")
    assert capsys.readouterr().out == "wrote out: 8 images: 7 body0, 1 body1\n"
    run(monkeypatch, "cats", "out", "--count", "3", "--skip-existing")
    assert (given["count"], given["background"]) == (3, "colours")
    assert capsys.readouterr().out == "out is already there\n"


@pytest.mark.parametrize(
    ("flag", "values"),
    [("--styles", ["clay"]), ("--no-skin-tones", []), ("--package-dir", ["."])],
)
def test_a_flag_of_another_set_is_refused_in_one_line(
    given: dict[str, Any],
    flag: str,
    values: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, "cats", "out", flag, *values)
    assert end.value.code == 2 and not given
    assert capsys.readouterr().err == f"error: {flag} is no flag of cats\n"
