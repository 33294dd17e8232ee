"""Dataclass fields for hyperparameters, with a description and bounds."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")

_BOUNDS = {
    "gt": ("above", lambda value, bound: value > bound),
    "ge": ("at least", lambda value, bound: value >= bound),
    "lt": ("below", lambda value, bound: value < bound),
    "le": ("at most", lambda value, bound: value <= bound),
}


def setting(default: Any, description: str, *, title: str | None = None, **bounds: float) -> Any:
    """Return a dataclass field with a description and numeric bounds (gt, ge, lt, le); a title puts it in the run form.

    The metadata keys are pydantic's, so that forms and params.yaml enforce the same bounds as the constructor
    (`check_bounds`).
    """
    metadata = {"description": description, **({} if title is None else {"title": title}), **bounds}
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def from_section(kind: type[T], section: Any) -> T:
    """An instance of the dataclass `kind` with the values that `section` has under the same names."""
    names = [item.name for item in dataclasses.fields(kind)]  # type: ignore[arg-type]  # a type variable of any class
    return kind(**{name: getattr(section, name) for name in names})


def check_bounds(instance: Any) -> None:
    """Raise ValueError for the first field of a dataclass instance that is out of bounds or not finite."""
    for item in dataclasses.fields(instance):
        value = getattr(instance, item.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{item.name} is {value}; it must be a finite number")
        for key, (word, holds) in _BOUNDS.items():
            bound = item.metadata.get(key)
            if bound is not None and value is not None and not holds(value, bound):
                raise ValueError(f"{item.name} is {value}; it must be {word} {bound}")


def describe_bounds(metadata: Mapping[str, Any]) -> str:
    """Describe the bounds of a field: "above 0 and below 1"; empty if it has none."""
    return " and ".join(f"{word} {metadata[key]}" for key, (word, _) in _BOUNDS.items() if key in metadata)
