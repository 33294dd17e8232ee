"""Judges and the win rate, worked by hand."""

import pytest

from rlhf_core.scoring.judges import ScoreJudge, WinRate, win_rate
from tiny import responses_of


def length_scores(answers):
    return answers.batch.lengths.tolist()


class FirstIsBetter:
    """A judge that always prefers the response shown first."""

    name = "position"

    def prefer(self, first, second):
        return [1.0] * len(first)


def answers(*lengths):
    return responses_of([[1]] * len(lengths), [[1] * length for length in lengths])


def test_score_judge():
    judge = ScoreJudge("length", length_scores)
    assert judge.prefer(answers(2, 1, 3, 1), answers(1, 2, 3, 1)) == [1.0, 0.0, 0.5, 0.5]


def test_win_rate_counts_ties_half():
    """Won, won, tied, lost: 2.5 of 4. Both orders agree, and the interval contains the value."""
    found = win_rate(ScoreJudge("length", length_scores), answers(2, 2, 2, 1), answers(1, 1, 2, 2), 2000, 0)
    assert (found.value, found.n, found.judge) == (0.625, 4, "length")
    assert 0 <= found.low < 0.625 < found.high <= 1


def test_win_rate_cancels_position_bias():
    """The response shown first wins: every prompt is won once and lost once, so ½ with an interval of width 0."""
    found = win_rate(FirstIsBetter(), answers(1, 1, 1, 1), answers(1, 1, 1, 1), 200, 0)
    assert found == WinRate(0.5, 0.5, 0.5, 4, "position")


def tokens(*ids):
    """Responses of one token each to the prompts 10, 11, ..."""
    return responses_of([[10 + row] for row in range(len(ids))], [[token] for token in ids])


def stub(*scores):
    """A judge with given scores, for the sides of each pair in the order of their ids, and a list of its calls."""
    calls = []

    def score(responses):
        rows = zip(responses.prompts, responses.responses, strict=True)
        calls.append([(prompt.ids[0], response.ids[0]) for prompt, response in rows])
        return list(scores)

    return score, calls


@pytest.mark.pitfall(32)
def test_both_sides_are_scored_in_one_call_with_adjacent_pairs():
    """Scores 3 < 5 and 9 > 1; the second pair is shown in the opposite order of its ids."""
    first, second = tokens(1, 4), tokens(2, 3)
    for sides, verdicts in (((first, second), [0.0, 0.0]), ((second, first), [1.0, 1.0])):
        score, calls = stub(3.0, 5.0, 9.0, 1.0)
        assert ScoreJudge("stub", score).prefer(*sides) == verdicts
        assert calls == [[(10, 1), (10, 2), (11, 3), (11, 4)]]


@pytest.mark.pitfall(32)
@pytest.mark.parametrize(("tolerance", "verdict"), [(0.8945, 0.5), (0.8944, 0.0), (0.0, 0.0)])
def test_a_tie_is_a_small_difference_in_standard_deviations_of_all_scores(tolerance, verdict):
    """Scores -1, 1 and -3, 3: the population standard deviation is √(20/4) = 2.2361, and 2/2.2361 = 0.89443."""
    score, _ = stub(-1.0, 1.0, -3.0, 3.0)
    assert ScoreJudge("stub", score, tolerance).prefer(tokens(1, 3), tokens(2, 4)) == [verdict, 0.0]


@pytest.mark.pitfall(32)
def test_identical_ids_tie_even_if_scores_differ():
    score, _ = stub(0.0, 1.0, 0.0, 1.0)
    assert ScoreJudge("stub", score).prefer(tokens(1, 2), tokens(1, 3)) == [0.5, 0.0]
