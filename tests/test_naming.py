"""Names from files: one component of a path each, and harmless on a terminal."""

from pathlib import Path

import pytest

from sundae.common.naming import path_component, printable


@pytest.mark.parametrize("name", ["emoji64", "café 3", "a-b_c.d", "v1.2", "_x", "日本", "console"])
def test_an_ordinary_name_stays_as_it_is(name: str) -> None:
    assert path_component(name) == name == printable(name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("../../x", "_.._x"),
        ("/abs/x", "_abs_x"),
        ("a/b", "a_b"),
        ("C:\\x", "C__x"),
        ("", "unnamed"),
        (".", "unnamed"),
        ("..", "unnamed"),
        (" . ", "unnamed"),
        (".hidden", "hidden"),
        ("dots.. ", "dots"),
        ("con", "_con"),
        ("Lpt1.txt", "_Lpt1.txt"),
        ("nul .x", "_nul .x"),
        ("con" + 200 * " " + "x", "_con"),
        ('a*b?c"<d>|e', "a_b_c__d__e"),
        ("a\x00b\x1b[31m\x7f\x9b\n", "a_b_[31m___"),
        ("a\u202eb\u2066\u2028", "a_b__"),
        ("caf\udce9 \ud800", "caf_ _"),
        ("x" * 300, "x" * 100),
        ("x" + "é" * 100, "x" + "é" * 49),
        ("con." + "x" * 300, "_con." + "x" * 95),
    ],
)
def test_any_other_name_becomes_one_safe_component(
    name: str, expected: str, tmp_path: Path
) -> None:
    assert path_component(name) == expected
    assert path_component(expected) == expected
    (tmp_path / expected).mkdir()
    assert [path.name for path in tmp_path.iterdir()] == [expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b[31mred", r"\x1b[31mred"),
        ("a\r\n\tb", r"a\r\n\tb"),
        ("\x7f\x85\x9b", r"\x7f\x85\x9b"),
        ("\u202aa\u202e\u2066\u2069", r"\u202aa\u202e\u2066\u2069"),
        ("\u2028", r"\u2028"),
        ("caf\udce9 \ud800", r"caf\udce9 \ud800"),
        ("C:\\x 'a' é 日本 👩\u200d🚀", "C:\\x 'a' é 日本 👩\u200d🚀"),
    ],
)
def test_what_would_control_a_terminal_is_shown_as_an_escape(text: str, expected: str) -> None:
    assert printable(text) == expected
    assert printable(text).encode()  # lone surrogates cannot be printed
