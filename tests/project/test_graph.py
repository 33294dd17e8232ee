"""In dvc.yaml, dependencies on code equal the scripts' import closures, and parameters equal those that are read."""

import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo

from checkout import environment, make_checkout, run
from flows.run.graph import read_graph
from rlhf_core.algorithms.base.table import policy_algorithms, reward_losses
from rlhf_core.feedback.table import forms
from rlhf_core.scoring.terms_table import terms
from tasks.params.load import load_profile, merged, read_yaml, validate
from tasks.params.schema import Params
from tasks.problems.table import problems
from tools.closure import ROOT, closure, imported_files

PACKAGES = ("rlhf_core/", "helpdesk", "instructions", "tasks/")
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
# Code that a stage finds by name at run time, so that no stage depends on the algorithms it does not run.
METHOD = "rlhf_core/algorithms/${item.method}.py"
POLICIES = {name: f"rlhf_core/algorithms/{name}.py" for name, kind in policy_algorithms().items()}
LOSSES = {f"{kind.__module__.replace('.', '/')}.py" for kind in reward_losses().values()}
OFFLINE = {file for name, file in POLICIES.items() if not policy_algorithms()[name].data.is_rewarded}
FORMS = {f"{kind.__module__.replace('.', '/')}.py" for kind in forms().values()}
TERMS = {f"{kind.__module__.replace('.', '/')}.py" for kind in terms().values()}
TASKS = {f"{kind.__module__.replace('.', '/')}.py" for kind in problems().values()}
FOUND_BY_NAME = {
    "params": {*POLICIES.values(), *LOSSES, *FORMS},
    # Only stages that use a task's rows, gold or judge depend on what its own file imports.
    "prepare": TASKS,
    "collect": TASKS | FORMS,
    "evaluate": TASKS | TERMS,
    "reward": LOSSES | FORMS,
    "rewards": LOSSES | FORMS,
    "offline": OFFLINE,
    "online": TERMS | {*POLICIES.values()} - OFFLINE,
}


def code_dependencies(stage: str) -> set[str]:
    """Code files and folders under `deps`, except the stage's own method."""
    return {dep for dep in STAGES[stage]["deps"] if dep.startswith(PACKAGES)} - {METHOD}


def code_of(stage: str) -> set[str]:
    """The files that a stage may import. Only `params` reads all methods."""
    script, found = f"tasks/stages/{stage}.py", FOUND_BY_NAME.get(stage, ())
    if stage == "params":
        return closure(script, *found, infrastructure=("tasks/runtime/",))
    return closure(script, *found) - {*POLICIES.values()}


def test_prefect_sees_direct_dependencies_only(tmp_path):
    """Offline policies wait only for the feedback. DVC lists every file that a stage reads."""
    folder = make_checkout(tmp_path, {"policy": {"online": ["ppo", "grpo"], "offline": ["dpo"]}})
    assert {stage.name: stage.upstream for stage in read_graph(folder)} == {
        "params": (),
        "prepare": ("params",),
        "base": ("prepare",),
        "sft": ("base",),
        "sample": ("sft",),
        "collect": ("sample",),
        "reward": ("collect",),
        "offline@dpo": ("collect",),
        "online@ppo": ("reward",),
        "online@grpo": ("reward",),
        "evaluate": ("offline@dpo", "online@grpo", "online@ppo"),
        "report": ("evaluate",),
    }


def test_the_graph_fits_one_page():
    assert len((ROOT / "dvc.yaml").read_text().splitlines()) <= 135


@pytest.mark.parametrize("stage", STAGES)
def test_code_dependencies_hold_the_import_closure_and_nothing_else(stage):
    files, named = code_of(stage), code_dependencies(stage)
    assert not {file for file in files if not any(is_within(file, dep) for dep in named)}
    assert not {dep for dep in named if not any(is_within(file, dep) for file in files)}


def is_within(file: str, dependency: str) -> bool:
    return file == dependency or file.startswith(f"{dependency}/")


def test_no_module_imports_itself_through_others():
    """Imports for types and inside functions count, and so do the tasks that their table imports by name."""
    folders = ("rlhf_core", "helpdesk", "instructions", "tasks", "flows")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    imports = {str(path.relative_to(ROOT)): imported_files(str(path.relative_to(ROOT))) for path in files}
    imports["tasks/problems/table.py"] |= TASKS
    for file in imports:
        if not file.endswith("__init__.py"):
            reached, waiting = set(), [file]
            while waiting:
                found = {name for name in imports[waiting.pop()] if not name.endswith("__init__.py")} - reached
                reached |= found
                waiting += found
            assert file not in reached, file


def test_every_named_file_exists():
    for stage in STAGES:
        for dep in code_dependencies(stage):
            assert (ROOT / dep).exists(), dep


def test_offline_methods_do_not_depend_on_rewards():
    rewarded = re.compile(r"policy\.rewards|reward_code|models/reward|scoring|tasks/rewards|online|loops$|trust_region")
    assert not [dep for dep in [*STAGES["offline"]["deps"], *parameters("offline")] if rewarded.search(dep)]


def parameters(stage: str) -> list[str]:
    """The keys of params.effective.yaml that a stage lists."""
    (named,) = STAGES[stage]["params"]
    assert list(named) == ["params.effective.yaml"]
    return named["params.effective.yaml"]


def sections_read(script: str) -> set[str]:
    """Keys of the form params.SECTION[.KEY] in a script's source."""
    sections = "|".join(Params.__dataclass_fields__)
    return set(re.findall(rf"\bparams\.((?:{sections})\b(?:\.\w+)?)", (ROOT / script).read_text()))


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "params"])
def test_parameters_read_are_named(stage):
    """`methods` means the two lists; `section` and `of` mean the section of the stage's own method or model."""
    of = {
        "policy.methods": ["policy.online", "policy.offline"],
        "policy.section": ["policy.${item.method}"],
        "reward_models.of": ["reward_models.sources.${item.model}"],
    }
    named = parameters(stage)
    for read in sections_read(f"tasks/stages/{stage}.py"):
        for key in of.get(read, [read]):
            assert any(key == name or key.startswith(f"{name}.") or name.startswith(f"{key}.") for name in named), key


def test_no_stage_depends_on_the_number_of_parallel_stages():
    """params.effective.yaml omits run.parallel, so that `run` has only keys that affect results."""
    assert all("run" in parameters(stage) for stage in STAGES if stage not in ("params", "report"))
    assert all("run.parallel" not in parameters(stage) for stage in STAGES if stage != "params")


# What an edit reruns: the real graph and stage params; the other commands are replaced by ones that only write outputs.

FAKE = """\
import os, sys
from pathlib import Path
for name in sys.argv[1:]:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("made") if path.suffix else (path.mkdir(exist_ok=True), (path / "made").write_text("made"))
"""


@pytest.fixture(scope="module")
def faked(tmp_path_factory):
    """A checkout with a lock, in which every stage has run."""
    folder = make_checkout(
        tmp_path_factory.mktemp("faked"),
        {
            "policy": {"online": ["ppo", "grpo"], "offline": ["dpo", "ipo"], "rewards": [{"name": "missing_end"}]},
            "reward_models": {"names": ["helpful", "harmless"]},
        },
    )
    graph = yaml.safe_load((folder / "dvc.yaml").read_text())
    (folder / "fake.py").write_text(FAKE)
    for name, stage in graph["stages"].items():
        if name != "params":
            outs = [*stage["outs"], *stage.get("metrics", [])]
            stage["cmd"] = f"{sys.executable} -S fake.py {' '.join(outs)}"
    (folder / "dvc.yaml").write_text(yaml.safe_dump(graph, sort_keys=False))
    run(folder, "dvc", "repro")
    return folder


@pytest.fixture
def edit(faked, tmp_path, monkeypatch):
    """Return a function that edits a file in a copy of that checkout and returns the stages that DVC then runs."""
    folder = tmp_path / "copy"
    shutil.copytree(faked, folder, symlinks=True)
    for key, value in environment(folder).items():
        monkeypatch.setenv(key, value)
    monkeypatch.chdir(folder)

    def rerun(file: str, change) -> list[str]:
        text = (folder / file).read_text()
        changed = change(text)
        assert changed != text
        (folder / file).write_text(changed)
        with Repo() as repo:
            return sorted(stage.addressing for stage in repo.reproduce())

    return rerun


def params_with(**policy):
    return lambda text: yaml.safe_dump(merged(yaml.safe_load(text), {"policy": policy}))


AROUND = {
    "a method's file": (
        "rlhf_core/algorithms/ipo.py", lambda text: f"{text}# edited\n", ["offline@ipo", "params"],
    ),
    "the on-policy loop": (
        "rlhf_core/loops/online.py", lambda text: f"{text}# edited\n", ["online@grpo", "online@ppo"],
    ),
    "what builds rewards": (
        "tasks/rewards/terms.py", lambda text: f"{text}# edited\n", ["evaluate", "online@grpo", "online@ppo"],
    ),
    "policy.rewards": (
        "params.yaml", params_with(rewards=[{"name": "length"}]), ["evaluate", "online@grpo", "online@ppo", "params"],
    ),
    "the sources of one reward model": (
        "params.yaml",
        lambda text: yaml.safe_dump(merged(yaml.safe_load(text), {"reward_models": {"sources": {"harmless": ["x"]}}})),
        ["params", "rewards@harmless"],
    ),
    "run.parallel": (
        "params.yaml", lambda text: f"{text}run: {{parallel: 7}}\n", ["params"],
    ),
    "a shared default that a method overrides": (
        "params.yaml", params_with(online_loop={"warmup_steps": 5}), ["online@ppo", "params"],
    ),
    "a default in the code": (
        "rlhf_core/algorithms/ipo.py",
        lambda text: text.replace("per_token: bool = setting(False", "per_token: bool = setting(True"),
        ["offline@ipo", "params"],
    ),
    "a default of the offline loop, in the code": (
        "tasks/params/derived.py",
        lambda text: text.replace("snapshots: int = setting(4", "snapshots: int = setting(3"),
        ["params"],
    ),
    "a comment of params.yaml": ("params.yaml", lambda text: f"# edited\n{text}", ["params"]),
}  # fmt: skip


@pytest.mark.parametrize("what", AROUND)
def test_an_edit_reruns_the_stages_that_it_affects(edit, what):
    file, change, stages = AROUND[what]
    assert edit(file, change) == stages


@pytest.mark.parametrize("profile", sorted(path.stem for path in Path(ROOT / "profiles").glob("*.yaml")))
def test_profiles_are_valid(profile):
    validate(merged(read_yaml(ROOT / "params.yaml"), load_profile(profile, ROOT)), profile)
