"""Optional packages: a missing one is named together with the command that installs it."""

import sys

import pytest

from sundae.common.errors import UserError
from sundae.common.extras import import_extra, package_folder


def test_a_missing_package_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    # Another test may have imported it, and a module that is there needs no package.
    monkeypatch.delitem(sys.modules, "torch_fidelity.metric_kid", raising=False)
    with pytest.raises(UserError, match=r"^torch_fidelity is missing: pip install -r re\.txt$"):
        import_extra("torch_fidelity.metric_kid", "re.txt")
    assert import_extra("json.decoder", "re.txt").JSONDecoder


def test_the_folder_of_a_package_is_found_without_running_it() -> None:
    with pytest.raises(UserError, match="the package no-such-one is not installed: pip install it"):
        package_folder("no-such-one", "pip install it")
    assert (package_folder("torch-fidelity", "") / "metric_kid.py").is_file()
