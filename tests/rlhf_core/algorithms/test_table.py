"""Methods are found by their files: each file contains one method with the file's name."""

import sys
from pathlib import Path

import pytest

from rlhf_core.algorithms.base import table

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


def test_all_policies_and_reward_losses_are_found():
    """Every file beside this package's `__init__` is one method."""
    folder = Path(table.__file__).parents[1]
    for methods, place in ((table.policy_algorithms(), folder), (table.reward_losses(), folder / "reward")):
        assert list(methods) == sorted(file.stem for file in place.glob("*.py") if file.stem != "__init__")
    assert {"ppo", "dpo"} <= set(table.policy_algorithms()) and "bradley_terry" in table.reward_losses()
