"""Writes docs/parameters.md from the dataclasses that validate params.yaml: python -m tools.make_parameters"""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from tasks.params.load import load_params
from tasks.params.schema import Params

ROOT = Path(__file__).resolve().parent.parent
BOUNDS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}


def rows(section: Any, values: Any, prefix: str = "") -> Iterator[str]:
    """One table row per key."""
    for item in fields(section):
        value = getattr(values, item.name)
        if is_dataclass(item.type):
            yield from rows(item.type, value, f"{prefix}{item.name}.")
            continue
        text = item.metadata.get("description", "which policies to train, in this order")
        bounds = ", ".join(f"{BOUNDS[key]} {bound}" for key, bound in item.metadata.items() if key in BOUNDS)
        shown = "null" if value is None else value
        yield f"| `{prefix}{item.name}` | `{shown}` | {text} | {bounds} |".replace("``", "empty")


def page() -> str:
    """The whole page."""
    head = (
        "# params.yaml, key by key\n\nMade by `python -m tools.make_parameters`. The value is that of params.yaml, the"
        " embedded default; profiles lay theirs over it.\n\n| key | value | meaning | bounds |\n|---|---|---|---|\n"
    )
    return head + "\n".join(rows(Params, load_params(ROOT / "params.yaml"))) + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "parameters.md").write_text(page(), encoding="utf-8")
