"""Methods are found by their files: each file contains one method with the file's name."""

import sys

import pytest

from rlhf_core.algorithms.base import table
from tools.closure import ROOT

METHOD = """
from rlhf_core.algorithms.base.algorithm import Method

class {kind}(Method):
    name = "{name}"
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An empty package for methods."""
    folder = tmp_path / "toy_methods"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "toy_methods"]:
        del sys.modules[name]


def test_a_method_is_found_by_its_file(package):
    (package / "mine.py").write_text(METHOD.format(kind="Mine", name="mine"))
    (package / "base").mkdir()
    (package / "base" / "__init__.py").write_text(METHOD.format(kind="Base", name="not a method"))
    assert {name: kind.__name__ for name, kind in table._methods("toy_methods").items()} == {"mine": "Mine"}


@pytest.mark.parametrize(
    ("text", "declared"),
    [
        (METHOD.format(kind="Mine", name="yours"), "'yours'"),
        (METHOD.format(kind="Mine", name="mine") + METHOD.format(kind="Yours", name="yours"), "'mine', 'yours'"),
        ("", "none"),
    ],
)
def test_a_file_with_a_wrong_name_is_reported(package, text, declared):
    (package / "mine.py").write_text(text)
    with pytest.raises(ValueError, match=rf"toy_methods/mine\.py must contain one method .* it declares {declared}\."):
        table._methods("toy_methods")


def test_each_file_of_a_method_is_in_a_table():
    """The names are those of the files, in alphabetical order; folders contain no policy methods."""
    algorithms = ROOT / "rlhf_core/algorithms"
    for folder, found in ((algorithms, table.policy_algorithms()), (algorithms / "reward", table.reward_losses())):
        files = sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
        assert files and list(found) == files
