"""params.yaml: an unknown, missing, ill-typed or out-of-range key is an error that names the key and the fix."""

import json

import pytest
import yaml

from flows.run.changes import Changes
from rlhf_core.algorithms.dpo import DPO
from rlhf_core.algorithms.ppo import PPO
from rlhf_core.common.errors import UserError
from tasks.params.schema import (
    RewardTerm,
    apply_overrides,
    load_params,
    load_profile,
    overlay,
    parse_override,
    validate,
)
from tools.closure import ROOT

RAW = yaml.safe_load((ROOT / "params.yaml").read_text())


def error(changes):
    with pytest.raises(UserError) as caught:
        validate(apply_overrides(RAW, changes))
    return str(caught.value)


def test_unknown_key_suggests_a_similar_one():
    assert "unknown key 'sft.learning_rat'. Did you mean 'sft.learning_rate'?" in error({"sft.learning_rat": 1.0})


def test_unknown_key_unlike_any_lists_its_section():
    assert "Choose from: prompts, development_prompts, temperature, resamples, samples." in error({"evaluate.zzz": 1})


def test_wrong_type_is_named():
    message = error({"sft.epochs": "many"})
    assert "'sft.epochs' is 'many'" in message
    assert "it must be a whole number, at least 1" in message


def test_out_of_range_is_named():
    assert "'policy.ppo.clip' is 1.5" in error({"policy.ppo.clip": 1.5})


def test_unknown_algorithm_lists_the_existing_ones():
    message = error({"policy.algorithms": ["ppo", "pp0"]})
    assert "policy.algorithms.1" in message
    assert "grpo" in message


def test_missing_key_is_named():
    raw = {key: value for key, value in RAW.items() if key != "reward"}
    with pytest.raises(UserError, match="the key 'reward' is missing"):
        validate(raw)


@pytest.mark.pitfall(28)
def test_option_without_effect_raises():
    """kl_horizon moves nothing while kl_target is null."""
    assert "kl_horizon has no effect while kl_target is null" in error({"policy.ppo.kl_horizon": 5})


@pytest.mark.parametrize(
    ("assignment", "found"),
    [
        ("policy.dpo.beta=-1", "'policy.dpo.beta' is -1; it must be a finite number, above 0."),
        ("policy.dpo.beta=.inf", "'policy.dpo.beta' is inf; it must be a finite number, above 0."),
        ("policy.dpo.beta=1e400", "'policy.dpo.beta' is inf; it must be a finite number, above 0."),
        ("policy.dpo.beta=.nan", "'policy.dpo.beta' is nan; it must be a finite number, above 0."),
        ("policy.dpo.beta=true", "'policy.dpo.beta' is true; it must be a finite number, above 0."),
        ("policy.dpo.beta='1'", "'policy.dpo.beta' is '1'; it must be a finite number, above 0."),
        ("policy.dpo.beta=", "'policy.dpo.beta' is null; it must be a finite number, above 0."),
        ("sft.learning_rate=.inf", "'sft.learning_rate' is inf; it must be a finite number, above 0."),
        ("policy.ppo.clip=.nan", "'policy.ppo.clip' is nan; it must be a finite number, above 0 and below 1."),
        (
            "evaluate.temperature=-.inf",
            "'evaluate.temperature' is -inf; it must be a finite number, at least 0, or null.",
        ),
        (
            "sft.epochs=1e23",
            "'sft.epochs' is 1e+23; it must be a whole number, at least 1 and at most 9223372036854775807.",
        ),
        (
            "run.seed=9223372036854775808",
            "'run.seed' is 9223372036854775808; it must be a whole number, at least 0 and at most 9223372036854775807.",
        ),
        ("sft.epochs=.nan", "'sft.epochs' is nan; it must be a whole number, at least 1."),
        ("sft.epochs=1.5", "'sft.epochs' is 1.5; it must be a whole number, at least 1."),
        ("sft.epochs=true", "'sft.epochs' is true; it must be a whole number, at least 1."),
        ("sft.max_steps=0", "'sft.max_steps' is 0; it must be a whole number, at least 1, or null."),
        ("prepare.hub=3", "'prepare.hub' is 3; it must be text."),
        ("prepare.hub=yes", "'prepare.hub' is true; it must be text."),
        ('prepare.hub="a\\0"', r"'prepare.hub' is 'a\x00'; it must be text."),
        ("prepare.preference_base=2", "'prepare.preference_base' is 2; it must be one of 0, 1, or null."),
        ("reward.unit_scale=1", "'reward.unit_scale' is 1; it must be true or false."),
        ("run.device=gpu", "'run.device' is 'gpu'; it must be one of auto, cpu, cuda."),
        ("policy.algorithms=dpo", "'policy.algorithms' is 'dpo'; it must be a list."),
        ("policy.algorithms=[]", "in 'policy', the list algorithms is empty; name at least one."),
        ("policy.rewards=[3]", "'policy.rewards.0' is 3; it must be a section of keys."),
        (
            "policy.rewards=[{nam: model}]",
            "unknown key 'policy.rewards.0.nam'. Did you mean 'policy.rewards.0.name'?",
        ),
        ("policy.rewards=[{weight: .inf}]", "'policy.rewards.0.weight' is inf; it must be a finite number."),
        ("policy.rewards=[{weight: true}]", "'policy.rewards.0.weight' is true; it must be a finite number."),
        ("policy.rewards=&a [*a]", "'policy.rewards.0' is [[[[[[[...]]]]]]]; it must be a section of keys."),
        ("sft=3", "'sft' is a section. Set a key of it, such as sft.learning_rate."),
        ("x=[", "unknown key 'x'. See params.yaml for the existing keys."),
        ("sft.epoch=2", "unknown key 'sft.epoch'. Did you mean 'sft.epochs'?"),
        ("sft.epochs.x=2", "unknown key 'sft.epochs.x'. Did you mean 'sft.epochs'?"),
        ("=2", "unknown key ''. See params.yaml for the existing keys."),
        ("prepare.hub=!x y", "the tag !x is not allowed; write a plain value. Correct it."),
        ("sft.epochs=!!int 3", "the tag tag:yaml.org,2002:int is not allowed; write a plain value. Correct it."),
        ("sft.epochs={a: 1, a: 2}", "the key 'a' appears twice; delete one. Correct it."),
        ("sft.epochs={[]: 1}", "a key must be a plain word. Correct it."),
        ("policy.ppo.kl_horizon=9", "in 'policy.ppo', kl_horizon has no effect while kl_target is null"),
    ],
)
def test_a_wrong_assignment_is_named_as_it_was_written(assignment, found):
    with pytest.raises(UserError) as caught:
        Changes.from_command_line("default", ["run.seed=1", assignment]).resolve(ROOT)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"--set {assignment}: {found}")


@pytest.mark.parametrize(
    ("assignment", "found"),
    [
        (
            "run.seed=[",
            "--set run.seed=[ is not YAML: expected the node content, but found '<stream end>'. Correct it.",
        ),
        ("run.seed=*a", "--set run.seed=*a is not YAML: found undefined alias 'a'. Correct it."),
        ("run.seed=" + "9" * 5000, f"--set run.seed={'9' * 70}… is not YAML: Exceeds the limit"),
        ("run.seed=" + "[" * 100_000, f"--set run.seed={'[' * 70}… is nested too deeply. Write plain values."),
        ("run.seed", "--set run.seed: write it as key=value, such as sft.learning_rate=1e-3."),
    ],
    ids=["cut", "alias", "digits", "deep", "no value"],
)
def test_an_assignment_that_is_not_yaml(assignment, found):
    with pytest.raises(UserError) as caught:
        parse_override(assignment)
    assert str(caught.value).startswith(found)


def test_all_assignments_of_an_inconsistent_section_are_named():
    assignments = ["policy.ppo.kl_horizon=9", "policy.ppo.lam=0.9", "run.seed=3"]
    with pytest.raises(UserError, match=r"^--set policy\.ppo\.kl_horizon=9 --set policy\.ppo\.lam=0\.9: in 'policy"):
        Changes.from_command_line("default", assignments).resolve(ROOT)


def test_further_errors_are_counted():
    with pytest.raises(UserError, match=r"^--set run\.threads=0: .* at least 1\. \(1 more after it\)$"):
        Changes.from_command_line("default", ["sft.epochs=0", "run.threads=0"]).resolve(ROOT)


@pytest.mark.parametrize("key", ["sft.epoch", "sft", "", "sft.epochs.x", "nothing.here"])
def test_an_invalid_key_is_an_error_from_any_source(key):
    """Prefect's API accepts any mapping as overrides."""
    with pytest.raises(UserError, match=r"unknown key|is a section"):
        Changes(overrides={key: 1}).resolve(ROOT)


def test_values_are_read_as_in_yaml_1_2():
    assert [parse_override(f"run.seed={text}")[1] for text in ("1e-5", "-2E+3", "1e3")] == [1e-5, -2000.0, 1000.0]
    assert parse_override("prepare.hub=2026-01-02") == ("prepare.hub", "2026-01-02")
    assert validate(apply_overrides(RAW, {"sft.max_steps": 1e3})).sft.max_steps == 1000


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_dataclasses_reject_numbers_that_are_not_finite(value):
    """`setting` with and without bounds, on both sides."""
    for make in (lambda: DPO(beta=value), lambda: PPO(kl_coef=value), lambda: RewardTerm(weight=value)):
        with pytest.raises(ValueError, match=r"must be a finite number"):
            make()


def test_a_file_with_tags_or_a_repeated_key_names_the_line(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("run:\n  seed: !!python/object/apply:os.getpid []\n")
    with pytest.raises(UserError, match=r"params\.yaml, line 2: the tag tag:yaml\.org,2002:python/object/apply"):
        load_params(path)
    path.write_text("run:\n  seed: 1\nmodel: {}\nrun:\n  seed: 2\n")
    with pytest.raises(UserError, match=r"params\.yaml, line 4: the key 'run' appears twice; delete one\."):
        load_params(path)
    path.write_bytes(b"run: \xff")
    with pytest.raises(UserError, match=r"params\.yaml cannot be read: .* Save it as UTF-8 text"):
        load_params(path)


@pytest.mark.parametrize("profile", sorted(path.stem for path in (ROOT / "profiles").glob("*.yaml")))
def test_prompt_and_response_of_every_profile_fit_its_model(profile):
    params = validate(overlay(RAW, load_profile(profile, ROOT)))
    model = json.loads((ROOT / params.model.path).read_text())
    longest = params.prepare.max_prompt_tokens + params.prepare.max_response_tokens
    assert longest <= model["max_position_embeddings"]


def test_file_that_is_missing_or_not_yaml(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("a: [")
    with pytest.raises(UserError, match="is not YAML"):
        load_params(tmp_path / "params.yaml")


def test_override_text():
    assert parse_override("sft.learning_rate=1e-5") == ("sft.learning_rate", 1e-5)
    assert parse_override("policy.algorithms=[dpo]") == ("policy.algorithms", ["dpo"])
    with pytest.raises(UserError, match=r"unknown key 'sft\.lr'"):
        parse_override("sft.lr=1")
    with pytest.raises(UserError, match="key=value"):
        parse_override("sft.epochs")


def test_overlay_merges_sections_and_keeps_the_original():
    assert overlay({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 9}}) == {"a": {"b": 9, "c": 2}, "d": 3}
    before = yaml.safe_dump(RAW)
    apply_overrides(RAW, {"sft.epochs": 9})
    assert yaml.safe_dump(RAW) == before


def test_unknown_profile_lists_the_existing_ones():
    with pytest.raises(UserError, match=r"no profile 'fast'. Choose from: comparison, default, preferences"):
        load_profile("fast", ROOT)
