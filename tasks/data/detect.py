"""Detect the format of rows from their field names. A misspelt name is reported, not ignored."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tasks.data.fields import Fields, MissingFieldError, RowError, nearest
from tasks.data.formats import (
    CONVERSATION_FIELDS,
    PAIR_FIELDS,
    PROMPT_FIELDS,
    RESPONSE_FIELDS,
    SCORE_FIELDS,
    split_last,
)

# A row with one of these fields is more than a prompt.
SAID = (*RESPONSE_FIELDS, *SCORE_FIELDS, *PAIR_FIELDS, "chosen", "rejected", "responses", "ranks", "label", "answer")
KNOWN = (*PROMPT_FIELDS, *SAID, "question", "system", "input", "history", "margin", "source")


def detect_format(first: Sequence[Fields]) -> str:
    """Return the format of the first row's fields. A field counts if any of the first rows has a value for it.

    Raises:
        RowError: the fields fit no format.
    """
    values = {name: _value(name, first) for name in first[0].values}
    row = replace(first[0], values={name: value for name, value in values.items() if value is not None})
    if form := _feedback_on_several(row):
        return form
    if row.has("question") and (row.has("answer") or not row.first(*PROMPT_FIELDS)):
        return "question_answer"
    row.need(*PROMPT_FIELDS, "question", "chosen")
    if _spelt(row, ("label",)):
        return "unpaired"
    if _spelt(row, SCORE_FIELDS):
        return "ratings"
    # A row with a misspelt response must not be taken for a prompt.
    said = any(_has_response(other) for other in first) or row.first(*SAID) or nearest(SAID, _unknown(row), 0.75)
    return "demonstration" if said else "prompts"


def missing_field(fields: Fields, error: MissingFieldError) -> str:
    """Return the message about a missing field, with the row's fields and the most similar name."""
    wanted = " or ".join(f"'{name}'" for name in error.names)
    there = sorted(name for name in fields.values if fields.has(name))
    close = nearest(error.names, _unknown(fields))
    return (
        f"the field {wanted} is missing"
        + (f"; '{close}' is similar" if close else "")
        + f"; the row has: {', '.join(there) or 'no fields'}. "
        + (f"Rename '{close}'" if close else "Add it")
        + ", or set prepare.format."
    )


def _feedback_on_several(row: Fields) -> str:
    """Return the format of a row with several responses to its prompt, else an empty string."""
    if _spelt(row, ("chosen", "rejected")):
        texts = all(isinstance(row.values.get(side, ""), str) for side in ("chosen", "rejected"))
        return "implicit" if texts and not _spelt(row, PROMPT_FIELDS) else "preference"
    if _spelt(row, PAIR_FIELDS[:2]):
        return "preference"
    return "rankings" if row.first(*PROMPT_FIELDS) and row.first("responses", "ranks") else ""


def _value(name: str, rows: Sequence[Fields]) -> Any:
    return next((row.values[name] for row in rows if row.has(name)), None)


def _unknown(row: Fields) -> list[str]:
    return [name for name in row.values if name not in KNOWN]


def _spelt(row: Fields, names: tuple[str, ...]) -> bool:
    """Return whether a field has one of these names or a similar one; reading the row reports the misspelling."""
    plurals = {f"{name}s" for name in names}
    unknown = [name for name in _unknown(row) if name.casefold() not in plurals]
    return row.first(*names) is not None or nearest(names, unknown, 0.8) is not None


def _has_response(row: Fields) -> bool:
    """Return whether a row has a response: its own field, or the last turn of a conversation."""
    conversation = None if row.has("prompt") else row.first(*CONVERSATION_FIELDS)
    if conversation is None:
        return row.first(*RESPONSE_FIELDS) is not None
    try:
        return split_last(row.turns(conversation))[1] != ""
    except RowError:
        return True  # reading the row reports the error
