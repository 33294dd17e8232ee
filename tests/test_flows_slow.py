"""Whole runs of a scratch pipeline through real Prefect, DVC and MLflow, with servers and without."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from flow_scratch import PARAMS_YAML, calls, commit, dvc, free_port, make_scratch, rlhf
from flows import services

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, services.Services]]:
    """A checkout with `rlhf up` on free ports."""
    root = make_scratch(tmp_path_factory.mktemp("served"))
    ports = [free_port(), free_port()]
    started = rlhf(root, "up", "--prefect-port", str(ports[0]), "--mlflow-port", str(ports[1]))
    try:
        assert started.returncode == 0, started.stderr
        assert f"http://127.0.0.1:{ports[0]}" in started.stdout
        yield root, services.Services(*ports)
    finally:
        stopped = rlhf(root, "down")
    assert stopped.stdout.strip() == "Stopped: worker, mlflow, prefect."
    assert rlhf(root, "down").stdout.strip() == "Nothing was running."


def forget_calls(root: Path) -> None:
    (root / ".rlhf" / "calls").write_text("")


def post(address: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as response:
        return json.load(response)


def get(address: str) -> Any:
    with urllib.request.urlopen(address) as response:
        return json.load(response)


def test_without_a_server(tmp_path: Path) -> None:
    root = make_scratch(tmp_path)
    meeting = tmp_path / ".rlhf" / "meeting"
    meeting.mkdir()
    # the three policies wait for each other: they can only end if they run side by side
    done = rlhf(root, "run", FAKE_MEET=str(meeting))
    assert done.returncode == 0, done.stderr
    assert sorted(calls(root)) == ["dpo", "grpo", "ppo", "prepare", "sft"]
    assert re.search(r"dpo +0\.300 \(0\.250–0\.350\)", done.stdout)
    assert f"Report: {root / 'reports' / 'report.html'}" in done.stdout
    assert "working on sft" in done.stderr
    assert "up to date" in dvc(root, "status")
    assert not (root / "runs").exists()


def test_changed_run_is_isolated_named_and_compared(served: tuple[Path, services.Services]) -> None:
    root, _ = served
    assert rlhf(root, "run").returncode == 0
    commit(root, "lock")
    forget_calls(root)
    done = rlhf(root, "run", "--set", "policy.dpo.learning_rate=0.4", "--name", "stronger")
    assert done.returncode == 0, done.stderr
    assert calls(root) == ["dpo"]
    assert (root / "params.yaml").read_text() == PARAMS_YAML
    assert (root / "runs/stronger/report.html").read_text().startswith("<h1>parent ")
    assert "dvc exp apply stronger" in done.stdout
    assert not (root / "runs/stronger/checkout").exists()

    compared = rlhf(root, "compare").stdout
    assert re.search(r"^1 +dpo +0\.400 \(0\.350–0\.450\)", compared, re.MULTILINE)
    assert re.search(r"^ +1  stronger  ", compared, re.MULTILINE)
    assert re.search(r"^ +2  default: ppo, grpo, dpo  ", compared, re.MULTILINE)
    assert re.search(r"^policy\.dpo\.learning_rate +0\.4 +1\b", compared, re.MULTILINE)
    assert re.search(r"^Judged on 300 test prompts \([0-9a-f]{8}\) by: gold rubric\.$", compared, re.MULTILINE)
    assert "Best: dpo of stronger" in compared

    dvc(root, "exp", "apply", "stronger")
    assert "up to date" in dvc(root, "status")
    subprocess.run(["git", "checkout", "-q", "."], cwd=root, check=True)
    dvc(root, "checkout", "-q")


def test_users_mistake_in_a_stage_is_a_message_and_is_not_retried(served: tuple[Path, services.Services]) -> None:
    root, _ = served
    forget_calls(root)
    failed = rlhf(root, "run", "--set", "sft.learning_rate=0.9", "--name", "mistaken", FAKE_MISTAKE="sft")
    assert failed.returncode == 1
    message = failed.stderr[failed.stderr.rindex("error: ") :].splitlines()
    assert message == [
        "error: stage sft: rows.jsonl, line 3: no field 'prompt'. Add it.",
        "The same run, started again, goes on where this one stopped.",
    ]
    assert "Traceback" not in failed.stderr
    assert "NotReady" not in failed.stderr  # of the stages that were not started
    assert failed.stderr.count("no field 'prompt'") == 2  # by the stage as it happens, and at the end
    assert calls(root) == ["sft"]
    # the same run again takes up the kept checkout, and nothing is left of it afterwards
    done = rlhf(root, "run", "--set", "sft.learning_rate=0.9", "--name", "mistaken")
    assert done.returncode == 0, done.stderr
    assert not (root / "runs/mistaken/checkout").exists()


def test_stage_killed_with_sigkill_is_retried(served: tuple[Path, services.Services]) -> None:
    root, _ = served
    forget_calls(root)
    done = rlhf(root, "run", "--set", "sft.learning_rate=0.8", FAKE_DIE="grpo")
    assert done.returncode == 0, done.stderr
    assert calls(root).count("grpo") == 2
    assert calls(root).count("ppo") == 1
    assert "Retry 1/1" in done.stderr


def test_bug_is_retried_once_and_fails_the_run(served: tuple[Path, services.Services]) -> None:
    root, _ = served
    forget_calls(root)
    failed = rlhf(root, "run", "--set", "sft.learning_rate=0.7", FAKE_BUG="sft")
    assert failed.returncode == 1
    assert calls(root) == ["sft", "sft"]
    assert "ZeroDivisionError: a bug" in failed.stderr
    assert "error: stage sft: failed to reproduce 'sft'" in failed.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "sft.learning_rat=1"], "unknown key 'sft.learning_rat'"),
        (["--set", "sft.epochs=0"], "'sft.epochs' is 0"),
        (["--profile", "fats"], "no profile 'fats'"),
        (["--only", "sftt"], "Did you mean sft?"),
        (["--set", "prepare.path=nowhere.jsonl"], "prepare.path nowhere.jsonl does not exist"),
        (["--set", "sft.epochs=2", "--name", "a b"], "cannot name an experiment"),
    ],
)
def test_mistakes_are_told_before_anything_starts(
    served: tuple[Path, services.Services], arguments: list[str], message: str
) -> None:
    root, _ = served
    forget_calls(root)
    failed = rlhf(root, "run", *arguments)
    assert failed.returncode == 1
    assert failed.stdout == ""
    assert failed.stderr.startswith("error: ")
    assert message in failed.stderr
    assert len(failed.stderr.splitlines()) <= 2
    assert calls(root) == []


def test_only_runs_a_stage_and_what_it_needs(served: tuple[Path, services.Services]) -> None:
    root, _ = served
    forget_calls(root)
    done = rlhf(root, "run", "--only", "policy@dpo", "--set", "sft.learning_rate=0.6", "--name", "only_dpo")
    assert done.returncode == 0, done.stderr
    assert calls(root) == ["sft", "dpo"]


def test_up_is_idempotent_and_a_port_in_use_is_named(served: tuple[Path, services.Services], tmp_path: Path) -> None:
    root, running = served
    again = rlhf(root, "up")
    assert again.returncode == 0
    assert running.prefect in again.stdout
    failed = rlhf(make_scratch(tmp_path), "up", "--prefect-port", str(running.prefect_port))
    assert failed.returncode == 1
    assert f"Port {running.prefect_port} of 127.0.0.1 is in use." in failed.stderr
    assert "--prefect-port" in failed.stderr


def start(running: services.Services, parameters: dict[str, Any], environment: dict[str, str]) -> str:
    """Start the deployment as its form does and return the flow run's id."""
    deployment = get(f"{running.prefect}/api/deployments/name/rlhf/rlhf")
    body = {"parameters": parameters, "job_variables": {"env": environment}}
    return str(post(f"{running.prefect}/api/deployments/{deployment['id']}/create_flow_run", body)["id"])


def end_of(running: services.Services, flow_run: str) -> dict[str, Any]:
    """The final state of a flow run."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        state = get(f"{running.prefect}/api/flow_runs/{flow_run}")["state"]
        if state["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
            return dict(state)
        time.sleep(0.5)
    raise AssertionError("the flow run did not end")


def test_deployment_runs_with_the_forms_values(served: tuple[Path, services.Services]) -> None:
    root, running = served
    form = {"name": "from_form", "parameters": {"policy": {"dpo": {"learning_rate": 0.45}}}}
    flow_run = start(running, form, {})
    assert end_of(running, flow_run)["type"] == "COMPLETED"
    assert (root / "runs/from_form/report.html").is_file()
    artifacts = post(f"{running.prefect}/api/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [flow_run]}}})
    shown = {artifact["key"]: artifact["data"] for artifact in artifacts}
    assert "| dpo | 0.450 (0.400–0.500) |" in shown["comparison"]
    assert f"[from_form]({running.mlflow}/#/experiments/" in shown["mlflow-runs"]


def test_deployment_fails_with_the_message_of_a_mistake(served: tuple[Path, services.Services]) -> None:
    _, running = served
    state = end_of(running, start(running, {"overrides": {"sft.learning_rat": 1}}, {}))
    assert state["type"] == "FAILED"
    assert "Did you mean 'sft.learning_rate'?" in state["message"]


def test_cancelled_run_leaves_no_process(served: tuple[Path, services.Services]) -> None:
    root, running = served
    flow_run = start(running, {"overrides": {"sft.learning_rate": 0.65}}, {"FAKE_HANG": "grpo"})
    path = root / ".rlhf" / "hanging"
    deadline = time.monotonic() + 120
    while not path.is_file() or not path.read_text():
        assert time.monotonic() < deadline, "the stage did not start"
        time.sleep(0.1)
    stage = int(path.read_text())
    post(f"{running.prefect}/api/flow_runs/{flow_run}/set_state", {"state": {"type": "CANCELLING"}})
    assert end_of(running, flow_run)["type"] == "CANCELLED"
    assert not psutil.pid_exists(stage) or psutil.Process(stage).status() == psutil.STATUS_ZOMBIE
    assert not [p for p in psutil.process_iter() if "checkout" in _folder(p) and str(root) in _folder(p)]


def _folder(process: psutil.Process) -> str:
    try:
        return process.cwd()
    except (psutil.Error, OSError):
        return ""


def test_lineage_in_mlflow(served: tuple[Path, services.Services]) -> None:
    root, _ = served
    query = (
        "import mlflow; runs = mlflow.search_runs(search_all_experiments=True, output_format='list');"
        "run = next(r for r in runs if r.info.run_name == 'stronger');"
        "print(sorted(k for k in run.data.tags if not k.startswith('mlflow.')));"
        "print(run.data.params['policy.dpo.learning_rate'], run.data.metrics['win_rate_vs_sft/dpo']);"
        "print([a.path for a in mlflow.MlflowClient().list_artifacts(run.info.run_id)])"
    )
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{root / 'mlflow.db'}"}
    done = subprocess.run([sys.executable, "-c", query], env=environment, capture_output=True, text=True, check=True)
    tags, figures, artifacts = done.stdout.strip().splitlines()
    lineage = ["dvc_lock_sha256", "experiment", "flow_run_id", "git_commit", "git_dirty", "kind"]
    assert tags == str(sorted([*lineage, "judge", "prompts", "test_prompts"]))
    assert figures == "0.4 0.4"
    assert artifacts == "['report.html']"
