"""Composable rewards: each term worked by hand, and errors of user functions."""

import math

import pytest
import torch

from rlhf_core.common.errors import UserError
from rlhf_core.common.responses import Response
from rlhf_core.models.responses import Responses
from rlhf_core.models.tokens import Prompt
from rlhf_core.scoring.rewards import ExactMatch, ModelReward, WeightedSum
from rlhf_core.scoring.terms.format import Format
from rlhf_core.scoring.terms.length import Length
from rlhf_core.scoring.terms.missing_end import MissingEnd
from rlhf_core.scoring.terms.overlong import OverlongPunishment
from rlhf_core.scoring.terms.python import PythonReward
from tiny import END, PAD, responses_of


def sampled():
    """Two responses of 3 and 2 tokens; the second was cut off."""
    prompts = [Prompt([{"role": "user", "content": "a"}], [6], answer) for answer in ("4", "5")]
    first = Response([7, 8, END], "<think>two and two</think> #### 4", ended=True)
    return Responses(prompts, [first, Response([7, 8], "#### 4", ended=False)], PAD)


def test_responses_compute_their_tensors():
    """One prompt token and at most three response tokens: 1 + 3 columns; a missing token is padding."""
    responses = sampled()
    assert len(responses) == 2
    assert responses.batch.input_ids.tolist() == [[6, 7, 8, END], [6, 7, 8, PAD]]
    assert responses.batch.response_mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert (responses.ended.dtype, responses.ended.tolist()) == (torch.bool, [True, False])
    assert responses.texts == ["<think>two and two</think> #### 4", "#### 4"]


def test_each_term_alone():
    assert Length()(sampled()).tolist() == [3, 2]
    assert MissingEnd()(sampled()).tolist() == [0, -1]
    assert ExactMatch(r"####\s*(.+)$")(sampled()).tolist() == [1, 0]
    assert Format(r"<think>.*</think>.*")(sampled()).tolist() == [1, 0]


def test_overlong_grows_over_the_cache():
    """L_max = 10, L_cache = 4: 0 up to 6 tokens, -¼ with 7, -¾ with 9 and -1 with 10."""
    lengths = (3, 6, 7, 9, 10)
    responses = responses_of([[6]] * 5, [[7] * length for length in lengths])
    assert OverlongPunishment(longest=10, cache=4)(responses).tolist() == [0, 0, -0.25, -0.75, -1]


def test_scores_of_the_reward_model_are_clamped(monkeypatch):
    """-5, 0.5 and 4 clamped to ±3 are -3, 0.5 and 3. Rows are scored two at a time."""
    three = responses_of([[6]] * 3, [[7, END]] * 3)
    raw = torch.tensor([-5.0, 0.5, 4.0])
    for clamp, expected in ((None, [-5, 0.5, 4]), (3.0, [-3, 0.5, 3])):
        parts = iter((raw[:2], raw[2:]))
        monkeypatch.setattr("rlhf_core.scoring.rewards.scores", lambda model, batch, parts=parts: next(parts))
        assert ModelReward(torch.nn.Identity(), 2, clamp)(three).tolist() == expected


def test_format_matches_the_whole_response_over_lines():
    responses = [Response([6], text, ended=True) for text in ("<a>x\ny</a>\n", "so <a>x</a>")]
    assert Format("<a>.*</a>")(Responses([Prompt([], [6])] * 2, responses, PAD)).tolist() == [1, 0]


def test_a_wrong_pattern_is_named():
    with pytest.raises(UserError, match=r"policy.rewards: pattern '\(' is not a regular expression"):
        Format("(")


def test_weighted_sum_logs_the_parts():
    """3 · -0.5 + 0 = -1.5 and 2 · -0.5 - 3 = -4."""
    total, parts = WeightedSum([("length", -0.5, Length()), ("missing_end", 3.0, MissingEnd())])(sampled())
    assert total.tolist() == [-1.5, -4.0]
    assert {name: value.tolist() for name, value in parts.items()} == {"length": [3, 2], "missing_end": [0, -1]}


def test_a_function_gets_prompts_responses_and_answers():
    def right_length(prompts, responses, answers):
        assert prompts == [[{"role": "user", "content": "a"}]] * 2
        return [len(text) + int(answer) for text, answer in zip(responses, answers, strict=True)]

    assert PythonReward("right_length", right_length)(sampled()).tolist() == [33 + 4, 6 + 5]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda *_: 1 / 0, "reward f raised ZeroDivisionError: division by zero. Correct the function."),
        (lambda *_: [1.0], "reward f returned 1 values for 2 responses. Return one number per response."),
        (lambda *_: [1.0, "good"], "reward f returned 'good' for response 1. Return a number."),
        (lambda *_: None, "reward f raised TypeError"),
    ],
)
def test_a_function_that_fails_is_named(function, message):
    with pytest.raises(UserError) as caught:
        PythonReward("f", function)(sampled())
    assert message in str(caught.value)


def test_nan_from_a_function_is_named_with_its_row():
    reward = WeightedSum([("f", 1.0, PythonReward("f", lambda *_: [0.0, math.nan]))])
    with pytest.raises(UserError, match="reward 'f' is nan for row 1 of the batch"):
        reward(sampled())
