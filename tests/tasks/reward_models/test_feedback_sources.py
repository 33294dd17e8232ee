"""Which rows a reward model of several learns from, and the names of their sources."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from rlhf_core.common.errors import UserError
from rlhf_core.models.tokens import encode_conversation, encode_prompt, encode_response, same_tokens
from tasks.common.rows import OwnTokenizer, preference_units
from tasks.data.clean import clean
from tasks.data.readers import read_rows, with_file_sources
from tasks.files import declared, paths
from tasks.files.jsonl import write_jsonl
from tasks.params.load import all_keys, effective, read_assignment, validate, with_values
from tasks.problems.table import problem_of
from tasks.reward_models.feedback import check_sources, configured
from tools.closure import ROOT

RAW = yaml.safe_load((ROOT / "params.yaml").read_text())
TWO = {"reward_models.names": ["helpful", "harmless"]}
BOTH = {"policy.rewards": [{"name": "model", "model": "helpful"}, {"name": "model", "model": "harmless"}]}


def pair(chosen, source=None, **more):
    row = {"prompt": [{"role": "user", "content": "a"}], "chosen": chosen, "rejected": "c", **more}
    return row if source is None else row | {"source": source}


# --- names of sources ---


def test_the_source_is_the_file_or_the_folder_below_the_path(tmp_path):
    """A row's own source wins; helpful/train.jsonl and helpful.jsonl are both `helpful`."""
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    (tmp_path / "hh/harmless/more").mkdir(parents=True)
    write_jsonl(tmp_path / "hh/helpful.jsonl", [row, row | {"source": "forum"}])
    write_jsonl(tmp_path / "hh/harmless/more/train.jsonl", [row])
    rows = with_file_sources(read_rows(tmp_path / "hh", ""))
    assert [row.source for row in rows] == ["harmless", "helpful", "forum"]
    assert [row.source for row in with_file_sources(read_rows(tmp_path / "hh/helpful.jsonl", ""))] == [
        "helpful",
        "forum",
    ]
    assert [row.source for row in read_rows(tmp_path / "hh", "")] == [None, None, "forum"]


def test_the_same_pair_in_two_sources_is_no_duplicate(tmp_path):
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    write_jsonl(tmp_path / "rows.jsonl", [row | {"source": "x"}, row | {"source": "y"}, row | {"source": "y"}])
    cleaned = clean(
        read_rows(tmp_path / "rows.jsonl", ""),
        count_tokens=lambda prompt, response: (1, 1),
        max_prompt_tokens=9,
        max_response_tokens=9,
    )
    assert [row.source for row in cleaned.rows] == ["x", "y"] and dict(cleaned.reasons) == {"duplicate": 1}


# --- parameters ---


def error(**changes):
    with pytest.raises(UserError) as caught:
        validate(with_values(RAW, {key.replace("__", "."): value for key, value in changes.items()}))
    return str(caught.value)


def test_names_and_sources_are_checked_with_the_parameters():
    params = validate(with_values(RAW, {**TWO, **BOTH, "reward_models.sources": {"helpful": ["a", "b"]}}))
    assert params.reward_models.of("helpful") == ["a", "b"] and params.reward_models.of("harmless") == ["harmless"]
    assert effective(params)["reward_models"]["sources"] == {"helpful": ["a", "b"], "harmless": ["harmless"]}
    assert validate(effective(params)).reward_models.of("harmless") == ["harmless"]
    names = ["helpful", "harmless"]
    assert "has duplicates" in error(reward_models__names=["helpful", "helpful"])
    assert "names contains judge" in error(reward_models__names=["judge"])
    assert "names contains ../x" in error(reward_models__names=["../x"])
    assert error(reward_models__names=names, reward_models__sources={"helpfull": ["a"]}).endswith(
        "did you mean helpful?"
    )
    assert "sources of helpful is empty" in error(reward_models__names=names, reward_models__sources={"helpful": []})
    assert "must be a list" in error(reward_models__names=names, reward_models__sources={"helpful": "a"})


def test_terms_and_the_critic_name_models_that_the_run_trains():
    names = ["helpful", "harmless"]
    named = [{"name": "model", "model": "helpfull"}]
    assert error(reward_models__names=names, policy__rewards=named).endswith("did you mean helpful?")
    assert "write {name: model, model: helpful}" in error(reward_models__names=names)
    assert "policy.critic names ppo" in error(policy__critic="ppo")
    assert "has both model and path" in error(
        policy__rewards=[{"name": "model", "model": "a", "path": "inputs/rewards/a"}]
    )
    params = validate(with_values(RAW, {**TWO, **BOTH}))
    assert [entry.label for entry in params.policy.rewards] == names
    assert params.critic == "helpful"
    assert validate(with_values(RAW, {**TWO, **BOTH, "policy.critic": "harmless"})).critic == "harmless"
    assert validate(RAW).critic is None


def test_the_base_is_a_folder_of_inputs_or_a_pinned_hub_id():
    assert "copy the model to a folder in inputs/rewards" in error(reward__base="models/sft")
    assert "which is not pinned" in error(reward__base="org/name@")
    for base in ("inputs/rewards/other", "org/name@0123abc"):
        assert validate(with_values(RAW, {"reward.base": base})).reward.base == base


def test_panels_name_no_sources():
    params = validate(with_values(RAW, {**TWO, **BOTH}))
    with pytest.raises(UserError, match=r"reward_models.names needs feedback with sources"):
        problem_of("helpdesk").check(params, from_scratch=True)
    problem_of("preference").check(params, from_scratch=False)
    with pytest.raises(UserError, match=r"reward_models names models"):
        problem_of("prompts").check(params, from_scratch=False)


def test_a_critic_from_sft_needs_no_feedback():
    changed = {"policy.rewards": [{"name": "exact_answer"}], "policy.offline": [], "policy.online": ["ppo"]}
    with pytest.raises(UserError, match="critic starts from the reward model"):
        problem_of("question_answer").check(validate(with_values(RAW, changed)), from_scratch=False)
    sft = validate(with_values(RAW, {**changed, "policy.critic": "sft"}))
    problem_of("question_answer").check(sft, from_scratch=False)


def test_a_map_is_set_from_the_command_line():
    assert "reward_models.sources" in all_keys()
    key, value = read_assignment("reward_models.sources={helpful: [a, b]}")
    assert validate(with_values(RAW, {**TWO, **BOTH, key: value})).reward_models.of("helpful") == ["a", "b"]


# --- rows ---


@pytest.fixture
def feedback(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths.FEEDBACK.mkdir(parents=True)
    for split, rows in {
        "train": [pair("x", "helpful"), pair("y", "harmless"), pair("z"), pair("w", "helpful")],
        "development": [pair("x", "helpful"), pair("y", "harmless", label=0.5), pair("z")],
    }.items():
        write_jsonl(paths.rows(paths.FEEDBACK, "preferences", split), rows)


def test_a_model_learns_from_the_rows_of_its_sources(feedback, tokenizer):
    """Of four training rows two are helpful; without sources all four are taken."""
    params, problem = validate(RAW), problem_of("preference")
    begin = SimpleNamespace(reader=tokenizer)
    fit = configured(params, problem, begin, "helpful", ["helpful"])
    chosen = [list(unit[0].response_ids) for unit in fit.train]
    assert chosen == [encode_response(tokenizer, text) for text in ("x", "w")]
    assert (len(fit.held_out), list(fit.sources)) == (1, ["helpful"])
    whole = configured(params, problem, begin, "reward")
    assert (len(whole.train), len(whole.held_out), whole.sources) == (4, 3, None)


def test_sources_that_cannot_be_used_are_named(feedback, tokenizer):
    with pytest.raises(
        UserError, match=r"preferences_train.jsonl in data/feedback has no row of it.*did you mean helpful\?"
    ):
        check_sources("one", ["helpfull"], "preferences", [()])
    with pytest.raises(UserError, match="has no pair of harmless to measure reward model one on"):
        check_sources("one", ["harmless"], "preferences", [()])  # its only held-out pair is a tie
    write_jsonl(paths.rows(paths.FEEDBACK, "preferences", "train"), [pair("x")])
    with pytest.raises(UserError, match=r"set prepare\.file_sources to true"):
        check_sources("one", ["helpful"], "preferences", [()])


def test_a_model_with_its_own_tokenizer_reads_texts_and_ignores_sampled_ids(tmp_path, tokenizer):
    """The whole conversation is encoded at once with the model's template; the policy's ids 1, 2 are not used."""
    row = pair("b", chosen_tokens=[1, 2])
    write_jsonl(tmp_path / "rows.jsonl", [row])
    ((chosen, _),) = preference_units(tmp_path / "rows.jsonl", OwnTokenizer(tokenizer, "other"))
    whole = encode_conversation(tokenizer, [*row["prompt"], {"role": "assistant", "content": "b"}])
    assert [*chosen.prompt_ids, *chosen.response_ids] == whole
    ((chosen, rejected),) = preference_units(tmp_path / "rows.jsonl", tokenizer)
    assert list(chosen.response_ids) == [1, 2]
    assert chosen.prompt_ids == rejected.prompt_ids == encode_prompt(tokenizer, row["prompt"])


def test_a_template_that_rejects_a_prompt_is_named(tmp_path, tokenizer):
    write_jsonl(tmp_path / "rows.jsonl", [pair("b")])
    tokenizer.chat_template = "{{ raise_exception('no users') }}"
    with pytest.raises(UserError, match=r"reward.base x: its chat template rejects a prompt \(no users\)"):
        preference_units(tmp_path / "rows.jsonl", OwnTokenizer(tokenizer, "reward.base x"))


def test_tokenizers_with_another_template_differ(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path)
    from rlhf_core.models.store import load_tokenizer

    other = load_tokenizer(tmp_path)
    assert same_tokens(tokenizer, other)
    other.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert not same_tokens(tokenizer, other)


def test_the_folder_of_reward_models_is_made_by_two_stages():
    assert declared.makers(paths.REWARDS) == ["reward", "rewards"]
    assert paths.REWARDS_NOTE not in declared.checkpoints()
    assert (paths.reward_model(None), paths.reward_model("a")) == (paths.REWARD, Path("models/rewards/a"))
