"""The import closure of a stage's script: every module of this project that the script may import when it runs."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Code around every stage that does not affect its outputs: DVC tracks parameters itself, and tracking only logs.
INFRASTRUCTURE = ("tasks/params/", "tasks/runtime/")


def module_file(name: str) -> str | None:
    """Return the file of a module of this project, relative to the root, or None."""
    path = name.replace(".", "/")
    for candidate in (f"{path}.py", f"{path}/__init__.py"):
        if (ROOT / candidate).is_file():
            return candidate
    return None


def imported_files(file: str) -> set[str]:
    """Return the project's files that a file imports anywhere in it, including the __init__ of packages."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    parents = {".".join(name.split(".")[:count]) for name in names for count in range(1, name.count(".") + 2)}
    return {found for name in parents if (found := module_file(name))}


def closure(*files: str, infrastructure: tuple[str, ...] = INFRASTRUCTURE) -> set[str]:
    """Return the files and everything they import. Infrastructure is omitted and not followed."""
    seen: set[str] = set()
    waiting = list(files)
    while waiting:
        file = waiting.pop()
        if file not in seen:
            seen.add(file)
            if not file.startswith(infrastructure):
                waiting += imported_files(file)
    return {file for file in seen if not file.startswith(infrastructure) and not file.endswith("__init__.py")}


if __name__ == "__main__":
    import sys

    # python -m tools.closure SCRIPT ...: print every file of the project that a stage's script imports
    print("\n".join(sorted(closure(*sys.argv[1:]))))
