"""Complete runs of a scratch pipeline through real Prefect, DVC and MLflow, with and without servers."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from flow_scratch import PARAMS_YAML, calls, commit, dvc, free_port, make_scratch, rlhf, signed_in
from flows.run.worker import TEMPLATE
from flows.servers import services
from flows.servers.settings import login

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


def test_without_a_server(tmp_path: Path) -> None:
    root = make_scratch(tmp_path)
    meeting = tmp_path / ".rlhf" / "meeting"
    meeting.mkdir()
    # the three policies wait for each other, so they can only end if they run in parallel
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
    assert "Highest win rate: dpo of stronger; the policy is not shown to be better than its SFT model" in compared

    dvc(root, "exp", "apply", "stronger")
    assert "up to date" in dvc(root, "status")
    subprocess.run(["git", "checkout", "-q", "."], cwd=root, check=True)
    dvc(root, "checkout", "-q")


def seeded(root: Path) -> Path:
    """Make the scratch stages depend on the seed: it is added to each policy's value, and can fail one seed alone."""
    changes = {
        "params.yaml": ("run: {parallel: 3}", "run: {parallel: 3, seed: 0}"),
        "dvc.yaml": ("params: [sft.learning_rate]", "params: [sft.learning_rate, run.seed]"),
        "tasks/fake.py": (
            'os.environ.get("FAKE_MISTAKE") == name',
            'os.environ.get("FAKE_MISTAKE") == f"{name} {seed}"',
        ),
    }
    for name, (old, new) in changes.items():
        text = (root / name).read_text()
        assert old in text
        (root / name).write_text(text.replace(old, new))
    fake = (
        (root / "tasks/fake.py")
        .read_text()
        .replace("section = params", 'seed = params["run"]["seed"]\nsection = params')
    )
    old = 'str(section.get("learning_rate", section.get("path")))'
    new = 'str(section["learning_rate"] + seed / 10 if "learning_rate" in section else 0)'
    assert old in fake
    (root / "tasks/fake.py").write_text(fake.replace(old, new))
    commit(root, "seeds")
    return root


def test_seeds_run_one_after_the_other_and_continue_after_an_error(tmp_path: Path) -> None:
    """The policies' rates are 0.1, 0.2, 0.3 plus a tenth of the seed. Over seeds 0, 1, 2 DPO has mean 0.4, s = 0.1:
    ± 4.30265 × 0.1/√3 = 0.24841.
    """
    root = seeded(make_scratch(tmp_path))
    forget_calls(root)
    arguments = ["run", "--seeds", "0,1,2", "--name", "mine", "--set", "sft.learning_rate=0.9"]
    failed = rlhf(root, *arguments, FAKE_MISTAKE="sft 1")
    assert failed.returncode == 1
    assert failed.stderr[failed.stderr.rindex("error: ") :].splitlines() == [
        "error: seed 1: stage sft: rows.jsonl, line 3: no field 'prompt'. Add it.",
        "After a fix, continue with: rlhf run --seeds 0,1,2 --name mine --set sft.learning_rate=0.9",
    ]
    assert calls(root).count("sft") == 2 and calls(root).count("dpo") == 1
    done = rlhf(root, *arguments)
    assert done.returncode == 0, done.stderr
    assert "seed 0: the experiment mine-seed-0 exists" in done.stderr
    assert calls(root).count("sft") == 4 and calls(root).count("dpo") == 3
    assert re.search(
        r"^dpo +0\.400 \(0\.152 to 0\.648\) .* 0: 0\.300, 1: 0\.400, 2: 0\.500 *$", done.stdout, re.MULTILINE
    )
    assert f"Report of mine-seed-2, with the figures over seeds: {root / 'runs/mine-seed-2/report.html'}" in done.stdout
    compared = rlhf(root, "compare").stdout
    assert "Over seeds 0, 1, 2 (n = 3): mine-seed-0, mine-seed-1, mine-seed-2" in compared
    again = rlhf(root, *arguments)  # nothing is left to do
    assert again.returncode == 0 and calls(root).count("sft") == 4
    other = rlhf(root, "run", "--seeds", "0,1", "--name", "mine")
    assert other.stderr.splitlines()[0] == "error: The experiment mine-seed-0 exists, with other parameters."


def test_a_users_error_in_a_stage_is_a_message_and_is_not_retried(served: tuple[Path, services.Services]) -> None:
    root, _ = served
    forget_calls(root)
    failed = rlhf(root, "run", "--set", "sft.learning_rate=0.9", "--name", "mistaken", FAKE_MISTAKE="sft")
    assert failed.returncode == 1
    message = failed.stderr[failed.stderr.rindex("error: ") :].splitlines()
    assert message == [
        "error: stage sft: rows.jsonl, line 3: no field 'prompt'. Add it.",
        "Fix it, then start the same run again: it continues where this one stopped.",
    ]
    assert "Traceback" not in failed.stderr
    assert "NotReady" not in failed.stderr  # from the stages that were not started
    assert failed.stderr.count("no field 'prompt'") == 1
    assert calls(root) == ["sft"]
    # the same run resumes in the kept checkout and deletes it at the end
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
        (["--profile", "fats"], "The profile 'fats' does not exist"),
        (["--only", "sftt"], "Did you mean sft?"),
        (["--set", "prepare.path=nowhere.jsonl"], "prepare.path nowhere.jsonl does not exist"),
        (["--set", "sft.epochs=2", "--name", "a b"], "is not a valid experiment name"),
    ],
)
def test_errors_are_reported_before_anything_starts(
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
    done = rlhf(root, "run", "--only", "offline@dpo", "--set", "sft.learning_rate=0.6", "--name", "only_dpo")
    assert done.returncode == 0, done.stderr
    assert calls(root) == ["sft", "dpo"]


def test_up_is_idempotent_and_a_port_in_use_is_named(served: tuple[Path, services.Services], tmp_path: Path) -> None:
    root, running = served
    again = rlhf(root, "up")
    assert again.returncode == 0
    assert running.prefect in again.stdout
    other = rlhf(root, "up", "--mlflow-port", str(free_port()))
    assert other.returncode == 1
    assert f"already running: Prefect on port {running.prefect_port}" in other.stderr
    failed = rlhf(make_scratch(tmp_path), "up", "--prefect-port", str(running.prefect_port))
    assert failed.returncode == 1
    assert f"Port {running.prefect_port} of 127.0.0.1 is in use." in failed.stderr
    assert "--prefect-port" in failed.stderr


def start(api: httpx.Client, parameters: dict[str, Any]) -> str:
    """Start the deployment as its form does and return the flow run's id."""
    deployment = api.get("/deployments/name/rlhf/rlhf").json()["id"]
    started = api.post(f"/deployments/{deployment}/create_flow_run", json={"parameters": parameters})
    return str(started.raise_for_status().json()["id"])


def end_of(api: httpx.Client, flow_run: str) -> dict[str, Any]:
    """The final state of a flow run."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        state = api.get(f"/flow_runs/{flow_run}").json()["state"]
        if state["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
            return dict(state)
        time.sleep(0.5)
    raise AssertionError("the flow run did not end")


@pytest.mark.parametrize(
    ("parameters", "refused", "message"),
    [
        (
            {"epochs": 2},
            "('epochs' was unexpected)",
            "The flow has no argument 'epochs'. Choose from: profile, ",
        ),
        (
            {"parameters": {"sft": {"epoch": 2}}},
            "'parameters.sft'. Failure reason: Additional properties",
            "parameters.sft.epoch: Extra inputs are not permitted",
        ),
        (
            {"parameters": {"sft": {"epochs": 0}}},
            "'parameters.sft.epochs'. Failure reason: 0 is less than",
            "parameters.sft.epochs: Input should be greater than or equal to 1",
        ),
    ],
)
def test_invalid_arguments_are_rejected_and_without_that_check_end_the_run_with_a_message(
    served: tuple[Path, services.Services], parameters: dict[str, Any], refused: str, message: str
) -> None:
    root, running = served
    forget_calls(root)
    api = signed_in(root, running)
    with pytest.raises(httpx.HTTPStatusError) as error:
        start(api, parameters)
    assert error.value.response.status_code == 409
    assert refused in error.value.response.text
    deployment = api.get("/deployments/name/rlhf/rlhf").json()["id"]
    body = {"parameters": parameters, "enforce_parameter_schema": False}
    run = api.post(f"/deployments/{deployment}/create_flow_run", json=body).raise_for_status().json()["id"]
    state = end_of(api, run)
    assert (state["type"], state["name"]) == ("FAILED", "Mistake")
    assert message in state["message"]
    assert len(state["message"].splitlines()) <= 2
    logs = api.post("/logs/filter", json={"logs": {"flow_run_id": {"any_": [run]}}}).json()
    assert not [line for line in logs if "Traceback" in line["message"]]
    assert calls(root) == []


@pytest.mark.parametrize(
    ("overrides", "found"),
    [
        ({"sft.epoch": 2}, "unknown key 'sft.epoch'. Did you mean 'sft.epochs'?"),
        ({"sft.epochs": True}, "changed value: 'sft.epochs' is true; it must be a whole number, at least 1."),
        (
            {"model.path": "tasks"},
            "model.path tasks has no config.json, so it is not a checkpoint folder. Name a Hugging Face model folder.",
        ),
    ],
)
def test_deployment_reports_wrong_parameters(
    served: tuple[Path, services.Services], overrides: dict[str, Any], found: str
) -> None:
    root, running = served
    forget_calls(root)
    api = signed_in(root, running)
    state = end_of(api, start(api, {"overrides": overrides}))
    assert (state["name"], state["message"]) == ("Mistake", found)
    assert calls(root) == []


def test_deployment_runs_with_the_forms_values(served: tuple[Path, services.Services]) -> None:
    root, running = served
    form = {"name": "from_form", "parameters": {"policy": {"dpo": {"learning_rate": 0.45}}}}
    api = signed_in(root, running)
    flow_run = start(api, form)
    assert end_of(api, flow_run)["type"] == "COMPLETED"
    assert (root / "runs/from_form/report.html").is_file()
    artifacts = api.post("/artifacts/filter", json={"artifacts": {"flow_run_id": {"any_": [flow_run]}}}).json()
    shown = {artifact["key"]: artifact["data"] for artifact in artifacts}
    assert "| dpo | 0.450 (0.400–0.500) |" in shown["comparison"]
    assert f"[from_form]({running.mlflow}/#/experiments/" in shown["mlflow-runs"]


def test_deployment_fails_with_the_users_error_as_message(served: tuple[Path, services.Services]) -> None:
    api = signed_in(*served)
    state = end_of(api, start(api, {"overrides": {"sft.learning_rat": 1}}))
    assert state["type"] == "FAILED"
    assert "Did you mean 'sft.learning_rate'?" in state["message"]


def test_cancelled_run_leaves_no_process(served: tuple[Path, services.Services]) -> None:
    root, running = served
    api = signed_in(root, running)
    (root / ".rlhf" / "hang").write_text("grpo")
    flow_run = start(api, {"overrides": {"sft.learning_rate": 0.65}})
    path = root / ".rlhf" / "hanging"
    deadline = time.monotonic() + 120
    while not path.is_file() or not path.read_text():
        assert time.monotonic() < deadline, "the stage did not start"
        time.sleep(0.1)
    stage = int(path.read_text())
    (root / ".rlhf" / "hang").unlink()
    api.post(f"/flow_runs/{flow_run}/set_state", json={"state": {"type": "CANCELLING"}}).raise_for_status()
    assert end_of(api, flow_run)["type"] == "CANCELLED"
    assert not psutil.pid_exists(stage) or psutil.Process(stage).status() == psutil.STATUS_ZOMBIE
    assert not [p for p in psutil.process_iter() if "checkout" in _folder(p) and str(root) in _folder(p)]


def _folder(process: psutil.Process) -> str:
    try:
        return process.cwd()
    except (psutil.Error, OSError):
        return ""


# Access control


def test_without_the_password_nothing_is_read_or_written(served: tuple[Path, services.Services]) -> None:
    root, running = served
    api = signed_in(root, running)
    deployment = api.get("/deployments/name/rlhf/rlhf").json()
    runs = api.post("/flow_runs/count", json={}).json()
    wrong = httpx.BasicAuth("rlhf", "x" * 32)
    token = {key: value for key, value in api.headers.items() if key.startswith("prefect-csrf")}
    writes = [
        ("POST", f"/deployments/{deployment['id']}/create_flow_run", {}),
        ("POST", "/deployments/", {"name": "x", "flow_id": deployment["flow_id"], "pull_steps": []}),
        ("PATCH", "/work_pools/rlhf", {"base_job_template": {}}),
        ("POST", "/flow_runs/filter", {}),
        ("POST", "/admin/database/clear", {"confirm": True}),
        ("POST", "/automations/", {}),
        ("GET", "/admin/settings", None),
        ("GET", "/csrf-token?client=x", None),
    ]
    for method, path, body in writes:
        for auth in (None, wrong):
            answer = httpx.request(method, f"{running.prefect}/api{path}", json=body, auth=auth, headers=token)
            assert answer.status_code == 401, (method, path)
    # and no page of another origin writes, even with credentials stored in the browser
    user = httpx.BasicAuth(*login(root).split(":"))
    start_run = f"{running.prefect}/api/deployments/{deployment['id']}/create_flow_run"
    for headers in ({"Origin": "http://127.0.0.1:1"}, {"Host": "evil.test"}, {"Sec-Fetch-Site": "same-site"}):
        answer = httpx.post(
            start_run, content="{}", auth=user, headers={**token, "Content-Type": "text/plain", **headers}
        )
        assert answer.status_code == 403, headers
    assert httpx.post(start_run, json={}, auth=user).json() == {"detail": "Missing CSRF token."}
    assert api.post("/flow_runs/count", json={}).json() == runs
    assert api.get("/work_pools/rlhf").json()["base_job_template"] == TEMPLATE


def test_a_run_cannot_set_its_own_command_or_environment(served: tuple[Path, services.Services]) -> None:
    """Even with the password, such a run or deployment is rejected, and a changed deployment starts no run."""
    root, running = served
    api = signed_in(root, running)
    deployment = api.get("/deployments/name/rlhf/rlhf").json()
    one = f"/deployments/{deployment['id']}"
    new = {"name": "x", "flow_id": deployment["flow_id"], "work_pool_name": "rlhf"}
    runs = api.post("/flow_runs/count", json={}).json()
    for variables in ({"command": f"touch {root}/pwned"}, {"env": {"PATH": str(root)}}, {"working_dir": "/"}):
        body = {"job_variables": variables}
        refused = [api.post(f"{one}/create_flow_run", json=body), api.post("/deployments/", json={**new, **body})]
        api.patch(one, json=body).raise_for_status()
        refused.append(api.post(f"{one}/create_flow_run", json={}))
        api.patch(one, json={"job_variables": {}}).raise_for_status()
        assert [answer.status_code for answer in refused] == [422, 422, 422], variables
        assert all("Additional properties are not allowed" in answer.text for answer in refused)
    assert api.post("/flow_runs/count", json={}).json() == runs
    assert not (root / "pwned").exists()


def test_the_pool_ignores_job_variables_that_were_not_rejected() -> None:
    """For a run that has them anyway, the worker uses its own command and adds nothing to the environment."""
    import asyncio

    from prefect.workers.process import ProcessJobConfiguration

    values = {"command": "touch pwned", "env": {"PATH": "/"}, "env.LD_PRELOAD": "x", "working_dir": "/", "name": "x"}
    made = ProcessJobConfiguration.from_template_and_values(TEMPLATE, values, client=object())
    command = TEMPLATE["job_configuration"]["command"]
    assert asyncio.run(made) == ProcessJobConfiguration(command=command)


def test_mlflow_needs_the_password_for_everything(served: tuple[Path, services.Services]) -> None:
    root, running = served
    user = httpx.BasicAuth(*login(root).split(":"))
    for method, path in [
        ("GET", "/"),
        ("POST", "/api/2.0/mlflow/experiments/create"),
        ("POST", "/ajax-api/2.0/mlflow/experiments/create"),
        ("PUT", "/api/2.0/mlflow-artifacts/artifacts/x"),
        ("POST", "/ajax-api/2.0/mlflow/upload-artifact"),
        ("POST", "/api/2.0/mlflow/webhooks"),
        ("POST", "/ajax-api/3.0/mlflow/assistant/message"),
        ("POST", "/gateway/x/mlflow/invocations"),
        ("POST", "/graphql"),
        ("POST", "/v1/traces"),
    ]:
        assert httpx.request(method, running.mlflow + path).status_code == 401, path
        for origin in ("http://localhost:1", f"http://127.0.0.1:{running.prefect_port}", "null"):
            answer = httpx.request(method, running.mlflow + path, auth=user, headers={"Origin": origin})
            assert answer.status_code == 403, (path, origin)
    assert httpx.get(running.mlflow, auth=user).status_code == 200


def test_password_is_on_no_command_line_and_survives_a_restart(served: tuple[Path, services.Services]) -> None:
    root, _ = served
    password = login(root).partition(":")[2]
    assert password not in "".join(" ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"]))
    assert not [log for log in (root / ".rlhf").glob("*.log") if password in log.read_text()]
    rlhf(root, "down")  # does not affect other checkouts
    again = rlhf(root, "up", "--prefect-port", str(served[1].prefect_port), "--mlflow-port", str(served[1].mlflow_port))
    assert again.returncode == 0, again.stderr
    assert password in again.stdout
    assert login(root).partition(":")[2] == password


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
    lineage = ["code_and_data", "dvc_lock_sha256", "experiment", "flow_run_id", "git_commit", "git_dirty", "kind"]
    compared, writer = ["judge", "prompts", "test_prompts"], ["writer_host", "writer_pid", "writer_started"]
    assert tags == str(sorted([*lineage, *compared, *writer]))
    assert figures == "0.4 0.4"
    assert artifacts == "['report.html']"
