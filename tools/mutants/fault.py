"""A fault: one change to the source of a named symbol, and the tests that must notice it."""

import ast
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """Replace `old` by `new` in the source of `symbol` (`GRPO.targets`, or a constant), which contains `old` once.

    tests: files or `file::test`, separated by spaces; if empty, the module's. pitfall: number in docs/pitfalls.md.
    """

    symbol: str
    old: str
    new: str
    breaks: str
    tests: str = ""
    pitfall: int | None = None


class Module:
    """The faults of one file, and the tests for those that do not name their own."""

    def __init__(self, path: str, tests: str, *faults: Fault) -> None:
        self.path, self.tests, self.faults = path, tests, faults


def tests_of(path: str, *names: str) -> str:
    """Return the names of single tests of one file, for a fault or a module."""
    return " ".join(f"{path}::test_{name}" for name in names)


@dataclass(frozen=True)
class Planted:
    """A fault with its number in the list, its file and its tests."""

    number: int
    path: str
    fault: Fault
    tests: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.number:3} {self.path} {self.fault.symbol}: {self.fault.breaks}"


class OutdatedError(Exception):
    """The source has changed, so the fault cannot be planted."""


def numbered(modules: Iterable[Module]) -> list[Planted]:
    """Return all faults in order, numbered from 1."""
    pairs = [(module, fault) for module in modules for fault in module.faults]
    return [
        Planted(number, module.path, fault, tuple((fault.tests or module.tests).split()))
        for number, (module, fault) in enumerate(pairs, 1)
    ]


def planted(source: str, fault: Fault) -> str:
    """Return the source with the fault in it.

    Raises:
        OutdatedError: the symbol is missing, does not contain `old` exactly once, or the result is not Python.
    """
    first, last = lines_of(source, fault.symbol)
    lines = source.splitlines(keepends=True)
    body = "".join(lines[first:last])
    count = body.count(fault.old)
    if count != 1:
        raise OutdatedError(f"{fault.symbol} contains {fault.old!r} {count} times, not once")
    changed = "".join([*lines[:first], body.replace(fault.old, fault.new), *lines[last:]])
    try:
        ast.parse(changed)
    except SyntaxError as error:
        raise OutdatedError(f"{fault.symbol} with {fault.new!r} is not Python") from error
    return changed


def lines_of(source: str, symbol: str) -> tuple[int, int]:
    """Return first and last line of a symbol, as a slice. A symbol is a class, function, method, constant or field.

    Raises:
        OutdatedError: the symbol does not exist.
    """
    found: ast.AST = ast.parse(source)
    for name in symbol.split("."):
        nodes = [node for node in getattr(found, "body", []) if _defines(node, name)]
        if not nodes:
            raise OutdatedError(f"the symbol {symbol} does not exist")
        found = nodes[-1]
    assert isinstance(found, ast.stmt) and found.end_lineno is not None
    starts = [found.lineno, *(mark.lineno for mark in getattr(found, "decorator_list", []))]
    return min(starts) - 1, found.end_lineno


def _defines(node: ast.stmt, name: str) -> bool:
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return node.name == name
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return any(isinstance(target, ast.Name) and target.id == name for target in targets)
