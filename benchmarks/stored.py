"""Stored results: JSON files in benchmarks/results, each figure with the machine, the commit and the date."""

import json
import os
import platform
import subprocess
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
CPU_INFO = Path("/proc/cpuinfo")


def stamp() -> dict[str, Any]:
    """Return what identifies a measurement: date, commit, machine, load and the versions of torch and transformers."""
    from importlib.metadata import version

    return {
        "date": date.today().isoformat(),
        "commit": _commit(),
        "machine": _processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "torch": version("torch"),
        "transformers": version("transformers"),
    }


def _commit() -> str:
    """The short commit, with a plus sign if tracked files differ from it; `unknown` outside a repository."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--abbrev=7", "--exclude=*"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or "unknown"


def _processor() -> str:
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def load(path: Path) -> dict[str, Any]:
    """Return stored results; {} if there are none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def add(path: Path, name: str, result: dict[str, Any]) -> None:
    """Store one result with its stamp, in place of an earlier one of that name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = load(path) | {name: {"measured": stamp(), **result}}
    path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
