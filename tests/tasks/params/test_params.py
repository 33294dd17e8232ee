"""params.yaml: an unknown, missing, ill-typed or out-of-range key is an error that names the key and the fix."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import fields, make_dataclass, replace

import pytest
import yaml
from pydantic import TypeAdapter, ValidationError

from flows.run.changes import Changes
from flows.run.yaml_edit import update_yaml
from rlhf_core.algorithms.base.table import policy_algorithms
from rlhf_core.algorithms.dpo import DPO
from rlhf_core.algorithms.ppo import PPO
from rlhf_core.algorithms.trpo import TRPO
from rlhf_core.common.errors import UserError
from rlhf_core.common.fields import setting
from rlhf_core.feedback import forms as form_files
from rlhf_core.feedback import table
from tasks.params import derived
from tasks.params.derived import LOOPS, OfflineLoop, OnlineLoop, Policy, PolicyParams, RewardParams
from tasks.params.load import load_params, load_profile, merged, read_assignment, read_yaml, validate, with_values
from tasks.params.options import options_of
from tasks.params.reward_terms import RewardTerm
from tasks.params.schema import Params, all_keys
from tasks.stages.params import params as effective_params
from tools.closure import ROOT

RAW = yaml.safe_load((ROOT / "params.yaml").read_text())


def error(changes):
    with pytest.raises(UserError) as caught:
        validate(with_values(RAW, changes))
    return str(caught.value)


def test_unknown_key_suggests_a_similar_one():
    assert "unknown key 'sft.learning_rat'. Did you mean 'sft.learning_rate'?" in error({"sft.learning_rat": 1.0})


def test_unknown_key_unlike_any_lists_its_section():
    message = error({"evaluate.zzz": 1})
    keys = "prompts, development_prompts, temperature, top_k, top_p, stop_strings, resamples, samples"
    assert f"Choose from: {keys}." in message


def test_wrong_type_is_named():
    message = error({"sft.epochs": "many"})
    assert "'sft.epochs' is 'many'" in message
    assert "it must be a whole number, at least 1" in message


def test_out_of_range_is_named():
    assert "'policy.ppo.clip' is 1.5" in error({"policy.ppo.clip": 1.5})


@pytest.mark.parametrize(
    ("lists", "found"),
    [
        (
            {"policy.online": ["ppo", "pp0"]},
            r"'policy\.online\.1' is 'pp0'; it must be one of .*grpo.*\. Did you mean ppo\?$",
        ),
        ({"policy.offline": ["ktoo"]}, r"'policy\.offline\.0' is 'ktoo'; it must be one of .* Did you mean kto\?$"),
        ({"policy.online": ["ktoo"]}, r"'policy\.online\.0' is 'ktoo'; it must be one of [^?]*$"),  # kto is offline
        ({"policy.online": ["ppo", "kto"]}, r"'policy\.online\.1' is 'kto'; .* kto belongs to policy\.offline\.$"),
        ({"policy.offline": ["best_of_n"]}, r"'policy\.offline\.0' is .* best_of_n belongs to policy\.online\.$"),
        ({"policy.online": ["ppo", "ppo"]}, r"in 'policy', online has duplicates: ppo, ppo; name each method once\.$"),
        (
            {"policy.online": [], "policy.offline": []},
            r"the lists online and offline are empty; name at least one method",
        ),
    ],
)
def test_a_method_is_named_once_and_in_the_list_that_it_belongs_to(lists, found):
    assert re.search(found, error(lists))


def test_either_list_may_be_empty():
    assert validate(with_values(RAW, {"policy.online": [], "policy.offline": ["kto"]})).policy.methods == ["kto"]
    assert validate(with_values(RAW, {"policy.online": ["rloo"], "policy.offline": []})).policy.methods == ["rloo"]


@pytest.mark.parametrize("key", ["model.path", "prepare.path", "policy.offline", "policy.online", "policy.reward_code"])
def test_keys_that_dvc_yaml_reads_have_no_default(key):
    """DVC reads these keys from params.yaml itself, so a default in the code would not apply."""
    section, _, name = key.partition(".")
    raw = RAW | {section: {other: value for other, value in RAW[section].items() if other != name}}
    assert f"${{{key}}}" in (ROOT / "dvc.yaml").read_text()
    with pytest.raises(UserError, match=f"the key '{key}' is missing. Add it"):
        validate(raw)


# Values that methods share, and sections derived from their classes


def test_a_method_has_what_its_loop_shares_unless_its_own_section_differs():
    changed = {"policy.online_loop.steps": 7, "policy.offline_loop.batch_size": 5, "policy.rloo.steps": 9}
    policy = validate(with_values(RAW, changed)).policy
    online = ("reinforce", "trpo", "ppo", "ppo_penalty", "grpo", "online_dpo")
    assert {name: policy.section(name).steps for name in (*online, "rloo")} == dict.fromkeys(online, 7) | {"rloo": 9}
    offline = ("dpo", "cdpo", "ipo", "kto", "best_of_n_distillation")
    assert {policy.section(name).batch_size for name in offline} == {5}


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        (
            {"policy.online_loop.epochs": 0},
            "changed value: 'policy.online_loop.epochs' is 0; it must be a whole number, at least 1.",
        ),
        ({"policy.online_loop.rollout_size": 100}, "in 'policy.ppo', rollout_size 100 is not a multiple"),
    ],
)
def test_a_wrong_shared_value_is_reported_once(changes, found):
    with pytest.raises(UserError) as caught:
        Changes(overrides=changes).resolve(ROOT)
    assert found in str(caught.value)
    assert str(caught.value).count("'policy.") == 1


def test_a_shared_value_that_does_not_fit_a_method_names_who_set_it():
    with pytest.raises(UserError, match=r"^--set policy\.online_loop\.rollout_size=100: in 'policy\.ppo', rollout"):
        Changes.from_command_line("default", ["policy.online_loop.rollout_size=100", "run.seed=1"]).resolve(ROOT)


def test_an_unknown_key_among_shared_values():
    raw = merged(RAW, {"policy": {"offline_loop": {"betta": 1, "max_step": 2}}})
    with pytest.raises(UserError) as caught:
        validate(raw)
    known = "Choose from: learning_rate,"
    assert str(caught.value).startswith(f"params.yaml: unknown key 'policy.offline_loop.betta'. {known}")
    assert str(caught.value).endswith("(and 1 more)")


def test_sections_of_methods_follow_from_their_classes():
    """The options of the loop, the method's own options, and its notes on the loop's options."""
    section = {item.name: item for item in fields(Policy)} | {item.name: item for item in fields(PolicyParams)}
    for name, kind in policy_algorithms().items():
        own = {item.name for item in fields(kind)}
        loop = {item.name for item in fields(kind.loop)} | {"snapshots"} if kind.loop else set()
        assert {item.name for item in fields(section[name].type)} == own | loop, name
    rates = {item.name: item for item in fields(section["trpo"].type)}["learning_rate"].metadata
    assert rates == {"description": TRPO.notes["learning_rate"], "title": "Learning rate", "gt": 0}


def test_options_of_reward_losses_follow_from_their_classes():
    options = {item.name: item.metadata.get("description", "") for item in fields(RewardParams)}
    assert options["margin"].startswith("bradley_terry: m, subtracted")
    assert options["label_smoothing"].startswith("bradley_terry, thurstone: ")
    assert "in 'reward', margin has no effect on loss thurstone" in error(
        {"reward.loss": "thurstone", "reward.margin": 1}
    )


# The files


def test_params_yaml_holds_choices_only():
    """A value that equals its default would be written in two places and make this file longer."""
    policy = RAW["policy"]
    for section in Params.__dataclass_fields__.values():
        defaults = {item.name: item.default for item in fields(section.type)}
        for key, value in RAW.get(section.name, {}).items():
            assert value != defaults[key], f"{section.name}.{key}"
    for name, kind in policy_algorithms().items():
        shared = policy[LOOPS[kind.loop]] if kind.loop else {}
        defaults = {
            item.name: item.default
            for item in fields(
                getattr(Params.__dataclass_fields__["policy"].type(online=["ppo"], offline=[], reward_code="x"), name)
            )
        } | shared
        for key, value in policy.get(name, {}).items():
            assert value != defaults[key], f"policy.{name}.{key}"
    assert len((ROOT / "params.yaml").read_text().splitlines()) <= 110


def test_values_survive_merging_as_they_are_written(tmp_path):
    """Regular expressions with $, braces and backslashes, exponents, null, quoted words, lists."""
    path = tmp_path / "params.yaml"
    shutil.copyfile(ROOT / "params.yaml", path)
    values = {
        "prepare.answer_pattern": r"^\s*{(\d+)}$ \\ $x %s",
        "sft.learning_rate": 1e-3,
        "sft.max_steps": None,
        "collect.keep_ties": True,
        "prepare.hub": "yes",
        "policy.rewards": [{"name": "format", "pattern": r"(a|b){2,3}$"}],
    }
    raw = merged(with_values(read_yaml(path), values), {"policy": {"ppo": {"clip": 0.1}}})
    update_yaml(path, raw)
    params = load_params(path)
    assert params.prepare.answer_pattern == values["prepare.answer_pattern"]
    assert (params.sft.learning_rate, params.sft.max_steps) == (1e-3, None)
    assert (params.collect.keep_ties, params.prepare.hub) == (True, "yes")
    assert [(term.name, term.pattern) for term in params.policy.rewards] == [("format", r"(a|b){2,3}$")]
    assert (params.policy.section("ppo").clip, params.policy.section("ppo").kl_coef) == (0.1, 0.05)
    effective_params(tmp_path)
    assert load_params(tmp_path / "params.effective.yaml") == replace(
        params, policy=replace(params.policy, online_loop=OnlineLoop(), offline_loop=OfflineLoop())
    )


@pytest.mark.parametrize("value", ["${oc.env:HOME}", "${run.seed}", "a${", "???"])
def test_interpolations_and_marks_of_missing_values_are_rejected(value, tmp_path):
    """Otherwise, the value that a stage reads could differ from the one that DVC tracks."""
    fault = r"is \?\?\?, which means missing" if value == "???" else r"contains \$\{, but .* are not resolved"
    said = rf"{fault}\. Write the value itself"
    with pytest.raises(UserError, match=rf"^--set prepare\.hub=.*: the value {said}"):
        Changes.from_command_line("default", [f"prepare.hub='{value}'"])
    with pytest.raises(UserError, match=rf"'prepare\.hub' {said}"):
        Changes(overrides={"prepare.hub": value}).resolve(ROOT)
    path = tmp_path / "params.yaml"
    path.write_text(f"policy: {{rewards: [{{name: '{value}'}}]}}\n")
    with pytest.raises(UserError, match=rf"params\.yaml: 'policy\.rewards\.0\.name' {said}"):
        load_params(path)


def test_stages_read_every_value_except_the_number_of_parallel_stages(tmp_path):
    """The file is sorted, complete and the same for equal values. If params.yaml is wrong, no part of it is written."""
    path = tmp_path / "params.yaml"
    shutil.copyfile(ROOT / "params.yaml", path)
    effective_params(tmp_path)
    text = (tmp_path / "params.effective.yaml").read_text()
    content = yaml.safe_load(text)
    shared = (
        *(f"policy.{loop}" for loop in LOOPS.values()),
        "model.lora.",
        "reward_models.sources",
    )  # the last two are empty
    sections = (
        "run",
        "model",
        "policy",
        *Params.__dataclass_fields__,
        *(f"policy.{name}" for name in policy_algorithms()),
    )
    expected = {key for key in all_keys() if not key.startswith(shared) and key not in ("run.parallel", *sections)}
    assert set(leaves(content)) == expected
    assert list(content) == sorted(content)
    update_yaml(path, {"run": {"parallel": 7}})
    effective_params(tmp_path)
    assert (tmp_path / "params.effective.yaml").read_text() == text
    update_yaml(path, {"run": {"seed": -1}})
    with pytest.raises(UserError, match=r"'run\.seed' is -1"):
        effective_params(tmp_path)
    assert (tmp_path / "params.effective.yaml").read_text() == text
    assert sorted(file.name for file in tmp_path.iterdir()) == ["params.effective.yaml", "params.yaml"]


def leaves(section, prefix=""):
    for key, value in section.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def test_a_missing_effective_file_is_reported_with_its_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"params\.effective\.yaml does not exist\. Make it with: dvc repro params"):
        load_params()


def test_parameters_are_validated_without_torch():
    heavy = "{'torch', 'transformers', 'dvc', 'mlflow'} & set(sys.modules)"
    code = f"import sys, tasks.stages.params; print(sorted({heavy}))"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).strip() == "[]"


def test_missing_key_is_named():
    raw = {key: value for key, value in RAW.items() if key != "policy"}
    with pytest.raises(UserError, match="the key 'policy' is missing"):
        validate(raw)


@pytest.mark.pitfall(28)
def test_option_without_effect_raises():
    """kl_horizon has no effect while kl_target is null."""
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
        ("policy.ppo.clip=.nan", "'policy.ppo.clip' is nan; it must be a finite number, above 0 and at most 1."),
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
        ("policy.offline=dpo", "'policy.offline' is 'dpo'; it must be a list."),
        ("policy.offline=[dpo, dpo]", "in 'policy', offline has duplicates: dpo, dpo; name each method once."),
        ("policy.dpo.betta=1", "unknown key 'policy.dpo.betta'. Did you mean 'policy.dpo.beta'?"),
        (
            "policy.online_loop.step=1",
            "unknown key 'policy.online_loop.step'. Did you mean 'policy.online_loop.steps'?",
        ),
        ("policy.rewards=[3]", "'policy.rewards.0' is 3; it must be a section of keys."),
        (
            "policy.rewards=[{nam: model}]",
            "unknown key 'policy.rewards.0.nam'. Did you mean 'policy.rewards.0.name'?",
        ),
        ("policy.rewards=[{weight: .inf}]", "'policy.rewards.0.weight' is inf; it must be a finite number."),
        ("policy.rewards=[{weight: true}]", "'policy.rewards.0.weight' is true; it must be a finite number."),
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
        ("policy.rewards=&a [*a]", "--set policy.rewards=&a [*a] is nested too deeply. Write plain values."),
        ("run.seed", "--set run.seed: write it as key=value, such as sft.learning_rate=1e-3."),
    ],
    ids=["cut", "alias", "digits", "deep", "endless", "no value"],
)
def test_an_assignment_that_is_not_yaml(assignment, found):
    with pytest.raises(UserError) as caught:
        read_assignment(assignment)
    assert str(caught.value).startswith(found)


def test_all_assignments_of_an_inconsistent_section_are_named():
    assignments = ["policy.ppo.kl_horizon=9", "policy.ppo.lam=0.9", "run.seed=3"]
    with pytest.raises(UserError, match=r"^--set policy\.ppo\.kl_horizon=9 --set policy\.ppo\.lam=0\.9: in 'policy"):
        Changes.from_command_line("default", assignments).resolve(ROOT)


def test_further_errors_are_counted():
    with pytest.raises(UserError, match=r"^--set run\.threads=0: .* at least 1\. \(and 1 more\)$"):
        Changes.from_command_line("default", ["sft.epochs=0", "run.threads=0"]).resolve(ROOT)


@pytest.mark.parametrize("key", ["sft.epoch", "sft", "", "sft.epochs.x", "nothing.here"])
def test_an_invalid_key_is_an_error_from_any_source(key):
    """Prefect's API accepts any mapping as overrides."""
    with pytest.raises(UserError, match=r"unknown key|is a section"):
        Changes(overrides={key: 1}).resolve(ROOT)


def test_values_as_yaml_1_2_reads_them():
    assert [read_assignment(f"run.seed={text}")[1] for text in ("1e-5", "-2E+3", "1e3")] == [1e-5, -2000.0, 1000.0]
    assert read_assignment("prepare.hub=2026-01-02") == ("prepare.hub", "2026-01-02")
    assert validate(with_values(RAW, {"sft.max_steps": 1e3})).sft.max_steps == 1000


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
    params = validate(merged(RAW, load_profile(profile, ROOT)))
    longest = params.prepare.max_prompt_tokens + params.prepare.max_response_tokens
    known = {"inputs/models/smollm2-135m": 8192}  # not in the repository
    file = ROOT / params.model.path
    assert longest <= (known.get(params.model.path) or json.loads(file.read_text())["max_position_embeddings"])


def test_file_that_is_missing_or_not_yaml(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("a: [")
    with pytest.raises(UserError, match="is not YAML"):
        load_params(tmp_path / "params.yaml")


def test_override_text():
    assert read_assignment("sft.learning_rate=1e-5") == ("sft.learning_rate", 1e-5)
    assert read_assignment("policy.offline=[dpo]") == ("policy.offline", ["dpo"])
    with pytest.raises(UserError, match=r"unknown key 'sft\.lr'"):
        read_assignment("sft.lr=1")
    with pytest.raises(UserError, match="key=value"):
        read_assignment("sft.epochs")


def test_merging_overrides_values_and_does_not_change_the_original():
    assert merged({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 9}}) == {"a": {"b": 9, "c": 2}, "d": 3}
    before = yaml.safe_dump(RAW)
    with_values(RAW, {"sft.epochs": 9})
    assert yaml.safe_dump(RAW) == before


def test_unknown_profile_lists_the_existing_ones():
    with pytest.raises(UserError, match=r"'fast' does not exist. Choose from: comparison, default, full_1b,"):
        load_profile("fast", ROOT)


def test_a_shared_value_need_not_fit_a_method_that_is_not_trained():
    """64 responses per rollout suit ppo and grpo; REINFORCE's own minibatch of 128 does not fit and is not used."""
    changes = {"policy.online_loop.rollout_size": 64}
    assert Changes(overrides=changes).resolve(ROOT).params.policy.section("ppo").rollout_size == 64
    with pytest.raises(UserError, match=r"in 'policy\.reinforce', rollout_size 64 is not a multiple"):
        Changes(overrides=changes | {"policy.online": ["reinforce"]}).resolve(ROOT)


STARS = """
from dataclasses import dataclass
from rlhf_core.common.fields import setting
from rlhf_core.feedback.form import Form

@dataclass(frozen=True)
class Stars(Form):
    name, needs, file, data, suggested_loss = "stars", "one response and its stars", "ratings", "ratings", "likert"
    is_alone = True
    stars: int = setting(3, "largest number of stars", ge=2)
    least: int = setting(0, "smallest number of stars")

    def __post_init__(self):
        if self.least >= self.stars:
            raise ValueError("least is not below stars")
"""


@pytest.fixture
def collect(tmp_path, monkeypatch):
    """The section `collect` with a form that was added as one file."""
    (tmp_path / "stars.py").write_text(STARS)
    monkeypatch.setattr(form_files, "__path__", [*form_files.__path__, str(tmp_path)])
    table.forms.cache_clear()
    yield TypeAdapter(derived._collect_section()).validate_python
    table.forms.cache_clear()
    del sys.modules["rlhf_core.feedback.forms.stars"], form_files.stars


def test_the_options_of_a_new_form_are_keys_of_collect(collect):
    section = collect({"form": "stars", "stars": 7})
    assert (section.stars, section.scale) == (7, 5)
    assert table.make_form(section).stars == 7
    known = {item.name: item.metadata["description"] for item in fields(section)}
    assert known["stars"] == "stars: largest number of stars"
    assert known["scale"] == "likert: highest score of the panel's or the user's ratings; 1 is the lowest"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"form": "stars", "stars": 1}, "greater than or equal to 2"),
        ({"form": "stars", "stars": 2, "least": 2}, "least is not below stars"),
        ({"stars": 7}, "stars has no effect on form side_by_side; set stars to 3, or form to stars"),
        ({"form": "stars", "scale": 7}, "scale has no effect on form stars; set scale to 5, or form to likert"),
    ],
)
def test_the_options_of_a_form_are_checked_and_refused_for_other_forms(collect, values, message):
    with pytest.raises(ValidationError, match=message):
        collect(values)


def test_two_forms_with_one_option_must_declare_it_equally():
    one = make_dataclass("One", [("scale", int, setting(5, "highest score"))])
    other = make_dataclass("Other", [("scale", int, setting(7, "highest score"))])
    assert options_of({"one": one, "other": one}, "collect")["scale"].owners == ("one", "other")
    with pytest.raises(TypeError, match=r"collect\.scale differs between one and other"):
        options_of({"one": one, "other": other}, "collect")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model.dtype": "bf16"}, "model.dtype bf16 computes in bf16; set run.precision to bf16"),
        ({"model.dtype": "4bit"}, "in 'model', dtype 4bit cannot be trained; set lora, or dtype to bf16"),
        ({"model.lora.r": 0}, "'model.lora.r' is 0; it must be a whole number, at least 1"),
        ({"model.lora.lora_dropout": 0.1}, "in 'model.lora', lora_dropout is 0.1: policies, references and rewards"),
        ({"model.lora.target_modules": 3}, "'model.lora.target_modules' is 3; it must be text, or a list"),
        ({"model.lora.target_modules": "("}, "in 'model.lora', target_modules is not a regular expression"),
        ({"model.lora": "x"}, "'model.lora' is 'x'; it must be a section of keys, or null"),
        ({"model.attn_implementation": "fast"}, "must be one of sdpa, eager, flash_attention_2"),
    ],
)
def test_wrong_values_of_the_model(values, said):
    with pytest.raises(UserError) as error:
        validate(with_values(read_yaml(ROOT / "params.yaml"), values))
    assert said in str(error.value)


def test_lora_is_set_by_one_key_and_unset_by_null():
    raw = with_values(read_yaml(ROOT / "params.yaml"), dict([read_assignment("model.lora.r=8")]))
    lora = validate(raw).model.lora
    assert (lora.r, lora.lora_alpha, lora.target_modules) == (8, 32, "all-linear")
    assert validate(with_values(raw, dict([read_assignment("model.lora=null")]))).model.lora is None
    with pytest.raises(UserError, match=r"Did you mean 'model\.lora\.lora_alpha'"):
        read_assignment("model.lora.lora_alfa=8")
