"""Composable rewards: each term worked by hand, errors of user functions, and the list policy.rewards."""

import json
import math

import pytest
import torch
import yaml

from rlhf_core.common.errors import UserError
from rlhf_core.common.responses import Response
from rlhf_core.models.responses import Responses
from rlhf_core.models.tokens import Prompt
from rlhf_core.scoring.rewards import (
    ExactMatch,
    Format,
    Length,
    MissingEnd,
    ModelReward,
    PythonReward,
    WeightedSum,
)
from tasks.params.load import validate, with_values
from tasks.rewards.terms import import_function, make_reward
from tiny import END, PAD, responses_of
from tools.closure import ROOT

RAW = yaml.safe_load((ROOT / "params.yaml").read_text())


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
    assert MissingEnd(1.0)(sampled()).tolist() == [0, -1]
    assert ExactMatch(r"####\s*(.+)$")(sampled()).tolist() == [1, 0]
    assert Format(r"<think>.*</think>.*")(sampled()).tolist() == [1, 0]


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
    total, parts = WeightedSum([("length", -0.5, Length()), ("missing_end", 3.0, MissingEnd(1.0))])(sampled())
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


def test_a_function_is_imported_by_its_path(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text("def brevity(prompts, responses, answers):\n    return [0.0]\n\nn = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert import_function("my_rewards:brevity")([], [""], []) == [0.0]
    with pytest.raises(UserError, match="my_rewards:missing cannot be imported"):
        import_function("my_rewards:missing")
    with pytest.raises(UserError, match="no_such_module:f cannot be imported"):
        import_function("no_such_module:f")
    for wrong in ("my_rewards:n", "my_rewards"):
        with pytest.raises(UserError, match=f"'{wrong}' is not a function"):
            import_function(wrong)


def error(rewards):
    with pytest.raises(UserError) as caught:
        validate(with_values(RAW, {"policy.rewards": rewards}))
    return str(caught.value)


def test_terms_are_checked_with_the_parameters():
    assert "policy.rewards.0" in error([{"name": "beauty"}])
    assert "weight 0 and so no effect" in error([{"name": "length", "weight": 0.0}])
    assert "clamp has no effect on reward length" in error([{"name": "length", "clamp": 1.0}])
    assert "reward format needs pattern" in error([{"name": "format"}])
    assert "reward python needs function" in error([{"name": "python"}])
    assert "pattern '(' is not a regular expression" in error([{"name": "format", "pattern": "("}])


def test_a_term_named_twice_is_refused_with_the_parameters():
    assert "rewards has duplicates: model, model" in error([{"name": "model"}, {"name": "model", "clamp": 1.0}])
    terms = [{"name": "python", "function": f"{module}:brevity"} for module in ("mine", "yours")]
    assert "rewards has duplicates: brevity, brevity" in error(terms)
    validate(with_values(RAW, {"policy.rewards": [{"name": "model"}, {"name": "length"}]}))


def test_patterns_are_checked_with_the_parameters():
    for pattern, message in (("(", "is not a regular expression"), ("a", "must have exactly one group")):
        with pytest.raises(UserError, match=message):
            validate(with_values(RAW, {"prepare.answer_pattern": pattern}))


def make(rewards, kind, folder, monkeypatch, accelerator=None):
    monkeypatch.chdir(folder)
    (folder / "data" / "prepared").mkdir(parents=True, exist_ok=True)
    (folder / "data" / "prepared" / "card.json").write_text(json.dumps({"kind": kind}))
    return make_reward(validate(with_values(RAW, {"policy.rewards": rewards})), accelerator, 8)


def test_the_list_as_a_whole(tmp_path, monkeypatch):
    terms = [{"name": "length", "weight": -0.1}, {"name": "missing_end", "weight": 2.0}]
    total, parts = make(terms, "helpdesk", tmp_path, monkeypatch)(sampled())
    assert total.tolist() == pytest.approx([-0.3, -2.2])
    assert list(parts) == ["length", "missing_end"]


def test_the_clamp_in_the_parameters_applies_to_the_reward_model(accelerator, tmp_path, monkeypatch):
    """Twice the score, which is clamped to ±1.5."""
    monkeypatch.setattr("tasks.rewards.terms.load_reward_model", lambda path: torch.nn.Linear(1, 1))
    monkeypatch.setattr("rlhf_core.scoring.rewards.scores", lambda model, batch: torch.tensor([-2.0, 1.0]))
    reward = make([{"name": "model", "weight": 2.0, "clamp": 1.5}], "helpdesk", tmp_path, monkeypatch, accelerator)
    assert reward(sampled())[0].tolist() == [-3, 2]


@pytest.mark.parametrize(
    ("terms", "kind", "message"),
    [
        ([], "helpdesk", r"policy\.rewards is empty"),
        ([{"name": "model"}], "question_answer", "no reward model is trained"),
        ([{"name": "model"}], "prompts", "no reward model is trained"),
        ([{"name": "exact_answer"}], "prompts", "the data has no answers"),
        ([{"name": "exact_answer"}], "preference", "the data has no answers"),
    ],
)
def test_terms_that_the_data_does_not_support(terms, kind, message, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=message):
        make(terms, kind, tmp_path, monkeypatch)
