"""Names of TRL, verl and OpenRLHF: every name of ours exists, and an unknown key that is a peer's gets ours."""

import re

import pytest
import yaml

from rlhf_core.algorithms.base.table import policy_algorithms
from rlhf_core.common.errors import UserError
from tasks.params.load import read_assignment, validate, with_values
from tasks.params.peers import METRICS, PARAMETERS, SIMILAR, keys_behind, peer_hint, peer_metrics
from tasks.params.schema import all_keys
from tools.closure import ROOT

RAW = yaml.safe_load((ROOT / "params.yaml").read_text())


def test_every_parameter_of_ours_exists_and_none_of_theirs():
    keys = all_keys()
    for row in PARAMETERS:
        assert not row.ours or list(keys_behind(row.ours, keys)), row
        assert row.ours or row.note, row
        assert row.theirs != row.ours.rpartition(".")[2] or row.note, row
    assert len({(row.library, row.theirs, row.ours) for row in PARAMETERS}) == len(PARAMETERS)


def test_keys_behind_a_method():
    keys = ["policy.grpo.group_size", "policy.a.b.group_size", "policy.rloo.group_size", "sft.group_size"]
    assert list(keys_behind("policy.METHOD.group_size", keys)) == ["policy.grpo.group_size", "policy.rloo.group_size"]
    assert list(keys_behind("sft.group_size", keys)) == ["sft.group_size"]


def test_every_metric_of_ours_is_documented_and_its_methods_exist():
    documented = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    for row in [*METRICS, *SIMILAR]:
        assert f"`{row.ours}`" in documented, row
        assert set(row.methods) <= set(policy_algorithms()), row
        assert row.library in {"TRL", "verl"}, row
    assert not {(row.library, row.theirs) for row in METRICS} & {(row.library, row.theirs) for row in SIMILAR}


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("policy.grpo.num_generations", "It is TRL's name; ours is policy.grpo.group_size."),
        ("policy.grpo.max_completion_length", "It is TRL's name; ours is prepare.max_response_tokens."),
        ("policy.ppo.beta", "ours is policy.ppo.kl_coef (of GRPO and RLOO; 0 by default in GRPO there)."),
        ("policy.ppo_penalty.num_ppo_epochs", "It is TRL's name; ours is policy.ppo_penalty.epochs."),
        ("policy.online_loop.epsilon", "It is TRL's name; ours is policy.METHOD.clip, such as policy.grpo.clip."),
        ("sft.per_device_train_batch_size", "It is TRL's name; ours is sft.micro_batch_size."),
        ("reward.adam_epsilon", "It is TRL's name; ours is reward.adam_eps."),
        ("policy.ppo.vf_coef", "It is TRL's name and has no counterpart: the critic is a separate model"),
        (
            "actor_rollout_ref.rollout.n",
            "It is verl's name; ours is policy.METHOD.group_size, such as policy.grpo.group_size.",
        ),
        ("policy.grpo.clip_ratio_high", "It is verl's name; ours is policy.grpo.clip_high."),
        ("policy.rloo.n_samples_per_prompt", "It is OpenRLHF's name; ours is policy.rloo.group_size."),
        ("policy.grpo.max_prompt_length", "It is TRL and verl's name; ours is prepare.max_prompt_tokens"),
        ("beta", "there), or policy.METHOD.beta, such as policy.cdpo.beta (of DPO, KTO and online DPO)."),
    ],
)
def test_a_peers_name_gets_ours_on_the_command_line_and_in_the_file(key, hint):
    expected = re.escape(f"unknown key '{key}'. ") + ".*" + re.escape(hint)
    expected += "$" if hint.endswith(".") else ""
    with pytest.raises(UserError, match=expected) as caught:
        read_assignment(f"{key}=1")
    assert len(str(caught.value).splitlines()) <= 2
    with pytest.raises(UserError, match=expected):
        with_values(RAW, {key: 1})
    section, _, name = key.rpartition(".")
    if section in {"sft", "reward"}:
        with pytest.raises(UserError, match=expected):
            validate({**RAW, section: {**RAW[section], name: 1}})


def test_a_peers_name_in_a_methods_section_of_the_file():
    policy = {**RAW["policy"], "grpo": {**RAW["policy"].get("grpo", {}), "num_generations": 8}}
    with pytest.raises(UserError, match=r"unknown key 'policy\.grpo\.num_generations'\. .*ours is policy\.grpo\.group"):
        validate({**RAW, "policy": policy})


def test_only_whole_parts_of_a_key_are_compared():
    keys = all_keys()
    assert peer_hint("policy.grpo.my_epsilon", keys) is None
    assert peer_hint("policy.grpo.n", keys) is None
    assert peer_hint("policy.grpo.rollout.n", keys) is not None


def test_metrics_under_the_peers_names():
    assert peer_metrics("dpo", "margin") == ["trl/rewards/margins"]
    assert peer_metrics("dpo", "development_margin") == ["trl/eval_rewards/margins"]
    assert peer_metrics("ppo", "kl") == ["trl/objective/kl"]
    assert peer_metrics("ppo", "clip_active_fraction") == ["trl/policy/clipfrac_avg", "verl/actor/pg_clipfrac"]
    assert peer_metrics("grpo", "kl") == []  # TRL's is k3 per token
    assert peer_metrics("ipo", "margin") == []  # TRL's divides by the length
    assert peer_metrics("", "margin") == []  # the reward model
