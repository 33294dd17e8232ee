"""Exact answers: find them with users' patterns within a time limit, and compare numbers by value."""

from collections.abc import Callable
from functools import cache
from typing import TypeVar

import regex

from rlhf_core.common.errors import UserError

TIME_LIMIT = 1.0  # seconds of CPU time per text, since a pattern with catastrophic backtracking may never return
LONGEST_PLAIN = 64  # characters; a longer text is not an answer as a whole
ANSWER_PATTERN = r"####\s*(.+)$"  # the default of prepare.answer_pattern, as in GSM8K
ANSWER_KEY, FORMAT_KEY = "prepare.answer_pattern", "policy.rewards: pattern"

CURRENCY = regex.compile(r"([-+]?)\s*[$€£¥]\s*(.*)|(.*?)\s*[$€£¥]")
NUMBER = regex.compile(r"([-+]?)([0-9]{1,3}(?:,[0-9]{3})+|[0-9]*)(?:\.([0-9]+))?")

Found = TypeVar("Found")


@cache
def _compile(pattern: str, key: str, flags: int) -> "regex.Pattern[str]":
    try:
        return regex.compile(pattern, flags=flags)
    except regex.error as error:
        raise UserError(f"{key} {pattern!r} is not a regular expression: {error}. Correct it.") from error


def answer_pattern(pattern: str) -> "regex.Pattern[str]":
    """Compile prepare.answer_pattern; `^` and `$` match at line starts and ends.

    Raises:
        UserError: the pattern is not a regular expression, or does not have exactly one group.
    """
    compiled = _compile(pattern, ANSWER_KEY, regex.MULTILINE)
    if compiled.groups != 1:
        raise UserError(f"{ANSWER_KEY} {pattern!r} must have exactly one group ( ), the answer. Correct it.")
    return compiled


def format_pattern(pattern: str) -> "regex.Pattern[str]":
    """Compile the pattern of a reward `format`; a dot matches any character.

    Raises:
        UserError: the pattern is not a regular expression.
    """
    return _compile(pattern, FORMAT_KEY, regex.DOTALL)


def read_answer(pattern: str, text: str) -> str | None:
    """Return the answer in a reference or a response, None if it has none.

    The answer is the group of the pattern's last match. Without a match, a text of one line and at most LONGEST_PLAIN
    characters is the answer as a whole.

    Raises:
        UserError: the pattern is wrong, or takes longer than TIME_LIMIT.
    """
    compiled = answer_pattern(pattern)
    matches = _in_time(lambda: list(compiled.finditer(text, timeout=TIME_LIMIT)), pattern, ANSWER_KEY)
    if not matches and (len(text.strip()) > LONGEST_PLAIN or "\n" in text.strip()):
        return None
    answer = (matches[-1][1] if matches else text) or ""
    # Thousands separators are removed here, since people read the answers in the prepared files.
    return (answer.replace(",", "") if _number(_bare(answer)) else answer).strip() or None


def matches_whole(pattern: str, text: str) -> bool:
    """Return whether the pattern of a reward `format` matches the whole text.

    Raises:
        UserError: the pattern is wrong, or takes longer than TIME_LIMIT.
    """
    compiled = format_pattern(pattern)
    return _in_time(lambda: compiled.fullmatch(text, timeout=TIME_LIMIT) is not None, pattern, FORMAT_KEY)


def _in_time(search: Callable[[], Found], pattern: str, key: str) -> Found:
    try:
        return search()
    except TimeoutError as error:
        raise UserError(
            f"{key} {pattern!r} took more than {TIME_LIMIT:g} s on one text because of catastrophic backtracking. "
            "Rewrite it without nested repeats such as (a+)+."
        ) from error


def normal_answer(text: str) -> str:
    """Return a normal form that is the same for equal answers.

    It ignores case, a final period, a currency sign at either end and spaces next to punctuation. Numbers are equal by
    value: $1,234.50 and 1234.5. A comma separates thousands only before groups of three digits without a space:
    "3, 4" is not 34.
    """
    text = _bare(text)
    return _number(text) or regex.sub(r"(?<!\w) | (?!\w)", "", text)


def _bare(text: str) -> str:
    """Return the text in lower case with single spaces, without final periods and a currency sign at either end."""
    text = " ".join(text.split()).casefold().rstrip(". ").replace("\u2212", "-")
    if money := CURRENCY.fullmatch(text):
        return money[3] if money[2] is None else money[1] + money[2]
    return text


def _number(text: str) -> str:
    """Return the shortest form of a decimal number of any length, an empty string if the text is not a number."""
    found = NUMBER.fullmatch(text)
    if found is None or not (found[2] or found[3]):
        return ""
    whole, fraction = found[2].replace(",", "").lstrip("0") or "0", (found[3] or "").rstrip("0")
    size = f"{whole}.{fraction}" if fraction else whole
    return f"-{size}" if found[1] == "-" and size != "0" else size
