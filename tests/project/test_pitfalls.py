"""docs/pitfalls.md and the markers of the tests agree."""

import ast
import re

from tools.closure import ROOT

PAGE = (ROOT / "docs/pitfalls.md").read_text(encoding="utf-8")


def marked_tests() -> dict[str, set[int]]:
    """The numbers in each test's markers, by its path and name."""
    found: dict[str, set[int]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                calls = [mark for mark in node.decorator_list if isinstance(mark, ast.Call)]
                numbers = {ast.literal_eval(c.args[0]) for c in calls if ast.unparse(c.func) == "pytest.mark.pitfall"}
                found[f"{path.relative_to(ROOT).as_posix()}::{node.name}"] = numbers
    return found


def named_tests() -> dict[int, set[str]]:
    """The tests that the page names for each number."""
    titles = re.split(r"^### (\d+)\. ", PAGE, flags=re.MULTILINE)[1:]
    sections = zip(titles[0::2], titles[1::2], strict=True)
    return {int(number): set(re.findall(r"`(tests/\S+::\w+)`", text)) for number, text in sections}


def test_every_fault_of_the_page_has_tests_that_exist_and_carry_its_number():
    tests, named = marked_tests(), named_tests()
    assert list(named) == list(range(1, len(named) + 1))
    for number, names in named.items():
        assert names, f"fault {number} names no test"
        missing = {name for name in names if number not in tests.get(name, set())}
        assert not missing, f"fault {number} names tests that do not exist or do not carry its number: {missing}"


def test_every_marker_is_a_number_of_the_page():
    unknown = {name: numbers for name, numbers in marked_tests().items() if not numbers <= set(named_tests())}
    assert not unknown


def test_every_citation_is_a_number_of_the_page():
    """In the code and the documents: docs/pitfalls.md, 29."""
    cited = set()
    for folder in ("rlhf_core", "helpdesk", "tasks", "flows", "tools", "docs"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in {".py", ".md"}:
                text = path.read_text(encoding="utf-8")
                for numbers in re.findall(r"docs/pitfalls\.md, ((?:\d+(?:, | and )?)+)", text):
                    cited |= {int(number) for number in re.findall(r"\d+", numbers)}
    assert {24, 29} <= cited
    assert cited <= set(named_tests())
