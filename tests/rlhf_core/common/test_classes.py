"""Classes of a package are found by the files that define them."""

import sys

import pytest

from rlhf_core.common.classes import classes_in

FILES = {
    "__init__": "",
    "base": "class Base:\n    name = None\n",
    "first": "from toy_classes.base import Base\nclass A(Base):\n    name = 'a'\nclass B(Base):\n    pass\n",
    "second": "from toy_classes.first import A\nclass Other:\n    name = 'other'\n",
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "toy_classes"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "__init__.py").write_text("from toy_classes.first import B\nclass Inner(B):\n    name = 'i'\n")
    for name, text in FILES.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield "toy_classes"
    for name in [name for name in sys.modules if name.partition(".")[0] == "toy_classes"]:
        del sys.modules[name]


def test_a_class_is_found_in_the_file_that_defines_it_and_declares_the_attribute(package):
    """B declares no name; A is only imported into `second`; Other is no subclass; packages inside are left out."""
    from toy_classes.base import Base

    found = classes_in(package, Base, "name")
    assert {file: [kind.__name__ for kind in kinds] for file, kinds in found.items()} == {
        "base": ["Base"],
        "first": ["A"],
        "second": [],
    }
