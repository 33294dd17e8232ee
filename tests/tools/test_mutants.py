"""Planted faults: the tool on a toy project, and the list of faults for this project."""

import ast
import subprocess
from functools import cache
from pathlib import Path

import psutil
import pytest

from terminal import poll
from tools.closure import ROOT
from tools.mutants.__main__ import is_chosen, main
from tools.mutants.copies import TIMED_OUT, make_copy, try_fault
from tools.mutants.fault import Fault, Module, OutdatedError, numbered, planted
from tools.mutants.faults import MODULES
from tools.sections import write_section

SOURCE = """\
LIMIT = 3


class Scale:
    def double(self, x):
        return 2 * x

    def half(self, x):
        return x / 2
"""
TESTS = """\
from toy import LIMIT, Scale


def test_double():
    assert Scale().double(3) == 6
"""
NOTICED = Fault("Scale.double", "2 * x", "3 * x", "three times")
UNNOTICED = Fault("Scale.half", "x / 2", "x / 3", "a third")


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    for name, text in (("toy.py", SOURCE), ("test_toy.py", TESTS), ("docs/proof.md", "# Proof\n")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    return tmp_path


def plant(root: Path, *faults: Fault) -> int:
    return main([], [Module("toy.py", "test_toy.py", *faults)], root)


def test_a_fault_that_a_test_sees_is_killed(toy, capsys):
    assert plant(toy, NOTICED) == 0
    assert "killed" in capsys.readouterr().out
    assert (toy / "toy.py").read_text() == SOURCE
    page = (toy / "docs/proof.md").read_text()
    assert page.startswith("# Proof\n")
    assert "Planted: 1. Noticed: 1. Not noticed: none." in page
    assert "| 1 | `toy.py` `Scale.double` | `` 2 * x `` → `` 3 * x `` | three times | test_double |" in page


def test_a_fault_that_no_test_sees_survives(toy, capsys):
    assert plant(toy, NOTICED, UNNOTICED) == 1
    assert "SURVIVED    2 toy.py Scale.half: a third" in capsys.readouterr().out
    assert "Planted: 2. Noticed: 1. Not noticed: 2." in (toy / "docs/proof.md").read_text()


def test_a_fault_of_changed_source_is_outdated(toy, capsys):
    assert plant(toy, Fault("Scale.double", "x * 2", "x * 3", "three times")) == 1
    assert "OUTDATED" in capsys.readouterr().out


def test_an_error_that_is_not_a_failed_test_kills_nothing(toy, capsys):
    assert plant(toy, Fault("LIMIT", "3", "1 / 0", "no import")) == 1
    assert "BROKEN" in capsys.readouterr().out


WAITS = """

def test_half():
    if Scale().half(4) != 2:
        command = [sys.executable, "-c", "import signal; signal.pause()"]
        process = subprocess.Popen(command, start_new_session=True)
        Path("pid").write_text(str(process.pid))
        process.wait()
"""


def has_ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_fault_that_never_ends_is_stopped_with_all_it_started(toy, tmp_path_factory):
    (toy / "test_toy.py").write_text("import subprocess\nimport sys\nfrom pathlib import Path\n\n" + TESTS + WAITS)
    copy = make_copy(toy, tmp_path_factory.mktemp("copy"))
    (fault,) = numbered([Module("toy.py", "test_toy.py", UNNOTICED)])
    assert try_fault(copy, fault, timeout=3.0).verdict == TIMED_OUT
    if (copy / "pid").is_file():  # under load, the test may not have written it yet
        pid = int((copy / "pid").read_text())
        poll(lambda: has_ended(pid), lambda: f"process {pid} is still running")


def test_nothing_is_planted_where_tests_fail_without_a_fault(toy, capsys):
    (toy / "test_toy.py").write_text(TESTS.replace("6", "7"))
    assert plant(toy, NOTICED) == 1
    assert "These tests fail without a fault" in capsys.readouterr().out
    assert (toy / "docs/proof.md").read_text() == "# Proof\n"


@pytest.mark.parametrize(
    ("symbol", "old", "new", "found"),
    [
        ("Scale.third", "x", "y", "the symbol Scale.third does not exist"),
        ("Scale.double", "x", "y", "contains 'x' 2 times"),
        ("Scale.double", "/", "*", "contains '/' 0 times"),
        ("LIMIT", "3", "(", "is not Python"),
    ],
)
def test_a_fault_is_planted_at_its_symbol_once(symbol, old, new, found):
    with pytest.raises(OutdatedError, match=found.replace("(", r"\(")):
        planted(SOURCE, Fault(symbol, old, new, ""))
    assert planted(SOURCE, Fault("LIMIT", "3", "4", "")) == SOURCE.replace("3", "4")
    assert planted(SOURCE, Fault("Scale.half", "2", "3", "")) == SOURCE.replace("x / 2", "x / 3")


def test_faults_are_chosen_by_number_or_path():
    first, second = numbered([Module("a/b.py", "t.py", NOTICED), Module("a/c.py", "t.py u.py::v", UNNOTICED)])
    assert (first.tests, second.tests) == (("t.py",), ("t.py", "u.py::v"))
    assert [is_chosen(first, [word]) for word in ("1", "2", "a/", "a/c")] == [True, False, True, False]
    assert is_chosen(second, ["1", "a/c.py"])


def test_commands_write_their_own_sections(tmp_path):
    page = tmp_path / "page.md"
    write_section(page, "one", "first")
    write_section(page, "two", "second")
    write_section(page, "one", "third\n")
    one, two = "<!-- begin one -->\nthird\n<!-- end one -->\n", "<!-- begin two -->\nsecond\n<!-- end two -->\n"
    assert page.read_text() == f"{one}\n{two}"


@cache
def names_in(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_fault_of_the_list_can_be_planted_and_its_tests_exist():
    faults = numbered(MODULES)
    assert len(faults) >= 110
    wrong = []
    for fault in faults:
        try:
            planted((ROOT / fault.path).read_text(encoding="utf-8"), fault.fault)
        except (OutdatedError, FileNotFoundError) as error:
            wrong.append(f"{fault}: {error}")
        for test in fault.tests:
            path, _, name = test.partition("::")
            if not (ROOT / path).exists() or (name and name not in names_in(path)):
                wrong.append(f"{fault}: no test {test}")
    assert not wrong, "\n".join(wrong)


def test_every_package_has_faults():
    paths = {Path(module.path).parent.as_posix() for module in MODULES}
    packages = {path.parent.relative_to(ROOT).as_posix() for top in ("rlhf_core", "helpdesk", "tasks", "flows")
                for path in (ROOT / top).rglob("*.py") if path.name != "__init__.py"}  # fmt: skip
    assert packages - paths - {"flows"} == set()
