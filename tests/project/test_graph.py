"""dvc.yaml is the graph: its dependencies on code are the scripts' import closures, its parameters are those read."""

import re
from pathlib import Path

import pytest
import yaml

from flows.run.graph import read_graph
from rlhf_core.algorithms.base.table import policy_algorithms, reward_losses
from tasks.params.schema import all_keys, load_params
from tools.closure import ROOT, closure

PACKAGES = ("rlhf_core/", "helpdesk", "tasks/")
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
# Code that a stage finds by name at run time, so that no stage depends on the algorithms it does not run.
ALGORITHM = "rlhf_core/algorithms/${item.algorithm}.py"
POLICIES = {f"rlhf_core/algorithms/{name}.py" for name in policy_algorithms()}
FOUND_BY_NAME = {
    "policy": POLICIES,
    "reward": {f"{kind.__module__.replace('.', '/')}.py" for kind in reward_losses().values()},
}


def code_dependencies(stage: str) -> set[str]:
    """Files and folders of code under `deps`, without the stage's own method."""
    return {dep for dep in STAGES[stage]["deps"] if dep.startswith(PACKAGES)} - {ALGORITHM}


def test_prefect_sees_direct_dependencies_only():
    """A line from prepare to report, the policies side by side; DVC itself names every file that a stage reads."""
    assert {stage.name: stage.upstream for stage in read_graph(ROOT)} == {
        "prepare": (),
        "base": ("prepare",),
        "sft": ("base",),
        "collect": ("sft",),
        "reward": ("collect",),
        "policy@ppo": ("reward",),
        "policy@grpo": ("reward",),
        "policy@dpo": ("reward",),
        "evaluate": ("policy@dpo", "policy@grpo", "policy@ppo"),
        "report": ("evaluate",),
    }


@pytest.mark.parametrize("stage", STAGES)
def test_code_dependencies_hold_the_import_closure_and_nothing_else(stage):
    files = closure(f"tasks/stages/{stage}.py", *FOUND_BY_NAME.get(stage, ())) - POLICIES
    named = code_dependencies(stage)
    assert not {file for file in files if not any(is_within(file, dep) for dep in named)}
    assert not {dep for dep in named if not any(is_within(file, dep) for file in files)}


def is_within(file: str, dependency: str) -> bool:
    return file == dependency or file.startswith(f"{dependency}/")


def test_every_named_file_exists():
    for stage in STAGES:
        for dep in code_dependencies(stage):
            assert (ROOT / dep).exists(), dep


def sections_read(script: str) -> set[str]:
    """Keys of the form params.SECTION[.KEY] that a script's own text names."""
    text = (ROOT / script).read_text()
    return set(re.findall(r"params\.((?:run|model|prepare|base|sft|collect|reward|policy|evaluate)(?:\.\w+)?)", text))


@pytest.mark.parametrize("stage", STAGES)
def test_parameters_read_are_named(stage):
    named = [key.replace("${item.algorithm}", "") for key in STAGES[stage].get("params", [])]
    for key in sections_read(f"tasks/stages/{stage}.py"):
        assert any(key.startswith(name.rstrip(".")) or name.startswith(key + ".") for name in named), (stage, key)


def test_params_yaml_names_every_key():
    """A default in code then never bears on a result: DVC sees every value."""
    load_params(ROOT / "params.yaml")

    def keys(section, prefix=""):
        for key, value in section.items():
            yield prefix + key
            if isinstance(value, dict):
                yield from keys(value, f"{prefix}{key}.")

    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert set(keys(raw)) == set(all_keys())


@pytest.mark.parametrize("profile", sorted(path.stem for path in Path(ROOT / "profiles").glob("*.yaml")))
def test_profiles_are_valid(profile):
    from tasks.params.schema import load_profile, overlay, read_yaml, validate

    validate(overlay(read_yaml(ROOT / "params.yaml"), load_profile(profile, ROOT)), profile)
