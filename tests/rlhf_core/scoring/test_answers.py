"""Exact answers: one function for references and responses, numbers compared by value, a time limit for patterns."""

import pytest

from rlhf_core.common.errors import UserError
from rlhf_core.common.responses import Response
from rlhf_core.models.responses import Responses
from rlhf_core.scoring.answers import TIME_LIMIT, normal_answer, read_answer
from rlhf_core.scoring.rewards import ExactMatch
from rlhf_core.scoring.terms.format import Format
from tasks.data.fields import Fields
from tasks.data.formats import parse_row
from tiny import PAD

PATTERN = r"####\s*(.+)$"
SLOW = r"((?:a|aa)+)$"  # exponential on a run of a's before the end of the line


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("2 + 2\n#### 4", "4"),
        ("#### 4\nNo, wait.\n#### 5\nDone.", "5"),  # the last match; $ is the end of a line
        ("####  1,234,567 ", "1234567"),
        ("#### -$1,234.50", "-$1234.50"),
        ("#### 3, 4", "3, 4"),
        ("#### 12,34", "12,34"),
        (" 5 ", "5"),
        ("New York", "New York"),
        ("x" * 64, "x" * 64),
        ("x" * 65, None),
        ("First this.\nThen 5", None),
        ("####  ", None),
        ("", None),
    ],
)
def test_an_answer_is_the_last_match_or_a_short_text_as_a_whole(text, answer):
    assert read_answer(PATTERN, text) == answer


def test_references_and_responses_are_read_in_the_same_way():
    """A response that repeats the reference is correct for every text."""
    reward = ExactMatch(PATTERN)
    for text in ("so\n#### 5\nor rather\n#### 6\nEnd.", "#### 3, 4", "5", "1,200", "#### $5.00.", "Zürich"):
        row = parse_row(Fields("d", 1, {"question": "?", "answer": text}), "question_answer", PATTERN)
        assert reward.correct(text, row.answer), text
    assert not reward.correct("#### 34", "3, 4")
    assert not reward.correct("#### 6\n#### 5", "6")
    assert reward.correct("#### 1,234", "1234")
    assert not reward.correct("a long line of thought that states no answer, but 5 is somewhere in it", "5")


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ("5", "5.00", True),
        ("$5.00", "5", True),
        ("5 €", "5", True),
        ("-$5", "$-5", True),
        ("1,234", "1234", True),
        ("1,234.5", "1234.50", True),
        (".5", "0.5", True),
        ("007", "7", True),
        ("-0", "0", True),
        ("5.", "5", True),
        ("12345678901234567890123456789", "12345678901234567890123456788", False),
        ("3, 4", "34", False),
        ("3, 456", "3456", False),
        ("12,34", "1234", False),
        ("3 4", "34", False),
        ("(3, 4)", "(3,4)", True),
        ("x = 5", "X=5", True),
        ("new  york.", "New York", True),
        ("newyork", "New York", False),
        ("50%", "50", False),
    ],
)
def test_answers_that_are_equal(one, other, equal):
    assert (normal_answer(one) == normal_answer(other)) is equal


def test_a_pattern_with_catastrophic_backtracking_is_named():
    text = "a" * 80 + "!"
    for search in (
        lambda: read_answer(SLOW, text),
        lambda: ExactMatch(SLOW).correct(text, "a"),
        lambda: parse_row(Fields("d", 1, {"question": "?", "answer": text}), "question_answer", SLOW),
    ):
        with pytest.raises(UserError, match=rf"prepare.answer_pattern .* took more than {TIME_LIMIT:g} s on one text"):
            search()
    with pytest.raises(UserError, match=r"policy.rewards: pattern .* took more than"):
        Format(r"(a|aa)+")(Responses([], [Response([6], text, ended=True)], PAD))


def test_a_wrong_pattern_is_named():
    with pytest.raises(UserError, match=r"^prepare.answer_pattern '\(' is not a regular expression"):
        read_answer("(", "a")
    with pytest.raises(UserError, match=r"prepare.answer_pattern 'a' must have exactly one group"):
        read_answer("a", "a")
