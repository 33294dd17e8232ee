"""Write docs/parameters.md from the dataclasses that validate params.yaml, and docs/names.md.

python -m tools.make_parameters
"""

from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from rlhf_core.algorithms.base.table import policy_algorithms
from tasks.params.derived import LOOPS
from tasks.params.explain import section_of
from tasks.params.load import load_params
from tasks.params.schema import Params
from tools import names_page

ROOT = Path(__file__).resolve().parent.parent
BOUNDS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
HEAD = """\
# params.yaml, key by key

Made by `python -m tools.make_parameters`. The built-in run uses the value in params.yaml, or else the default.
Profiles and `--set` can change it. [names.md](names.md) lists the names of TRL, verl and OpenRLHF for these keys.

A method has every option of its loop. Values that methods share are set once, in `policy.online_loop` or
`policy.offline_loop`. The rows of a method list its own options, and the loop options whose values it overrides.

| key | built-in run | default | meaning | allowed |
|---|---|---|---|---|
"""


def rows(values: Any, prefix: str = "") -> Iterator[str]:
    """Return one table row per key of a section."""
    kinds = get_type_hints(type(values))
    for item in fields(values):
        value = getattr(values, item.name)
        if not is_dataclass(value):
            yield row(f"{prefix}{item.name}", value, item, kinds[item.name])
            inner: Any = section_of(kinds[item.name])
            if inner is not kinds[item.name]:  # an optional section that is null
                yield from rows(inner(), f"{prefix}{item.name}.")
            yield from entry_rows(f"{prefix}{item.name}", kinds[item.name])
        elif item.name in policy_algorithms() and prefix == "policy.":
            yield from method_rows(item.name, values)
        else:
            yield from rows(value, f"{prefix}{item.name}.")


def entry_rows(key: str, kind: Any) -> Iterator[str]:
    """Return the rows of the entries of a list of sections, such as policy.rewards."""
    for entry in get_args(kind) if get_origin(kind) is list else ():
        if is_dataclass(entry):
            kinds = get_type_hints(entry)
            for item in fields(entry):
                yield row(f"{key}[].{item.name}", "–", item, kinds[item.name])


def method_rows(name: str, policy: Any) -> Iterator[str]:
    """Return the rows of a method, without the values it takes from its loop."""
    section, loop = policy.section(name), policy_algorithms()[name].loop
    shared = getattr(policy, LOOPS[loop]) if loop else None
    kinds = get_type_hints(type(section))
    for item in fields(section):
        value = getattr(section, item.name)
        same = next((other for other in fields(shared) if other.name == item.name), None) if shared else None
        if same is None or value != getattr(shared, item.name) or item.metadata != same.metadata:
            yield row(f"policy.{name}.{item.name}", value, item, kinds[item.name])


def row(key: str, value: Any, item: Any, kind: Any) -> str:
    """Return one row: key, value in the built-in run, default, meaning, and allowed values or bounds."""
    bounds = ", ".join(f"{BOUNDS[key]} {bound}" for key, bound in item.metadata.items() if key in BOUNDS)
    allowed = ", ".join(f"`{choice}`" for choice in choices(kind)) or bounds
    default = item.default if item.default is not MISSING else item.default_factory() if has_factory(item) else None
    shown = "must be set" if default is None and is_required(item) else f"`{_shown(default)}`"
    text = f"| `{key}` | `{_shown(value)}` | {shown} | {item.metadata['description']} | {allowed} |"
    return text.replace("``", '`""`')


def choices(kind: Any) -> list[Any]:
    """Return the values that a Literal type allows, also inside a list or beside null."""
    if get_origin(kind) is Literal:
        return [*get_args(kind)]
    return [choice for inner in get_args(kind) for choice in choices(inner)]


def has_factory(item: Any) -> bool:
    """Return whether the default is made by a function."""
    return item.default_factory is not MISSING


def is_required(item: Any) -> bool:
    """Return whether params.yaml must set the key."""
    return item.default is MISSING and not has_factory(item)


def _shown(value: Any) -> Any:
    """Return a value as params.yaml writes it. For a list of sections, only keys with a value are shown."""
    if isinstance(value, list):
        terms = [
            {part.name: getattr(term, part.name) for part in fields(term) if getattr(term, part.name) is not None}
            if is_dataclass(term)
            else term
            for term in value
        ]
        return str(terms).replace("'", "")
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else value


def page() -> str:
    """Return the whole page."""
    params: Params = load_params(ROOT / "params.yaml")
    return HEAD + "\n".join(rows(params)) + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "parameters.md").write_text(page(), encoding="utf-8")
    (ROOT / "docs" / "names.md").write_text(names_page.page(), encoding="utf-8")
