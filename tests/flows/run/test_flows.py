"""flows/ without a server: the graph, changed parameters, stages as process groups, isolated checkouts."""

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from flow_scratch import PARAMS_YAML, calls, commit, dvc, free_port, make_scratch
from flows.run.changes import Changes, require_inputs
from flows.run.experiment import experiment_refs
from flows.run.form import Form, chosen
from flows.run.graph import Stage, _in_order, read_graph, select
from flows.run.lineage import comparison_markdown, terms_of
from flows.run.stages import StageRunner
from flows.run.workspace import open_workspace, plan
from flows.servers import services, supervise
from flows.servers.settings import find_root
from rlhf_core.common.errors import UserError
from tasks.params.load import ROOT, load_params
from tasks.params.schema import all_keys
from tasks.reporting.comparison import figures
from tasks.runtime.git import git


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RLHF_ROOT", str(tmp_path))
    monkeypatch.setenv("SHELL", "/bin/sh")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    return make_scratch(tmp_path)


# The graph


def test_graph_is_read_from_dvc(scratch: Path) -> None:
    stages = read_graph(scratch)
    assert [stage.name for stage in stages] == ["prepare", "sft", "offline@dpo", "online@ppo", "online@grpo", "report"]
    assert stages[0].upstream == ()
    assert stages[2].upstream == ("sft",)
    assert stages[5].upstream == ("offline@dpo", "online@grpo", "online@ppo")


def test_stages_come_after_what_they_need() -> None:
    """Written as c, a, b, where c needs b and b needs a."""
    assert [stage.name for stage in _in_order({"c": ("b",), "a": (), "b": ("a",)})] == ["a", "b", "c"]


def test_graph_omits_indirect_dependencies(scratch: Path) -> None:
    """The report also reads the prepared data and the SFT model, but the policies need both already."""
    text = (scratch / "dvc.yaml").read_text()
    text = text.replace("deps: [models/policies]", "deps: [models/policies, models/sft, data/prepared]")
    (scratch / "dvc.yaml").write_text(text)
    stages = {stage.name: stage.upstream for stage in read_graph(scratch)}
    assert stages["report"] == ("offline@dpo", "online@grpo", "online@ppo")
    assert [stage.name for stage in select(read_graph(scratch), "offline@dpo")] == ["prepare", "sft", "offline@dpo"]


STAGES = [Stage("a", ()), Stage("b", ("a",)), Stage("c@x", ("b",)), Stage("c@y", ("b",)), Stage("d", ("a",))]


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        (None, ["a", "b", "c@x", "c@y", "d"]),
        ("b", ["a", "b"]),
        ("c@y", ["a", "b", "c@y"]),
        ("c", ["a", "b", "c@x", "c@y"]),
        ("d", ["a", "d"]),
    ],
)
def test_only_selects_the_stages_that_a_stage_needs(only: str | None, expected: list[str]) -> None:
    assert [stage.name for stage in select(STAGES, only)] == expected


def test_unknown_stage_suggests_a_similar_one() -> None:
    with pytest.raises(UserError, match=r"no stage 'c@z'.*a, b, c@x, c@y, d.*Did you mean c@"):
        select(STAGES, "c@z")


def test_broken_dvc_yaml_is_a_message(scratch: Path) -> None:
    (scratch / "dvc.yaml").write_text("stages: {a: {cmd: true, deps: 3}}")
    with pytest.raises(UserError, match=r"dvc\.yaml"):
        read_graph(scratch)


def test_root_is_found_in_parent_folders(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RLHF_ROOT")
    monkeypatch.chdir(scratch / "tasks")
    assert find_root() == scratch
    monkeypatch.chdir("/")
    with pytest.raises(UserError, match=r"no dvc\.yaml"):
        find_root()


# Changed parameters


def test_single_values_override_the_profile(scratch: Path) -> None:
    resolved = Changes("fast", {"policy.dpo.beta": 0.7}).resolve(scratch)
    assert (resolved.params.sft.learning_rate, resolved.params.policy.dpo.beta) == (0.5, 0.7)
    assert resolved.is_changed
    assert (scratch / "params.yaml").read_text() == PARAMS_YAML


def test_equal_values_are_no_change(scratch: Path) -> None:
    assert not Changes().resolve(scratch).is_changed
    assert not Changes(overrides={"sft.learning_rate": 0.001, "run.seed": 0}).resolve(scratch).is_changed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (Changes("fats"), "profile 'fats' does not exist.*fast"),
        (Changes(overrides={"sft.learning_rat": 1}), "unknown key 'sft.learning_rat'.*'sft.learning_rate'"),
        (Changes(overrides={"sft.learning_rate": "high"}), "'sft.learning_rate' is 'high'"),
        (Changes(overrides={"run.parallel": 0}), "'run.parallel' is 0"),
    ],
)
def test_bad_changes_name_the_key(scratch: Path, changes: Changes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        changes.resolve(scratch)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"prepare.path": "nowhere.jsonl"}, "prepare.path nowhere.jsonl does not exist"),
        ({"model.path": "nowhere"}, "model.path nowhere does not exist"),
        ({"model.path": "tasks"}, "model.path tasks has no config.json"),
        ({"prepare.path": "helpdesk/world.json"}, "still the help desk's .* Set prepare.path"),
    ],
)
def test_missing_inputs_are_reported_before_the_run(scratch: Path, overrides: dict[str, str], message: str) -> None:
    require_inputs(Changes().resolve(scratch).params, scratch)
    with pytest.raises(UserError, match=message):
        require_inputs(Changes(overrides=overrides).resolve(scratch).params, scratch)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "model.path",
            "models/sft",
            "model.path models/sft is an output of stage sft, so it cannot be an input.\n"
            "Copy it: mkdir -p inputs/models && cp -r models/sft inputs/models/sft. "
            "Then set model.path to inputs/models/sft.",
        ),
        ("model.path", "./models/policies/ppo/", "ppo/ is in models/policies, an output of stage online, so it"),
        ("model.path", "link", "model.path link is an output of stage sft"),
        (
            "prepare.path",
            "data",
            "prepare.path data contains data/prepared, an output of stage prepare, so it cannot be an input.\n"
            "Set prepare.path to a path without outputs, such as one in inputs/data.",
        ),
        ("policy.reward_code", "reports/report.json", "cp -r reports/report.json inputs/report.json. Then set"),
    ],
)
def test_an_output_is_refused_as_input(scratch: Path, key: str, value: str, message: str) -> None:
    (scratch / "link").symlink_to(scratch / "models/sft")
    with pytest.raises(UserError, match=re.escape(message)):
        require_inputs(Changes(overrides={key: value}).resolve(scratch).params, scratch)
    absolute = {key: str(scratch / value)}
    with pytest.raises(UserError, match="an output of stage"):
        require_inputs(Changes(overrides=absolute).resolve(scratch).params, scratch)


@pytest.mark.parametrize(
    ("profile", "row"),
    [
        ("preferences", '{"prompt": "Hi", "chosen": "Hello", "rejected": "No"}'),
        ("verifiable", '{"question": "2 + 3?", "answer": "#### 5"}'),
    ],
)
def test_a_profile_for_pretrained_models_needs_one(tmp_path: Path, profile: str, row: str) -> None:
    """Its learning rates are too low to train from scratch. The user's own model or higher rates are accepted."""
    data, model = tmp_path / "rows.jsonl", tmp_path / "model.json"
    data.write_text(f"{row}\n")
    model.write_text((ROOT / "helpdesk/model.json").read_text())
    own = {"prepare.path": str(data)}
    with pytest.raises(
        UserError, match=r"sft.learning_rate 1e-05 suits only a pretrained model.*Set model.path or model.hub"
    ):
        require_inputs(Changes(profile, own).resolve(ROOT).params, ROOT)
    for change in ({"model.path": str(model)}, {"model.hub": "org/model@1"}, {"sft.learning_rate": 1e-4}):
        require_inputs(Changes(profile, own | change).resolve(ROOT).params, ROOT)
    require_inputs(Changes(overrides={"sft.learning_rate": 1e-5}).resolve(ROOT).params, ROOT)  # on the help desk


def test_a_hub_id_replaces_a_path(scratch: Path) -> None:
    hub = {
        "prepare.hub": "org/rows@1234567",
        "prepare.path": "nowhere",
        "model.hub": "org/model@1",
        "model.path": "nowhere",
    }
    require_inputs(Changes(overrides=hub).resolve(scratch).params, scratch)


def test_label_names_the_changes() -> None:
    assert Changes().label() == "default"
    assert Changes("fast", {"policy.dpo.beta": 0.2, "sft.epochs": 2}).label() == "fast-dpo.beta-0.2-sft.epochs-2"
    assert Changes(overrides={"policy.online": ["ppo", "rloo"]}).label() == "policy.online-ppo-rloo"
    assert Changes(overrides={"prepare.path": "../x"}).label() == "prepare.path-.-x"


def test_a_long_label_ends_after_a_whole_word() -> None:
    """48 characters at most: two changes have 36, three 49. A long value ends at a hyphen."""
    three = {"policy.dpo.learning_rate": 1e-5, "policy.ppo.clip": 0.1, "sft.epochs": 2}
    assert Changes(overrides=three).label() == "dpo.learning_rate-1e-05-ppo.clip-0.1"
    assert Changes(overrides={"prepare.path": "my-data/of-many-words/that-make-a-long-name.jsonl"}).label() == (
        "prepare.path-my-data-of-many-words-that-make-a"
    )
    assert Changes(overrides={"prepare.path": "x" * 60}).label() == "prepare.path"


def test_run_is_named_by_what_it_is(scratch: Path) -> None:
    def name(changes: Changes) -> str:
        return changes.resolve(scratch).title()

    assert name(Changes()) == "default: ppo, grpo, dpo"
    assert name(Changes("fast")) == "fast: ppo, grpo, dpo"
    assert name(Changes("fast", {"policy.dpo.beta": 0.2})) == "fast-dpo.beta-0.2"


def test_a_flow_takes_what_rlhf_run_has_resolved(scratch: Path) -> None:
    """The files are read once for a run, even if they change meanwhile; a flow with other changes reads them."""
    from flows.run.flow import _resolved, handing

    changes = Changes.from_command_line("default", ["policy.dpo.beta=0.7"])
    resolved = changes.resolve(scratch)
    with handing(resolved):
        assert _resolved(Changes(overrides={"policy.dpo.beta": 0.7})) is resolved
        assert _resolved(Changes(overrides={"policy.dpo.beta": 0.8})).params.policy.section("dpo").beta == 0.8
    again = _resolved(changes)
    assert again == resolved and again is not resolved


def test_form_gives_only_what_was_filled_in() -> None:
    assert chosen(Form()) == {}
    filled = Form.model_validate({"policy": {"dpo": {"beta": 0.2}}, "run": {"device": "cpu"}})
    assert chosen(filled) == {"run.device": "cpu", "policy.dpo.beta": 0.2}


def test_form_has_bounds_choices_and_descriptions() -> None:
    definitions = Form.model_json_schema()["$defs"]
    assert definitions["dpo"]["properties"]["beta"]["exclusiveMinimum"] == 0
    assert definitions["run"]["properties"]["device"]["enum"] == ["auto", "cpu", "cuda"]
    prompts = load_params(ROOT / "params.yaml").evaluate.prompts
    assert definitions["evaluate"]["properties"]["prompts"] == {
        "description": f"number of test prompts for the final policies [{prompts}]",
        "minimum": 2,
        "title": "Prompts",
        "type": "integer",
    }
    with pytest.raises(ValueError, match="greater than 0"):
        Form.model_validate({"policy": {"dpo": {"beta": 0}}})


def test_form_begins_with_data_model_and_methods() -> None:
    """Then one or two fields per stage. No field appears twice, and `overrides` accepts every other key."""
    schema = Form.model_json_schema()
    titles = [section["title"] for section in schema["properties"].values()]
    assert titles[:4] == ["Data", "Model", "Methods", "Supervised fine-tuning"]
    assert list(schema["$defs"]["prepare"]["properties"])[:2] == ["format", "path"]
    methods = schema["$defs"]["policy"]["properties"]
    assert list(methods) == ["online", "offline", "ppo", "grpo", "dpo"]
    assert [methods[name]["title"] for name in ("ppo", "grpo", "dpo")] == ["PPO", "GRPO", "DPO"]
    shown = {name: list(form["properties"]) for name, form in schema["$defs"].items()}
    assert shown["ppo"] == shown["grpo"] == ["kl_coef", "learning_rate"]
    assert shown["dpo"] == ["beta", "learning_rate"]
    assert all(len(names) <= 5 for names in shown.values())
    known = set(all_keys())
    assert all(key in known for key in _leaves(schema, schema["properties"]))


def _leaves(schema: dict[str, Any], properties: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted keys of a form's fields."""
    for name, field in properties.items():
        if "$ref" in field:
            yield from _leaves(schema, schema["$defs"][field["$ref"].split("/")[-1]]["properties"], f"{prefix}{name}.")
        else:
            yield prefix + name


def test_flow_shows_its_parameters_with_distinct_titles() -> None:
    """As in Prefect's form: distinct titles, settings before the name, and a description for each."""
    from flows.run.flow import rlhf_pipeline

    shown = rlhf_pipeline.parameters.properties
    titles = [shown[name]["title"] for name in sorted(shown, key=lambda name: shown[name]["position"])]
    assert titles == ["Profile", "Settings", "Any other parameter", "Experiment name", "Seeds", "Only this stage"]
    assert all(field["description"] for field in shown.values())
    assert {name: field["default"] for name, field in shown.items()} == {
        "profile": "default", "parameters": {}, "overrides": {}, "name": "", "seeds": [], "only": "",
    }  # fmt: skip
    # A run started through the API may omit some of them.
    given = rlhf_pipeline.validate_parameters({"overrides": {"run.seed": 1}, "parameters": {"policy": {"dpo": {}}}})
    assert (given["profile"], given["name"], chosen(given["parameters"])) == ("default", "", {})


# One stage


def run_stage(root: Path, stage: str, **environment: str) -> tuple[object, list[str]]:
    lines: list[str] = []
    outcome = StageRunner(root, {**os.environ, **environment}).run(stage, lines.append)
    return outcome, lines


def test_stage_streams_its_lines(scratch: Path) -> None:
    outcome, lines = run_stage(scratch, "prepare")
    assert outcome.code == 0
    assert lines[:3] == [
        "Running stage 'prepare':",
        "> python -m tasks.fake prepare data/prepared",
        "working on prepare",
    ]
    assert not any("git add" in line for line in lines)


def test_a_users_error_is_distinguished_from_a_bug(scratch: Path) -> None:
    mistake, lines = run_stage(scratch, "prepare", FAKE_MISTAKE="prepare")
    assert mistake.code != 0
    assert lines[-1] == "working on prepare"  # the end of the run shows the mistake
    assert mistake.is_mistake
    assert mistake.message == "rows.jsonl, line 3: no field 'prompt'. Add it."
    bug, lines = run_stage(scratch, "prepare", FAKE_BUG="prepare")
    assert not bug.is_mistake
    assert bug.message.startswith("failed to reproduce 'prepare'")
    assert "ZeroDivisionError: a bug" in lines
    assert not (scratch / "dvc.lock").exists()


def test_a_line_like_an_error_is_logged_if_the_stage_continues(scratch: Path) -> None:
    """Only the mistake with which it ends, here `error: 6`, is left to the end of the run."""
    said = ["error: 1", "2", "3", "4", "5"]
    for ending in ("", "raise SystemExit('error: 6')"):
        (scratch / "talk.py").write_text(f"print(*{said!r}, sep=chr(10), flush=True)\n{ending}")
        lines: list[str] = []
        outcome = StageRunner(scratch, dict(os.environ)).call("talk", ["talk"], lines.append)
        assert (lines, outcome.message) == (said, "6" if ending else "")


def hanging(root: Path) -> psutil.Process:
    """Wait for the hanging stage and return its process."""
    path = root / ".rlhf" / "hanging"
    deadline = time.monotonic() + 60
    while not path.is_file() or not path.read_text():
        assert time.monotonic() < deadline, "the stage did not start"
        time.sleep(0.02)
    return psutil.Process(int(path.read_text()))


def is_gone(process: psutil.Process) -> bool:
    """Return whether a process ends within 30 s."""
    psutil.wait_procs([process], timeout=30)
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_stop_kills_the_stage_and_its_children(scratch: Path) -> None:
    runner = StageRunner(scratch, {**os.environ, "FAKE_HANG": "prepare"})
    outcomes = []
    thread = threading.Thread(target=lambda: outcomes.append(runner.run("prepare", lambda line: None)))
    thread.start()
    process = hanging(scratch)
    runner.stop()
    thread.join(30)
    assert is_gone(process)
    assert outcomes[0].code != 0
    assert "was not started" in runner.run("prepare", print).message


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals the death of a parent process")
def test_stage_dies_with_its_parent(scratch: Path) -> None:
    script = "import os; from flows.run.stages import StageRunner; from pathlib import Path; "
    script += "StageRunner(Path.cwd(), dict(os.environ)).run('prepare', print)"
    path = str(Path(supervise.__file__).parents[2])
    environment = {**os.environ, "FAKE_HANG": "prepare", "PYTHONPATH": path}
    starter = subprocess.Popen([sys.executable, "-P", "-c", script], cwd=scratch, env=environment)
    process = hanging(scratch)
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    assert is_gone(process)


# Isolated checkouts


def test_unchanged_run_works_in_place(scratch: Path) -> None:
    with open_workspace(scratch, Changes().resolve(scratch)) as workspace:
        assert workspace.checkout == scratch
        assert workspace.finish([]) == scratch / "reports"
    assert not (scratch / "runs").exists()


def test_changed_run_becomes_an_experiment_and_does_not_touch_the_checkout(scratch: Path) -> None:
    dvc(scratch, "repro")
    commit(scratch, "lock")
    with open_workspace(
        scratch, Changes(overrides={"policy.dpo.learning_rate": 0.4}).resolve(scratch), "mine"
    ) as workspace:
        dvc(workspace.checkout, "repro")
        stages = [stage.name for stage in read_graph(workspace.checkout)]
        assert workspace.finish(stages) == scratch / "runs" / "mine"
    # only DPO and the report ran again: the cache is shared
    assert calls(scratch) == ["prepare", "sft", "dpo", "ppo", "grpo", "dpo"]
    assert (scratch / "params.yaml").read_text() == PARAMS_YAML
    assert (scratch / "models/policies/dpo/value").read_text() == "0.3"
    assert sorted(path.name for path in (scratch / "runs/mine").iterdir()) == ["report.json"]
    dvc(scratch, "exp", "apply", "mine")
    assert "up to date" in dvc(scratch, "status")
    assert (scratch / "models/policies/dpo/value").read_text() == "0.4"
    assert (scratch / "params.yaml").read_text() == PARAMS_YAML.replace("0.3}", "0.4}")


def test_edits_and_untracked_files_are_in_the_clone(scratch: Path) -> None:
    (scratch / "profiles/fast.yaml").write_text("sft:\n  learning_rate: 0.25\n")
    (scratch / "notes.txt").write_text("untracked")
    with open_workspace(scratch, Changes("fast").resolve(scratch)) as workspace:
        assert (workspace.checkout / "profiles/fast.yaml").read_text() == "sft:\n  learning_rate: 0.25\n"
        assert (workspace.checkout / "notes.txt").read_text() == "untracked"
        assert (workspace.checkout / "rows.jsonl").is_file()  # ignored by git, named in params.yaml
        assert re.search("learning_rate: 0.25  # found by trying", (workspace.checkout / "params.yaml").read_text())


def test_experiment_stores_files_without_a_commit(scratch: Path) -> None:
    """A new file and one added to git, but no data, no large file, and no log that grows during the run.

    What git ignores stays as HEAD or the user's index has it: DVC's own file is not added, rows.jsonl not removed.
    Applying the experiment restores what is missing or differs.
    """
    staged = "mlartifacts/staged.py"
    git(scratch, "add", "--force", "rows.jsonl")
    commit(scratch, "ignored rows")
    names = {"my/rows.jsonl": "{}\n", "notes": "a", staged: "y = 1\n", "tasks/mine.py": "x = 1\n", "ü b": ""}
    for name, text in (names | {"large.bin": "0" * (1 << 20), "run.log": "started"}).items():
        (scratch / name).parent.mkdir(exist_ok=True)
        (scratch / name).write_text(text)
    git(scratch, "add", "--force", staged)
    changes = Changes(overrides={"prepare.path": "my/rows.jsonl"})
    with open_workspace(scratch, changes.resolve(scratch), "mine") as workspace:
        dvc(workspace.checkout, "repro")
        for name in ("run.log", "tasks/mine.py"):
            (scratch / name).write_text("other")
        workspace.finish([stage.name for stage in read_graph(workspace.checkout)])
    assert workspace.messages == (
        "Untracked files stored in the experiment: notes, run.log, tasks/mine.py, ü b",
        "Not stored (untracked data, links, 1 MiB or more): large.bin, my/rows.jsonl. To store one: git add FILE",
    )
    (reference,) = experiment_refs(scratch, "mine")
    stored = set(git(scratch, "diff", "--name-only", "-z", "HEAD", reference).decode().split("\0"))
    assert stored == {"", "notes", "tasks/mine.py", "ü b", staged, "dvc.lock", "params.yaml"}
    (scratch / "ü b").unlink()
    dvc(scratch, "exp", "apply", "mine")
    assert {name: (scratch / name).read_text() for name in names} == names
    assert ((scratch / "run.log").read_text(), (scratch / "large.bin").stat().st_size) == ("other", 1 << 20)
    assert "up to date" in dvc(scratch, "status")


def test_resumed_run_stores_the_same_files(scratch: Path) -> None:
    (scratch / "mine.py").write_text("x = 1\n")
    changes = Changes(overrides={"sft.learning_rate": 0.4})
    with pytest.raises(ZeroDivisionError), open_workspace(scratch, changes.resolve(scratch), "mine"):
        raise ZeroDivisionError
    with open_workspace(scratch, changes.resolve(scratch), "mine") as workspace:
        assert (workspace.stored, workspace.messages) == (("mine.py",), ())


def test_a_corrected_untracked_file_is_other_code(scratch: Path) -> None:
    """The clone of a failed run has the file as it was, so the run must not continue there. A log is no code."""
    (scratch / "mine.py").write_text("x = 1\n")
    changes = Changes(overrides={"sft.learning_rate": 0.4})
    first = plan(scratch, changes.resolve(scratch)).folder
    with pytest.raises(ZeroDivisionError), open_workspace(scratch, changes.resolve(scratch), "mine"):
        raise ZeroDivisionError
    (scratch / "run.log").write_text("started\n")
    assert plan(scratch, changes.resolve(scratch)).folder == first
    (scratch / "mine.py").write_text("x = 2\n")
    assert plan(scratch, changes.resolve(scratch)).folder != first
    with pytest.raises(UserError, match="other code or parameters"):
        plan(scratch, changes.resolve(scratch), "mine")


def test_models_that_git_ignores_are_in_the_clone(scratch: Path) -> None:
    """DVC follows links to files, not to folders."""
    model = scratch / "inputs/rewards/one/config.json"
    model.parent.mkdir(parents=True)
    model.write_text("{}")
    (scratch / ".git/info/exclude").write_text("/inputs/rewards/*\n")
    with open_workspace(scratch, Changes("fast").resolve(scratch)) as workspace:
        there = workspace.checkout / "inputs/rewards/one"
        assert (there / "config.json").resolve() == model
        assert not there.is_symlink()


def test_failed_run_sees_corrections_of_its_data(scratch: Path) -> None:
    (scratch / "my").mkdir()
    (scratch / "my/rows.jsonl").write_text('{"prompt": ')
    changes = Changes(overrides={"prepare.path": "my/rows.jsonl"})
    with pytest.raises(ZeroDivisionError), open_workspace(scratch, changes.resolve(scratch)):
        raise ZeroDivisionError
    (scratch / "my/rows.jsonl").write_text("{}\n")
    with open_workspace(scratch, changes.resolve(scratch)) as workspace:
        assert (workspace.checkout / "my/rows.jsonl").read_text() == "{}\n"
        dvc(workspace.checkout, "repro")
        workspace.finish([stage.name for stage in read_graph(workspace.checkout)])
    assert (scratch / "my/rows.jsonl").read_text() == "{}\n"


def test_data_outside_the_checkout_gets_its_absolute_path(
    scratch: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside") / "rows.jsonl"
    outside.write_text("{}\n")
    relative = os.path.relpath(outside, scratch)
    with open_workspace(scratch, Changes(overrides={"prepare.path": relative}).resolve(scratch)) as workspace:
        assert f"path: {outside}" in (workspace.checkout / "params.yaml").read_text()
        dvc(workspace.checkout, "repro")


def test_failed_run_is_resumed_only_by_the_same_run(scratch: Path) -> None:
    changes = Changes(overrides={"sft.learning_rate": 0.4})
    with pytest.raises(ZeroDivisionError), open_workspace(scratch, changes.resolve(scratch), "mine") as workspace:
        (workspace.checkout / "half").touch()
        raise ZeroDivisionError
    with (
        pytest.raises(UserError, match=r"other code or parameters\.\nChoose another --name.*rlhf runs --remove mine"),
        open_workspace(scratch, Changes(overrides={"sft.learning_rate": 0.5}).resolve(scratch), "mine"),
    ):
        pass
    with open_workspace(scratch, changes.resolve(scratch), "mine") as workspace:
        assert (workspace.checkout / "half").exists()
        with (
            pytest.raises(UserError, match="already running"),
            open_workspace(scratch, changes.resolve(scratch), "mine"),
        ):
            pass


def test_name_of_an_experiment_is_unique(scratch: Path) -> None:
    changes = Changes(overrides={"sft.learning_rate": 0.4})
    with open_workspace(scratch, changes.resolve(scratch), "mine") as workspace:
        dvc(workspace.checkout, "repro")
        workspace.finish(["prepare", "sft"])
    with (
        pytest.raises(UserError, match="experiment mine already exists"),
        open_workspace(scratch, changes.resolve(scratch), "mine"),
    ):
        pass
    assert plan(scratch, changes.resolve(scratch), "other").name == "other"


@pytest.mark.parametrize("name", ["a b", "../x", "", "x.lock", "-x", "a..b"])
def test_bad_names_are_refused(scratch: Path, name: str) -> None:
    with (
        pytest.raises(UserError, match="not a valid experiment name"),
        open_workspace(scratch, Changes().resolve(scratch), name),
    ):
        pass


def test_checkout_without_a_commit_is_a_message(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / "params.yaml").write_text(PARAMS_YAML)
    with (
        pytest.raises(UserError, match="has no commit to start from"),
        open_workspace(tmp_path, Changes().resolve(tmp_path), "x"),
    ):
        pass


# Results


def test_comparison_puts_the_best_first() -> None:
    """The order is by win rate against SFT; against the references it is reversed."""
    rate = {"value": 0.6, "low": 0.55, "high": 0.65, "n": 300, "judge": "gold"}
    better = {**rate, "value": 0.7}
    report = {
        "policies": {
            "ppo": {"win_rate_vs_sft": {**rate, "value": 0.58}, "win_rate_vs_reference": better, "kl": 1.0},
            "dpo": {"win_rate_vs_sft": rate, "win_rate_vs_reference": rate, "kl": 12.345, "mean_length": 31.25},
        },
        "reward_model": {"accuracy": 0.66},
    }
    assert comparison_markdown(report).splitlines()[2:4] == [
        "| dpo | 0.600 (0.550–0.650) | 0.600 (0.550–0.650) | 12.3 | – | 31.2 |",
        "| ppo | 0.580 (0.550–0.650) | 0.700 (0.550–0.650) | 1.00 | – | – |",
    ]
    assert figures(report) == {
        "win_rate_vs_sft/ppo": 0.58, "win_rate_vs_sft/ppo_low": 0.55, "win_rate_vs_sft/ppo_high": 0.65,
        "win_rate_vs_sft/dpo": 0.6, "win_rate_vs_sft/dpo_low": 0.55, "win_rate_vs_sft/dpo_high": 0.65,
        "win_rate_vs_reference/ppo": 0.7, "win_rate_vs_reference/dpo": 0.6,
        "kl/ppo": 1.0, "kl/dpo": 12.345, "mean_length/dpo": 31.25,
        "reward_model/accuracy": 0.66,
    }  # fmt: skip
    assert comparison_markdown({}) == ""


@pytest.mark.parametrize(("judge_model", "judge"), [(None, "gold rubric"), ({"accuracy": 0.7}, "gold rubric 0123abcd")])
def test_terms_of_a_win_rate(tmp_path: Path, judge_model: dict[str, float] | None, judge: str) -> None:
    """The judge (with a digest if it is a model), and the digest and number of the prompts."""
    inputs = {"models/judge": "0123abcd4567.dir"}
    report = {
        "judge": "gold rubric",
        "judge_model": judge_model,
        "prompts": 300,
        "sources": {"stages": {"evaluate": {"inputs": inputs}}},
    }
    for name, text in {"reports/report.json": json.dumps(report), "data/prepared/prompts_test.jsonl": "rows"}.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    digest = hashlib.sha256(b"rows").hexdigest()[:8]
    assert terms_of(tmp_path) == {"judge": judge, "prompts": "300", "test_prompts": digest}
    (tmp_path / "data/prepared/prompts_test.jsonl").write_text("other rows")
    assert terms_of(tmp_path)["test_prompts"] != digest
    (tmp_path / "reports/report.json").unlink()
    assert terms_of(tmp_path) == {}


# Services


def test_port_in_use_names_port_and_flag(scratch: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"Port {port} .* in use\.\n.*--mlflow-port"):
            services.up(scratch, prefect_port=free_port(), mlflow_port=port)
    assert not (scratch / ".rlhf" / "services.json").exists()


def test_down_stops_every_process_with_the_mark(scratch: Path) -> None:
    assert services.down(scratch) == []
    environment = {**os.environ, services.MARK: str(scratch), services.PART: "worker"}
    process = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], env=environment)
    assert services.down(scratch) == ["worker"]
    process.wait(30)
    assert services.down(scratch) == []
    assert services.find(scratch) is None
