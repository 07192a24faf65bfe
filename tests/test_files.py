"""What is written is whole, and what JSON can hold."""

import json
import math
from pathlib import Path

from sundae.common.files import write_json


def test_numbers_that_json_lacks_are_null(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    write_json(path, {"psnr": math.inf, "sides": [(math.nan, 1.5)], "classes": {"é": -math.inf}})

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    found = json.loads(path.read_text("utf-8"), parse_constant=refuse)
    assert found == {"psnr": None, "sides": [[None, 1.5]], "classes": {"é": None}}
