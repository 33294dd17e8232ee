"""One row as its source holds it: named values, and what to say where one is missing or of the wrong type."""

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
# What the cells of a table hold as text, by field; every other field is text.
NUMBERS = ("score", "rating", "margin", "label", "preference")
LISTS = ("messages", "conversations", "history", "responses", "ranks")


class RowError(Exception):
    """Why a row cannot be used, in a few words that rows with the same fault share."""


class MissingFieldError(RowError):
    """A field that the row's format needs is not there under its name; `names` are the names it may have."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__("no field " + " or ".join(f"'{name}'" for name in names))
        self.names = names


@dataclass(frozen=True)
class Fields:
    """A row's values and where it stands; `fault` says why there are none. A value that is null or NaN is missing."""

    file: str
    line: int
    values: Mapping[str, Any] = field(default_factory=dict)
    fault: str = ""

    def has(self, name: str) -> bool:
        """Whether the field has a value."""
        return not is_empty(self.values.get(name))

    def first(self, *names: str) -> str | None:
        """The first of these fields that has a value."""
        return next((name for name in names if self.has(name)), None)

    def need(self, *names: str) -> str:
        """The first of these fields that has a value.

        Raises:
            MissingFieldError: if the row has none of the names.
            RowError: if it has one, without a value.
        """
        if name := self.first(*names):
            return name
        if name := next((name for name in names if name in self.values), ""):
            raise RowError(f"{'no value' if self.values[name] is None else 'NaN'} in '{name}'")
        raise MissingFieldError(names)

    def text(self, name: str) -> str:
        """A field that must be text."""
        value = self.values[self.need(name)]
        if not isinstance(value, str):
            raise RowError(f"{type(value).__name__} instead of text in '{name}'")
        return value

    def items(self, name: str) -> list[Any]:
        """A field that must be a list."""
        value = self.values[self.need(name)]
        if not isinstance(value, list):
            raise RowError(f"{type(value).__name__} instead of a list in '{name}'")
        return value

    def turns(self, name: str) -> list[Message]:
        """A field that holds a message or a list of messages, with `role` and `content` or `from` and `value`."""
        value = self.values[self.need(name)]
        messages = value if isinstance(value, list) else [value]
        return [_message(name, message) for message in messages]


def _message(name: str, message: Any) -> Message:
    if not isinstance(message, Mapping):
        raise RowError(f"{type(message).__name__} instead of text or chat messages in '{name}'")
    role = message.get("role") or message.get("from")
    content = message.get("content") if message.get("content") is not None else message.get("value")
    if not isinstance(role, str) or role not in ROLES:
        raise RowError(f"a message of '{name}' with the role {role!r}; known are {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise RowError(f"a message of '{name}' without text")
    return {"role": ROLES[role], "content": content}


def is_empty(value: Any) -> bool:
    """Whether a value is null or NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def nearest(wanted: Iterable[str], there: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The name there that is most like a wanted one, capitals aside; None where none is alike."""
    by_folded = {name.casefold(): name for name in there}
    close = [match for name in wanted for match in difflib.get_close_matches(name, by_folded, n=1, cutoff=cutoff)]
    return by_folded[close[0]] if close else None


def from_cell(name: str, cell: str) -> Any:
    """What a table's cell stands for: null if empty, a number or a list in fields that hold one, else its text."""
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
