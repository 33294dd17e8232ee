"""Profiles: each one is valid, and recipes inherit nothing that params.yaml chooses for the help desk."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from flows.run.changes import Changes
from rlhf_core.common.errors import UserError
from tasks.params.load import ROOT, load_profile, merged, read_yaml, validate
from tasks.params.schema import Params

RECIPES = ("preferences", "full_1b", "lora_8b", "verifiable", "helpful_harmless")
# What a run's own data and model replace, what only the help desk has, and a model trained from scratch.
NOT_A_RECIPES = (
    "model.path",
    "prepare.path",
    "prepare.demonstrations",
    "policy.reward_code",
    "base.",
    "reward_models.",
)


def leaves(section: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def params_of(name: str) -> Params:
    return Changes(name).resolve(ROOT).params


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "profiles").glob("*.yaml")))
def test_every_profile_is_valid(name: str) -> None:
    params_of(name)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_state_every_value_that_params_yaml_chooses(name: str) -> None:
    """Also of methods that they do not list: a user may choose those with --set."""
    chosen = {key for key in leaves(read_yaml(ROOT / "params.yaml")) if not key.startswith(NOT_A_RECIPES)}
    assert {"policy.grpo.kl_coef", "policy.dpo.beta", "sft.learning_rate", "policy.rewards"} <= chosen
    assert sorted(chosen - set(leaves(load_profile(name)))) == []


@pytest.mark.parametrize("name", RECIPES)
def test_each_value_of_a_recipe_has_its_source(name: str) -> None:
    """Every line with a value has a comment, in the words of a paper, a library, or `ours` and the reason."""
    for line in (ROOT / f"profiles/{name}.yaml").read_text(encoding="utf-8").splitlines():
        code, _, comment = line.partition("#")
        if code.strip() and not code.rstrip().endswith(":") and not code.startswith("extends"):
            assert len(comment.split()) >= 2, line


def test_recipes_have_the_values_of_their_papers() -> None:
    """GRPO's β 0.04, sec. 4.2, and DPO's 0.1, app. B, not the help desk's 0.3. DAPO: no KL, clip 0.2 and 0.28, G 16."""
    plain = params_of("preferences").policy
    assert (plain.section("grpo").kl_coef, plain.section("dpo").beta, plain.section("kto").beta) == (0.04, 0.1, 0.1)
    dapo = params_of("verifiable").policy.section("grpo")
    assert (dapo.kl_coef, dapo.clip, dapo.clip_high, dapo.group_size, dapo.averaging) == (0, 0.2, 0.28, 16, "token")
    assert dapo.dynamic_sampling == 10 and dapo.rollout_size == 256 and dapo.weight_decay == 0.1


def test_adapters_have_ten_times_the_learning_rates_of_full_training() -> None:
    """Every method that the recipe lists, and every other one; SFT's is QLoRA's own."""
    full, lora = params_of("full_1b"), params_of("lora_8b")
    assert full.model.lora is None and lora.model.lora is not None
    assert (lora.model.lora.r, lora.model.lora.lora_alpha, lora.model.lora.target_modules) == (16, 32, "all-linear")
    assert (lora.model.dtype, lora.run.precision, lora.model.gradient_checkpointing) == ("bf16", "bf16", True)
    for name in ("ppo", "grpo", "dpo", "kto", "rloo", "online_dpo", "trpo", "reinforce"):
        rates = [params.policy.section(name).learning_rate for params in (full, lora)]
        assert rates[1] == pytest.approx(10 * rates[0]), name
    assert lora.sft.learning_rate == 2e-4
    assert lora.policy.section("ppo").critic_learning_rate == pytest.approx(
        10 * full.policy.section("ppo").critic_learning_rate
    )


def test_feedback_of_two_sources_has_two_reward_models() -> None:
    """Their weights sum to 1; each learns from the source of its name."""
    params = params_of("helpful_harmless")
    assert {name: params.reward_models.of(name) for name in params.reward_models.names} == {
        "helpful": ["helpful"],
        "harmless": ["harmless"],
    }
    assert [(entry.label, entry.weight) for entry in params.policy.rewards] == [
        ("helpful", 0.5),
        ("harmless", 0.5),
        ("missing_end", 1.0),
    ]


def write(root: Path, **profiles: str) -> None:
    (root / "profiles").mkdir()
    for name, text in profiles.items():
        (root / f"profiles/{name}.yaml").write_text(text, encoding="utf-8")


def test_a_profile_extends_another_one(tmp_path: Path) -> None:
    """Key by key; its own values win, also against the profile's that the other one extends."""
    write(
        tmp_path,
        a="sft: {epochs: 1, batch_size: 4}\nreward: {epochs: 1}\n",
        b="extends: a\nsft: {epochs: 2}\n",
        c="extends: b\nreward: {epochs: 3}\n",
    )
    assert load_profile("c", tmp_path) == {"sft": {"epochs": 2, "batch_size": 4}, "reward": {"epochs": 3}}
    raw = merged(read_yaml(ROOT / "params.yaml"), load_profile("c", tmp_path))
    assert validate(raw).sft.batch_size == 4


@pytest.mark.parametrize(
    ("profiles", "message"),
    [
        ({"a": "extends: b\n", "b": "extends: a\n"}, r"profiles/a.yaml extends itself: a -> b -> a"),
        ({"a": "extends: a\n"}, "extends itself: a -> a"),
        ({"a": "extends: c\n"}, r"profiles/a.yaml: extends: The profile 'c' does not exist. Choose from: a"),
    ],
)
def test_wrong_extensions_are_named(tmp_path: Path, profiles: dict[str, str], message: str) -> None:
    write(tmp_path, **profiles)
    with pytest.raises(UserError, match=message):
        load_profile("a", tmp_path)
