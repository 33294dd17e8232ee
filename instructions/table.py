"""The table of constraint types, found by their files, and how ids and values of a file become constraints."""

from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import Any

from instructions.constraint import Constraint
from rlhf_core.common.classes import classes_in
from rlhf_core.common.errors import UserError

# An id of IFEval without a check here.
UNSUPPORTED = {"language:response_language": "it needs a detector of languages"}


@cache
def constraint_types() -> dict[str, type[Constraint]]:
    """Every type by its id."""
    found = classes_in("instructions.types", Constraint, "id")
    return {kind.id: kind for own in found.values() for kind in own}


def make_constraint(id: str, values: Mapping[str, Any] | None, where: str) -> Constraint:
    """Return the constraint with an id and its values; a value that is null counts as missing.

    Raises:
        UserError: the id is unknown or not supported, or its values are missing, unknown or wrong. The message begins
            with `where`, the place in a file.
    """
    if id in UNSUPPORTED:
        raise UserError(f"{where}: {id} is not supported, because {UNSUPPORTED[id]}. Delete the row.")
    if id not in constraint_types():
        raise UserError(f"{where}: the instruction id {id} is unknown. Known ids: {', '.join(constraint_types())}.")
    kind = constraint_types()[id]
    given = {key: value for key, value in (values or {}).items() if value is not None}
    types: dict[str, Any] = {item.name: item.type for item in fields(kind)}
    for key in types:
        if key not in given:
            raise UserError(f"{where}: {id} needs the value {key}. Add it to kwargs.")
    for key, value in given.items():
        if key not in types:
            raise UserError(f"{where}: {id} has no value {key}; it has {', '.join(types) or 'none'}. Delete it.")
        if not _is_a(value, types[key]):
            raise UserError(f"{where}: {key} of {id} is {value!r}; it must be {_WORDS[types[key]]}. Correct it.")
    try:
        return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in given.items()})
    except ValueError as error:
        raise UserError(f"{where}: {id}: {error}. Correct it.") from error


_WORDS = {int: "a whole number of at least 1", str: "a text that is not empty", tuple[str, ...]: "a list of words"}


def _is_a(value: Any, kind: Any) -> bool:
    """Whether a value from JSON has the type of a field."""
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if kind is str:
        return isinstance(value, str) and bool(value.strip())
    return isinstance(value, list) and bool(value) and all(_is_a(part, str) for part in value)


def values_of(constraint: Constraint) -> dict[str, Any]:
    """Return the values of a constraint as a row of a file has them."""
    given = {item.name: getattr(constraint, item.name) for item in fields(constraint)}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in given.items()}
