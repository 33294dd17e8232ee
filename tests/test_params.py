"""params.yaml: an unknown, missing, ill-typed or out-of-range key is an error that names the key and the mend."""

import json

import pytest
import yaml

from closure import ROOT
from rlhf_core.errors import UserError
from tasks.params import apply_overrides, load_params, load_profile, overlay, parse_override, validate

RAW = yaml.safe_load((ROOT / "params.yaml").read_text())


def error(changes):
    with pytest.raises(UserError) as caught:
        validate(apply_overrides(RAW, changes))
    return str(caught.value)


def test_unknown_key_names_the_nearest():
    assert "unknown key 'sft.learning_rat'. Did you mean 'sft.learning_rate'?" in error({"sft.learning_rat": 1.0})


def test_unknown_key_far_from_any_lists_its_section():
    assert "Choose from: prompts, development_prompts, temperature, resamples, samples." in error({"evaluate.zzz": 1})


def test_wrong_type_is_named():
    message = error({"sft.epochs": "many"})
    assert "'sft.epochs' is 'many'" in message
    assert "it must be a whole number, at least 1" in message


def test_out_of_range_is_named():
    assert "'policy.ppo.clip' is 1.5" in error({"policy.ppo.clip": 1.5})


def test_unknown_algorithm_lists_those_there_are():
    message = error({"policy.algorithms": ["ppo", "pp0"]})
    assert "policy.algorithms.1" in message
    assert "grpo" in message


def test_missing_key_is_named():
    raw = {key: value for key, value in RAW.items() if key != "reward"}
    with pytest.raises(UserError, match="the key 'reward' is missing"):
        validate(raw)


def test_pitfall_28_option_without_effect_raises():
    """kl_horizon moves nothing while kl_target is null."""
    assert "kl_horizon has no effect while kl_target is null" in error({"policy.ppo.kl_horizon": 5})


@pytest.mark.parametrize("profile", sorted(path.stem for path in (ROOT / "profiles").glob("*.yaml")))
def test_prompt_and_response_of_every_profile_fit_the_model_it_brings(profile):
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


def test_overlay_lays_sections_over_each_other_and_leaves_the_original_alone():
    assert overlay({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 9}}) == {"a": {"b": 9, "c": 2}, "d": 3}
    before = yaml.safe_dump(RAW)
    apply_overrides(RAW, {"sft.epochs": 9})
    assert yaml.safe_dump(RAW) == before


def test_unknown_profile_lists_those_there_are():
    with pytest.raises(UserError, match=r"no profile 'fast'. Choose from: comparison, default, preferences"):
        load_profile("fast", ROOT)
