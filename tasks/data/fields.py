"""A row as read from its source: named values, with errors for missing values and wrong types."""

import difflib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, str]

ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model"), "assistant"),
    "system": "system",
}
# Fields whose table cells are parsed as numbers or lists; the cells of all other fields are text.
NUMBERS = ("score", "rating", "margin", "label", "preference")
LISTS = ("messages", "conversations", "history", "responses", "ranks")


class RowError(Exception):
    """The reason why a row is unusable, with the same wording for all rows with the same fault."""


class MissingFieldError(RowError):
    """A required field is missing; `names` are its accepted names."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__("no field " + " or ".join(f"'{name}'" for name in names))
        self.names = names


@dataclass(frozen=True)
class Fields:
    """A row's values, file and line. `fault` says why the row has no values. Null and NaN count as missing."""

    file: str
    line: int
    values: Mapping[str, Any] = field(default_factory=dict)
    fault: str = ""

    def has(self, name: str) -> bool:
        """Return whether the field has a value."""
        return not is_empty(self.values.get(name))

    def first(self, *names: str) -> str | None:
        """Return the first of these fields that has a value."""
        return next((name for name in names if self.has(name)), None)

    def need(self, *names: str) -> str:
        """Return the first of these fields that has a value.

        Raises:
            MissingFieldError: the row has none of these fields.
            RowError: the row has one of them, but without a value.
        """
        if name := self.first(*names):
            return name
        if name := next((name for name in names if name in self.values), ""):
            raise RowError(f"{'no value' if self.values[name] is None else 'NaN'} in '{name}'")
        raise MissingFieldError(names)

    def text(self, name: str) -> str:
        """Return the value of a field that must be text."""
        value = self.values[self.need(name)]
        if not isinstance(value, str):
            raise RowError(f"{type(value).__name__} instead of text in '{name}'")
        return value

    def items(self, name: str) -> list[Any]:
        """Return the value of a field that must be a list."""
        value = self.values[self.need(name)]
        if not isinstance(value, list):
            raise RowError(f"{type(value).__name__} instead of a list in '{name}'")
        return value

    def turns(self, name: str) -> list[Message]:
        """Return the messages of a field: one message or a list, with `role` and `content` or `from` and `value`."""
        value = self.values[self.need(name)]
        messages = value if isinstance(value, list) else [value]
        return [_message(name, message) for message in messages]


def _message(name: str, message: Any) -> Message:
    if not isinstance(message, Mapping):
        raise RowError(f"{type(message).__name__} instead of text or chat messages in '{name}'")
    role = message.get("role") or message.get("from")
    content = message.get("content") if message.get("content") is not None else message.get("value")
    if not isinstance(role, str) or role not in ROLES:
        raise RowError(f"unknown role {role!r} of a message in '{name}' (known roles: {', '.join(ROLES)})")
    if not isinstance(content, str):
        raise RowError(f"message without text in '{name}'")
    return {"role": ROLES[role], "content": content}


def is_empty(value: Any) -> bool:
    """Return whether a value is null or NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def nearest(wanted: Iterable[str], there: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the existing name most similar to one of the wanted names, ignoring case; None if none is similar."""
    by_folded = {name.casefold(): name for name in there}
    close = [match for name in wanted for match in difflib.get_close_matches(name, by_folded, n=1, cutoff=cutoff)]
    return by_folded[close[0]] if close else None


def from_cell(name: str, cell: str) -> Any:
    """Return the value of a table's cell: null if empty, a number or list for fields of that type, else the text."""
    if not cell:
        return None
    if name in LISTS:
        try:
            return json.loads(cell)
        except (ValueError, RecursionError):
            return cell
    if name in NUMBERS:
        return _number(cell.strip())
    return cell


def _number(text: str) -> Any:
    if text.casefold() in ("true", "false"):
        return text.casefold() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text
