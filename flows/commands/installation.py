"""The findings of `rlhf doctor` about Python and the installed packages."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from rlhf_core.common.errors import UserError

DISTRIBUTION = "rlhf-pipeline"
INSTALL = "Run: pip install -c constraints.txt -e ."


@dataclass(frozen=True)
class Finding:
    """One check: `is_ok` is None for a warning that does not stop a run."""

    subject: str
    is_ok: bool | None
    detail: str


def look(subject: str, check: Callable[[], str]) -> Finding:
    """Return the finding of a check that returns a description or raises UserError."""
    try:
        return Finding(subject, True, check())
    except UserError as error:
        return Finding(subject, False, str(error))


def python() -> Finding:
    """Check that the project supports this Python version."""
    version = ".".join(map(str, sys.version_info[:3]))
    is_ok = (3, 11) <= sys.version_info[:2] < (3, 13)
    return Finding("Python", is_ok, version if is_ok else f"{version}; create the environment with Python 3.11 or 3.12")


def packages(root: Path) -> Finding:
    """Compare the installed packages with the requirements (an error) and with the tested versions (a warning)."""
    from packaging.requirements import Requirement

    try:
        required = [Requirement(text) for text in metadata.requires(DISTRIBUTION) or [] if "extra ==" not in text]
    except metadata.PackageNotFoundError:
        return Finding("packages", False, f"the project is not installed. {INSTALL}")
    wrong = []
    for requirement in required:
        have = _installed(requirement.name)
        if have is None or not requirement.specifier.contains(have, prereleases=True):
            wrong.append(f"{requirement.name} {have or 'missing'} (needs {requirement.specifier})")
    if wrong:
        return Finding("packages", False, f"{', '.join(wrong)}. {INSTALL}")
    tested = _constraints(root / "constraints.txt")
    other = [
        f"{item.name} {_installed(item.name)} (tested {tested[item.name]})"
        for item in required
        if item.name in tested and (_installed(item.name) or "").split("+")[0] != tested[item.name]
    ]
    if other:
        return Finding("packages", None, f"differ from the tested versions: {', '.join(other)}. {INSTALL}")
    return Finding("packages", True, f"all {len(required)} have the tested versions")


def _constraints(path: Path) -> dict[str, str]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return dict(line.strip().split("==") for line in lines if "==" in line)


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
