"""Exact answers and the patterns of users: found within a time limit, compared as numbers where they are numbers."""

from collections.abc import Callable
from functools import cache
from typing import TypeVar

import regex

from rlhf_core.common.errors import UserError

TIME_LIMIT = 1.0  # seconds of CPU time for one text; a pattern that backtracks without end would never return
LONGEST_PLAIN = 64  # characters of a text that can be an answer as a whole
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
    """prepare.answer_pattern, where `^` and `$` match at line ends.

    Raises:
        UserError: if it is not a regular expression, or has not one group.
    """
    compiled = _compile(pattern, ANSWER_KEY, regex.MULTILINE)
    if compiled.groups != 1:
        raise UserError(f"{ANSWER_KEY} {pattern!r} needs one group ( ), which is the answer. Correct it.")
    return compiled


def format_pattern(pattern: str) -> "regex.Pattern[str]":
    """The pattern of a reward `format`, where a dot is any character.

    Raises:
        UserError: if it is not a regular expression.
    """
    return _compile(pattern, FORMAT_KEY, regex.DOTALL)


def read_answer(pattern: str, text: str) -> str | None:
    """The answer that a text states, a reference's or a response's; None if it states none.

    It is the group of the pattern's last match. Where nothing matches, a text of one line and at most LONGEST_PLAIN
    characters is an answer as a whole.

    Raises:
        UserError: if the pattern takes longer than TIME_LIMIT.
    """
    compiled = answer_pattern(pattern)
    matches = _in_time(lambda: list(compiled.finditer(text, timeout=TIME_LIMIT)), pattern, ANSWER_KEY)
    if not matches and (len(text.strip()) > LONGEST_PLAIN or "\n" in text.strip()):
        return None
    answer = (matches[-1][1] if matches else text) or ""
    # Thousands separators are taken out here already: people read the answers in the prepared files.
    return (answer.replace(",", "") if _number(_bare(answer)) else answer).strip() or None


def matches_whole(pattern: str, text: str) -> bool:
    """Whether the pattern of a reward `format` matches the whole text.

    Raises:
        UserError: if the pattern is wrong, or takes longer than TIME_LIMIT.
    """
    compiled = format_pattern(pattern)
    return _in_time(lambda: compiled.fullmatch(text, timeout=TIME_LIMIT) is not None, pattern, FORMAT_KEY)


def _in_time(search: Callable[[], Found], pattern: str, key: str) -> Found:
    try:
        return search()
    except TimeoutError as error:
        raise UserError(
            f"{key} {pattern!r} took more than {TIME_LIMIT:g} s on one text: it backtracks without end. "
            "Rewrite it without nested repeats such as (a+)+."
        ) from error


def normal_answer(text: str) -> str:
    """What two equal answers have in common.

    Case, a final period, a currency sign at either end and spaces beside punctuation don't count. A number is its
    value: $1,234.50 and 1234.5 are equal. A comma separates thousands only where groups of three digits follow it,
    without a space: "3, 4" is not 34.
    """
    text = _bare(text)
    return _number(text) or regex.sub(r"(?<!\w) | (?!\w)", "", text)


def _bare(text: str) -> str:
    """In lower case, with single spaces, without a final period and a currency sign at either end."""
    text = " ".join(text.split()).casefold().rstrip(". ").replace("\u2212", "-")
    if money := CURRENCY.fullmatch(text):
        return money[3] if money[2] is None else money[1] + money[2]
    return text


def _number(text: str) -> str:
    """A decimal number in its shortest form, digit by digit, so that no length is too great; otherwise nothing."""
    found = NUMBER.fullmatch(text)
    if found is None or not (found[2] or found[3]):
        return ""
    whole, fraction = found[2].replace(",", "").lstrip("0") or "0", (found[3] or "").rstrip("0")
    size = f"{whole}.{fraction}" if fraction else whole
    return f"-{size}" if found[1] == "-" and size != "0" else size
