"""Ctrl-C at a terminal: one line, exit code 130, no process left, records closed, and the same command continues."""

import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from checkout import environment, make_checkout, run
from flow_scratch import PACKAGE, calls, free_port, make_scratch, rlhf
from terminal import Terminal, mlflow_runs, poll, processes

LINE = "stopped; run the same command to continue"

# A stage's process that is killed while its MLflow run is open.
KILLED_WRITER = """
import os, signal
from pathlib import Path
from tasks.runtime.tracking import StageRun
StageRun("old", "key", Path(".rlhf/key")).__enter__()
os.kill(os.getpid(), signal.SIGKILL)
"""


def terminal(root: Path, *arguments: str, **changes: str) -> Terminal:
    """`rlhf run` in a scratch checkout, on its own terminal."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RLHF_", "PREFECT_", "MLFLOW_"))}
    variables = {**kept, "PYTHONPATH": str(PACKAGE), "COLUMNS": "200", **changes}
    return Terminal(root, [sys.executable, "-P", "-m", "flows.cli", "run", *arguments], variables)


def plain(text: str) -> str:
    """The text that a terminal shows, without colours. A carriage return with an erased line restarts the line."""
    text = re.sub(r"\x1b\[[\d;]*m", "", text).replace("\r\n", "\n")
    return "\n".join(line.rpartition("\r\x1b[K")[2] for line in text.split("\n"))


def require_stopped(shown: Terminal, code: int, root: Path) -> None:
    """Check the result of a stop: exit code, one line, no error, no process."""
    assert code == 130, shown.text
    lines = [line.removeprefix("^C").strip() for line in plain(shown.text).splitlines()]
    lines = [line for line in lines if line]
    assert lines.count(LINE) == 1, shown.text
    assert lines[-1] == LINE, shown.text
    assert "Traceback" not in shown.text
    assert "rror" not in shown.text
    poll(lambda: not processes(root), lambda: processes(root))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_scratch(tmp_path_factory.mktemp("scratch"))


def flow_states(root: Path) -> list[str]:
    """How the flow runs of a checkout ended, in order, from the database of its Prefect servers."""
    with closing(sqlite3.connect(root / ".rlhf/prefect/prefect.db")) as database:
        return [state for (state,) in database.execute("select state_type from flow_run order by created")]


IN_PLACE = "default: ppo, grpo, dpo"  # name of a run without changed parameters


def hanging(root: Path) -> Path:
    return root / ".rlhf" / "hanging"


def test_a_users_error_is_not_retried(scratch: Path) -> None:
    failed = rlhf(scratch, "run", FAKE_MISTAKE="prepare")
    assert failed.returncode == 1
    assert calls(scratch) == ["prepare"]
    assert "error: stage prepare: rows.jsonl, line 3: no field 'prompt'. Add it." in failed.stderr
    assert mlflow_runs(scratch)[IN_PLACE][0] == "FAILED"


def test_ctrl_c_pressed_three_times_during_a_step(scratch: Path) -> None:
    (scratch / ".rlhf" / "calls").unlink(missing_ok=True)
    with terminal(scratch, FAKE_HANG="sft") as shown:
        poll(lambda: hanging(scratch).is_file() and hanging(scratch).read_text(), lambda: shown.text)
        for _ in range(3):
            shown.interrupt()
        code = shown.wait()
    require_stopped(shown, code, scratch)
    status, tags = mlflow_runs(scratch)[IN_PLACE]
    assert (status, tags["interrupted"]) == ("KILLED", "true")
    assert flow_states(scratch) == ["FAILED", "CANCELLED"]
    assert calls(scratch) == ["prepare", "sft"]
    done = rlhf(scratch, "run")
    assert done.returncode == 0, done.stderr
    assert calls(scratch)[:3] == ["prepare", "sft", "sft"]
    assert sorted(calls(scratch)[3:]) == [
        "dpo",
        "grpo",
        "ppo",
    ]
    assert mlflow_runs(scratch)[IN_PLACE][0] == "FINISHED"
    assert not processes(scratch)


MOMENTS = {
    "a stage starts": "sft         Running stage",
    "a stage has ended": "prepare     Finished in state",
    "the lock is written": "sft         Updating lock file",
    "the flow starts": "Beginning flow run",
}


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_between_stages(tmp_path: Path, moment: str) -> None:
    root = make_scratch(tmp_path)
    with terminal(root) as shown:
        poll(lambda: MOMENTS[moment] in plain(shown.text), lambda: shown.text)
        shown.interrupt()
        code = shown.wait()
    require_stopped(shown, code, root)
    assert mlflow_runs(root).get(IN_PLACE, ("KILLED",))[0] == "KILLED"
    assert rlhf(root, "run").returncode == 0
    assert "up to date" in run(root, sys.executable, "-m", "dvc", "status").stdout


@pytest.mark.slow
def test_ctrl_c_while_the_server_starts(tmp_path: Path) -> None:
    root = make_scratch(tmp_path)
    with terminal(root) as shown:
        poll(lambda: any("uvicorn" in process.cmdline() for process in processes(root)), lambda: shown.text)
        shown.interrupt()
        code = shown.wait()
    require_stopped(shown, code, root)
    assert rlhf(root, "run", "--only", "prepare").returncode == 0


@pytest.mark.slow
def test_sigterm_stops_like_ctrl_c(tmp_path: Path) -> None:
    root = make_scratch(tmp_path)
    with terminal(root, FAKE_HANG="sft") as shown:
        poll(lambda: hanging(root).is_file() and hanging(root).read_text(), lambda: shown.text)
        os.kill(shown.pid, signal.SIGTERM)
        code = shown.wait()
    require_stopped(shown, code, root)
    assert mlflow_runs(root)[IN_PLACE][0] == "KILLED"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A scratch checkout with `rlhf up`. A killed stage has left a run open in its store."""
    root = make_scratch(tmp_path_factory.mktemp("served"))
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE), "MLFLOW_TRACKING_URI": f"sqlite:///{root / 'mlflow.db'}"}
    killed = subprocess.run([sys.executable, "-P", "-c", KILLED_WRITER], cwd=root, env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert mlflow_runs(root)["old"][0] == "RUNNING"
    started = rlhf(root, "up", "--prefect-port", str(free_port()), "--mlflow-port", str(free_port()))
    try:
        assert started.returncode == 0, started.stderr
        yield root
    finally:
        rlhf(root, "down")


@pytest.mark.slow
def test_ctrl_c_does_not_stop_the_services(served: Path) -> None:
    assert mlflow_runs(served)["old"][0] == "KILLED"  # closed by `rlhf up`
    with terminal(served, "--set", "sft.learning_rate=0.4", FAKE_HANG="sft") as shown:
        poll(lambda: hanging(served).is_file() and hanging(served).read_text(), lambda: shown.text)
        shown.interrupt()
        code = shown.wait()
    require_stopped(shown, code, served)
    listed = rlhf(served, "runs").stdout
    assert re.search(r"sft\.learning_rate-0\.4_\w{6} +│ interrupted", listed)
    done = rlhf(served, "run", "--set", "sft.learning_rate=0.4")
    assert done.returncode == 0, done.stderr
    assert "rlhf up" not in done.stdout  # the services are still running


@pytest.mark.pitfall(25)
@pytest.mark.slow
def test_ctrl_c_during_a_training_step_ends_with_the_same_bits(tmp_path: Path) -> None:
    """Real stages: stopped after the first steps of `base` and continued, compared with an undisturbed checkout."""
    whole, stopped = make_checkout(tmp_path / "whole"), make_checkout(tmp_path / "stopped")
    run(whole, "dvc", "repro", "base")
    command = [sys.executable, "-m", "flows.cli", "run", "--only", "base"]
    with Terminal(stopped, command, environment(stopped)) as shown:
        poll(lambda: list((stopped / ".resume").glob("*/state/*/state.pt")), lambda: shown.text)
        shown.interrupt()
        code = shown.wait()
    require_stopped(shown, code, stopped)
    runs = mlflow_runs(stopped)
    assert (runs["base"][0], runs["base"][1]["interrupted"]) == ("KILLED", "true")
    assert runs["prepare"][0] == "FINISHED"
    run(stopped, *command)
    runs = mlflow_runs(stopped)
    assert (runs["base"][0], runs["base"][1].get("interrupted")) == ("FINISHED", None)
    assert not list((stopped / ".resume").glob("*"))  # everything is recorded
    locks = [yaml.safe_load((folder / "dvc.lock").read_text())["stages"]["base"] for folder in (whole, stopped)]
    assert locks[0] == locks[1]
