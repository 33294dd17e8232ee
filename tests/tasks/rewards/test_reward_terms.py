"""The list policy.rewards: its terms are checked with the parameters, and made for the data."""

import json
from types import SimpleNamespace

import pytest
import torch
import yaml

from rlhf_core.common.errors import UserError
from rlhf_core.models.responses import Response, Responses
from rlhf_core.models.tokens import Prompt
from rlhf_core.scoring.terms.python import import_function
from tasks.params.load import validate, with_values
from tasks.rewards.terms import make_reward
from tiny import END, PAD
from tools.closure import ROOT

RAW = yaml.safe_load((ROOT / "params.yaml").read_text())


def sampled():
    """Two responses of 3 and 2 tokens; the second was cut off."""
    prompts = [Prompt([{"role": "user", "content": "a"}], [6]) for _ in range(2)]
    return Responses(prompts, [Response([7, 8, END], "", ended=True), Response([7, 8], "", ended=False)], PAD)


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
    assert "cache has no effect on reward length" in error([{"name": "length", "cache": 1}])
    assert "reward overlong needs cache" in error([{"name": "overlong"}])
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


def make(rewards, kind, folder, monkeypatch, models=None):
    monkeypatch.chdir(folder)
    (folder / "data" / "prepared").mkdir(parents=True, exist_ok=True)
    (folder / "data" / "prepared" / "card.json").write_text(json.dumps({"kind": kind}))
    return make_reward(validate(with_values(RAW, {"policy.rewards": rewards})), models, 8)


def test_overlong_ends_at_the_length_limit(tmp_path, monkeypatch):
    """The limit of params.yaml is 64: with a cache of 62, three tokens are 1/62 too long and two tokens are not."""
    terms = [{"name": "overlong", "weight": 2.0, "cache": 62}]
    total, _ = make(terms, "helpdesk", tmp_path, monkeypatch)(sampled())
    assert total.tolist() == pytest.approx([-2 / 62, 0.0])
    with pytest.raises(UserError, match=r"cache of overlong in policy.rewards exceeds prepare.max_response_tokens, 64"):
        make([{"name": "overlong", "cache": 65}], "helpdesk", tmp_path, monkeypatch)


def test_the_list_as_a_whole(tmp_path, monkeypatch):
    terms = [{"name": "length", "weight": -0.1}, {"name": "missing_end", "weight": 2.0}]
    total, parts = make(terms, "helpdesk", tmp_path, monkeypatch)(sampled())
    assert total.tolist() == pytest.approx([-0.3, -2.2])
    assert list(parts) == ["length", "missing_end"]


def test_the_clamp_in_the_parameters_applies_to_the_reward_model(accelerator, tmp_path, monkeypatch):
    """Twice the score, which is clamped to ±1.5."""
    judge = torch.nn.Linear(1, 1)
    judge.has_own_tokenizer = False
    models = SimpleNamespace(accelerator=accelerator, reward_model=lambda path: judge)
    monkeypatch.setattr("rlhf_core.scoring.rewards.scores", lambda model, batch: torch.tensor([-2.0, 1.0]))
    reward = make([{"name": "model", "weight": 2.0, "clamp": 1.5}], "helpdesk", tmp_path, monkeypatch, models)
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
