"""The stages' declarations agree with dvc.yaml, and only one module spells the paths of outputs."""

import ast
import re
from pathlib import Path
from pkgutil import resolve_name

import pytest
import yaml

from rlhf_core.common.errors import UserError
from tasks.common.preflight import require
from tasks.files import declared, paths
from tools.closure import ROOT

GRAPH = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
DECLARED = {stage.name: stage for stage in declared.STAGES}
DATA, MODELS = "data/(prepared|samples|feedback)", "models/(base|sft|rewards?|judge|policies)"
SPELLED = re.compile(f"({DATA}|{MODELS})(/|$)|(evaluation|reports)/|.*step-")
NAMES = {Path(value).name for name, value in vars(paths).items() if name.isupper() and Path(value).suffix}


def outputs(stage: str) -> set[Path]:
    """The outputs of a stage in dvc.yaml; for a matrix, the folder of all members."""
    found = [*GRAPH[stage].get("outs", []), *GRAPH[stage].get("metrics", [])]
    return {Path(path).parent if "${" in path else Path(path) for path in found}


def test_every_stage_of_the_graph_is_declared_after_what_it_reads():
    assert set(DECLARED) == set(GRAPH)
    made: set[Path] = set()
    for stage in declared.STAGES:
        assert set(stage.inputs) <= made, stage.name
        made |= set(stage.outputs)


@pytest.mark.parametrize("name", GRAPH)
def test_inputs_and_outputs_are_those_of_the_graph(name):
    made = {path for stage in GRAPH for path in outputs(stage)}
    read = {Path(path) for path in GRAPH[name].get("deps", [])} & made
    assert set(DECLARED[name].outputs) == outputs(name)
    assert set(DECLARED[name].inputs) == read
    assert DECLARED[name].is_matrix == ("matrix" in GRAPH[name])


@pytest.mark.parametrize("name", GRAPH)
def test_a_stage_has_checks_exactly_where_it_trains(name):
    text = (ROOT / "tasks" / "stages" / f"{name}.py").read_text()
    assert bool(DECLARED[name].checks) == ("\ndef checks(" in text)
    if DECLARED[name].checks:
        assert callable(resolve_name(DECLARED[name].checks))


def test_a_missing_input_is_named_with_the_stage_that_makes_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"stage sft reads data/prepared, .*: rlhf run --only prepare$"):
        require("sft")
    paths.PREPARED.mkdir(parents=True)
    with pytest.raises(UserError, match=r"stage sft reads models/base, .*: rlhf run --only base$"):
        require("sft")
    with pytest.raises(UserError, match=r"stage online@ppo reads models/sft, .*: rlhf run --only sft$"):
        require("online@ppo")
    assert declared.makers(paths.POLICIES) == ["online", "offline"]


def spelled(file: Path) -> set[str]:
    """The string constants of a file that begin with the path of an output, or end with the name of a file in one."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    texts = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))
    return {text for text in texts if SPELLED.match(text) or Path(text).name in NAMES}


def test_paths_of_outputs_come_from_one_module():
    """`PREPARED` and similar constants: moving a folder is a change in one place."""
    files = [path for package in ("tasks", "flows") for path in sorted((ROOT / package).rglob("*.py"))]
    found = {str(path.relative_to(ROOT)): texts for path in files if (texts := spelled(path))}
    del found["tasks/files/paths.py"]
    assert not found
