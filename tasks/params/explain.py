"""Explain what is wrong with a value of params.yaml: its key, the value, and the allowed values."""

import difflib
import re
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from rlhf_core.common.fields import describe_bounds
from tasks.params.peers import peer_hint

LARGEST = 2**63 - 1  # the largest integer that torch, MLflow and JSON readers support
NOT_TEXT = re.compile("[\0\ud800-\udfff]")  # invalid in paths or in UTF-8
KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "text",
    list: "a list",
    dict: "a section of names",
}

Where = tuple[str | int, ...]  # the parts of a dotted key; a number is an index into a list

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 60


def explain(problem: Any, section: type) -> str:
    """Explain one of pydantic's errors about a mapping that is not a valid `section`."""
    where = without_options(problem["loc"], section)
    key = dotted(where)
    if problem["type"] in {"missing", "missing_argument", "missing_keyword_only_argument"}:
        return f"the key '{key}' is missing. Add it, or restore the file with: git checkout params.yaml"
    if problem["type"] == "value_error":  # a section with inconsistent values
        place = f"in '{key}', " if key else ""
        text = problem["msg"].removeprefix("Value error, ").rstrip(".")
        return f"{place}{text}" if text.endswith("?") else f"{place}{text}."
    return wrong_value(where, problem["input"], section)


def wrong_value(where: Where, value: Any, section: type) -> str:
    """Return a message with the value of a key and its allowed values, or that the key is unknown."""
    if (found := _kind_at(where, section)) is None:
        return f"unknown key '{shorten(dotted(where))}'. {nearest_key(where, section)}"
    return f"'{dotted(where)}' is {_shown(value)}; it must be {_allowed(value, *found)}."


def shorten(text: str) -> str:
    """Shorten a text to one line of at most 80 characters."""
    line = " ".join(text.split())
    return line if len(line) <= 80 else f"{line[:79]}…"


def dotted(where: Where) -> str:
    """Join the parts of a key: `policy.rewards.1.weight`."""
    return ".".join(map(str, where))


def coerced(before: Any, after: Any, where: Where = ()) -> Iterator[tuple[Where, Any]]:
    """Yield values that validation wrongly accepted: true as 1, text as a number, huge integers, invalid text.

    `before` and `after` are the values before and after validation.
    """
    if isinstance(before, Mapping):
        for key, value in before.items():
            yield from coerced(value, after[key], (*where, key))
    elif isinstance(before, list):
        for place, (old, new) in enumerate(zip(before, after, strict=True)):
            yield from coerced(old, new, (*where, place))
    elif (
        isinstance(before, bool) != isinstance(after, bool)
        or isinstance(before, str) != isinstance(after, str)
        or (isinstance(after, int) and abs(after) > LARGEST)
        or (isinstance(after, str) and NOT_TEXT.search(after))
    ):
        yield where, before


def nearest_key(where: Where, section: type) -> str:
    """Suggest our name of a peer's key, or the most similar key; or list the existing keys."""
    if known := peer_hint(dotted(where), keys_of(section)):
        return known
    *parents, name = where
    parent = _kind_at(tuple(parents), section)
    owner = section_of(parent[0]) if parent else None
    beside = [item.name for item in fields(owner)] if is_dataclass(owner) else []
    if close := difflib.get_close_matches(str(name), beside, n=1):
        return f"Did you mean '{dotted((*parents, close[0]))}'?"
    if parents and beside:
        return f"Choose from: {', '.join(beside)}."
    close = difflib.get_close_matches(dotted(where), keys_of(section), n=1)
    return f"Did you mean '{close[0]}'?" if close else "See params.yaml for the existing keys."


def keys_of(section: Any, prefix: str = "") -> list[str]:
    """Return every dotted key of a section, including those of nested sections."""
    keys = []
    for item in fields(section):
        keys.append(prefix + item.name)
        if is_dataclass(section_of(item.type)):
            keys += keys_of(section_of(item.type), f"{prefix}{item.name}.")
    return keys


def without_options(where: Where, section: type) -> Where:
    """A key without pydantic's names of the options of a union, such as `str` in `target_modules.str`."""
    for place, part in enumerate(where):
        if isinstance(part, str) and _kind_at(where[: place + 1], section) is None:
            kind, _ = _kind_at(where[:place], section) or (None, {})
            if get_origin(kind) in (Union, UnionType):
                return where[:place]
            break
    return where


def is_optional(where: Where, section: type) -> bool:
    """Whether a key may be null."""
    kind, _ = _kind_at(where, section) or (None, {})
    return NoneType in get_args(kind)


def section_of(kind: Any) -> Any:
    """The section in an optional section, `LoraParams | None`; any other type as it is."""
    sections = [option for option in get_args(kind) if is_dataclass(option)] if get_origin(kind) is UnionType else []
    return sections[0] if sections else kind


def _kind_at(where: Where, section: type) -> tuple[Any, Mapping[str, Any]] | None:
    """Return type and bounds of a key, None if the key does not exist."""
    kind: Any = section
    metadata: Mapping[str, Any] = {}
    for part in where:
        kind = section_of(kind)
        if is_dataclass(kind) and part in (found := {item.name: item.metadata for item in fields(kind)}):
            kind, metadata = get_type_hints(kind)[str(part)], found[str(part)]
        elif get_origin(kind) is list and isinstance(part, int):
            kind, metadata = get_args(kind)[0], {}
        elif get_origin(kind) is dict:
            kind, metadata = get_args(kind)[1], {}
        else:
            return None
    return kind, metadata


def _allowed(value: Any, kind: Any, metadata: Mapping[str, Any]) -> str:
    """Describe the allowed values of a key: "a whole number, at least 1, or null"."""
    options = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    bounds = describe_bounds(metadata)
    if int in options and isinstance(value, int | float) and abs(value) > LARGEST:
        bounds += f"{' and ' if bounds else ''}at most {LARGEST}"
    words = [f"{_kind(option)}{', ' + bounds if bounds else ''}" for option in options if option is not NoneType]
    return ", or ".join([*words, *(["null"] if NoneType in options else [])])


def _kind(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    return KINDS.get(get_origin(kind) or kind, "a section of keys")


def _shown(value: Any) -> str:
    """Return a value in YAML form, shortened if it is long."""
    if value is None or isinstance(value, bool):
        return {True: "true", False: "false", None: "null"}[value]
    return _short.repr(value)
