"""YAML files: references between keys are resolved, everything that would run code is refused."""

from pathlib import Path

import pytest

from sundae.common.errors import UserError
from sundae.config.yaml_file import read_yaml


def read(folder: Path, text: str) -> object:
    path = folder / "x.yaml"
    path.write_text(text, encoding="utf-8")
    return read_yaml(path)


def test_references_are_resolved_and_numbers_without_a_point_are_numbers(tmp_path: Path) -> None:
    text = "model: {params: {dim: 8}}\nother: ${model.params.dim}\nlist: ['${other}']\nrate: 1e-4"
    assert read(tmp_path, text) == {
        "model": {"params": {"dim": 8}},
        "other": 8,
        "list": [8],
        "rate": 1e-4,
    }


@pytest.mark.parametrize(
    "value",
    [
        "${oc.env:HOME}",
        '"${oc.env\\x3AHOME}"',
        "'${ oc.env : HOME }'",
        "'${${b}:HOME}'",
        "[{deep: 'x${oc.decode:1}'}]",
        "${oc.env:${b}}",
    ],
)
def test_resolvers_are_refused_in_one_line(value: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="x.yaml: .* is refused") as caught:
        read(tmp_path, f"a: {value}\nb: oc.env")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [", "not a valid YAML file: .*line 2"),
        ("- 1", "not a valid YAML file: expected a mapping"),
        ("a: ${b}", "Interpolation key 'b' not found"),
        ("a: ${a}", "Recursive interpolation"),
        ("a: !!python/object/apply:os.getcwd []", "objects beyond plain values"),
        ("a: 1\na: 2", "found duplicate key a"),
    ],
)
def test_what_is_no_plain_mapping_is_one_line(text: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        read(tmp_path, text)
    assert "\n" not in str(caught.value) and "x.yaml: " in str(caught.value)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none.yaml: cannot read the file: No such file"):
        read_yaml(tmp_path / "none.yaml")
    (tmp_path / "x.yaml").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(UserError, match="not a valid YAML file"):
        read_yaml(tmp_path / "x.yaml")
