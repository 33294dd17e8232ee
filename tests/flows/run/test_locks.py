"""Locks: a running run or `dvc` command is reported before anything starts. Stale locks are ignored."""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from io import StringIO
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from flow_scratch import PACKAGE, calls, make_scratch, rlhf
from flows.commands import runs
from flows.run import locks
from flows.run.changes import Changes
from flows.run.locks import only_one, require_no_dvc
from flows.run.workspace import open_workspace, plan
from flows.servers.services import Services
from rlhf_core.common.errors import UserError
from terminal import poll

HOLD = """
import os, socket, sys, time
from pathlib import Path
from flows.run.changes import Changes
from flows.run.workspace import open_workspace
value, = sys.argv[1:]
changes = Changes(overrides={"sft.learning_rate": float(value)} if value != "none" else {})
if port := os.environ.get("CONNECT"):
    connection = socket.create_connection(("127.0.0.1", int(port)))
with open_workspace(Path.cwd(), changes.resolve(Path.cwd())):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RLHF_ROOT", str(tmp_path))
    return make_scratch(tmp_path)


@pytest.fixture
def started() -> Iterator[list["subprocess.Popen[str]"]]:
    """Processes that a test starts; they end with the test."""
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


def hold_run(root: Path, value: str, started: list["subprocess.Popen[str]"]) -> "subprocess.Popen[str]":
    """A process in the middle of a run with this learning rate, or without changes."""
    command = [sys.executable, "-P", "-c", HOLD, value]
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE)}
    process = subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True)
    started.append(process)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize(("value", "title"), [("none", "A run in {root}"), ("0.5", "The run sft.learning_rate-0.5_")])
def test_second_run_names_the_first(
    scratch: Path, started: list["subprocess.Popen[str]"], value: str, title: str
) -> None:
    process = hold_run(scratch, value, started)
    arguments = [] if value == "none" else ["--set", f"sft.learning_rate={value}"]
    refused = rlhf(scratch, "run", *arguments)
    assert refused.returncode == 1
    first, second = refused.stderr.splitlines()
    assert first.startswith(f"error: {title.format(root=scratch)}")
    since = time.strftime("%H:%M", time.localtime(psutil.Process(process.pid).create_time()))
    assert f"is already running: pid {process.pid}, since " in first
    assert since[:2] in first
    assert first.endswith(f": -c {value}.")  # the command of that process
    assert second == f"Wait for it, or stop it: kill {process.pid}"
    assert not (scratch / ".rlhf" / "calls").exists()
    # a kill frees the lock
    process.send_signal(signal.SIGKILL)
    process.wait()
    changes = Changes(overrides={} if value == "none" else {"sft.learning_rate": float(value)})
    with open_workspace(scratch, changes.resolve(scratch)):
        pass


def test_changed_runs_are_allowed_during_a_run_in_the_checkout(
    scratch: Path, started: list["subprocess.Popen[str]"]
) -> None:
    hold_run(scratch, "none", started)
    hold_run(scratch, "0.5", started)
    with open_workspace(scratch, Changes(overrides={"sft.learning_rate": 0.25}).resolve(scratch)):
        pass


def test_a_folder_is_held_once(tmp_path: Path) -> None:
    """Even if two runs have both checked and found it free."""
    with only_one(tmp_path, "A run"):
        with pytest.raises(UserError, match=f"pid {os.getpid()}"), only_one(tmp_path, "A run"):
            pass
        assert (tmp_path / "holder.json").is_file()
    with only_one(tmp_path, "A run"):
        pass


def test_a_running_dvc_command_is_named(scratch: Path, started: list["subprocess.Popen[str]"]) -> None:
    """A real `dvc repro` in the middle of a stage, with locks on its paths."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro", "prepare"],
        cwd=scratch,
        env={**os.environ, "FAKE_HANG": "prepare", "SHELL": "/bin/sh"},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    started.append(process)
    mark = scratch / ".rlhf" / "hanging"
    poll(lambda: mark.is_file() and mark.read_text())
    with pytest.raises(UserError) as refused:
        plan(scratch, Changes().resolve(scratch))
    first, second = str(refused.value).splitlines()
    assert first.startswith(f"DVC is running in {scratch}: pid {process.pid}, since ")
    assert "dvc repro prepare" in first
    assert second == f"Wait for it, or stop it: kill {process.pid}"
    # after a kill, its entry remains in DVC's file of locks
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert str(process.pid) in (scratch / ".dvc/tmp/rwlock").read_text()
    plan(scratch, Changes().resolve(scratch))
    # so that the resumed run shows no warning of DVC about it
    again = subprocess.run(
        [sys.executable, "-m", "dvc", "repro", "prepare"], cwd=scratch, capture_output=True, text=True, check=True
    )
    assert "RWLock" not in again.stderr + again.stdout


def test_stale_locks_stay_while_dvc_edits_their_file(scratch: Path) -> None:
    """Otherwise the entry of a command that starts at the same moment could be deleted."""
    rwlock = scratch / ".dvc/tmp/rwlock"
    rwlock.parent.mkdir(exist_ok=True)
    rwlock.write_text(json.dumps({"write": {"/x": {"pid": 2**22 + 1, "cmd": "dvc repro"}}, "read": {}}))
    with rwlock.with_name("rwlock.lock").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        require_no_dvc(scratch)
        assert rwlock.exists()
    require_no_dvc(scratch)
    assert not rwlock.exists()


def test_lock_of_a_process_whose_id_is_reused(scratch: Path) -> None:
    """The entry is deleted, since DVC itself would wait for the other program."""
    rwlock = scratch / ".dvc/tmp/rwlock"
    rwlock.parent.mkdir(exist_ok=True)
    other = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    rwlock.write_text(json.dumps({"write": {"/x": {"pid": other.pid, "cmd": "dvc repro"}}, "read": {}}))
    try:
        require_no_dvc(scratch)
    finally:
        other.kill()
        other.wait()
    assert not rwlock.exists()


def test_a_repository_lock_is_reported_until_it_is_released(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, started: list["subprocess.Popen[str]"]
) -> None:
    script = (
        "import sys, zc.lockfile; lock = zc.lockfile.LockFile('.dvc/tmp/lock'); print('dvc held', flush=True);"
        "sys.stdin.readline(); lock.close(); print('freed', flush=True); sys.stdin.readline()"
    )
    (scratch / ".dvc/tmp").mkdir(exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=scratch, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    started.append(process)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "dvc held\n"
    monkeypatch.setattr(locks, "PATIENCE", 0.0)
    with pytest.raises(UserError, match=rf"DVC is running in .*: pid {process.pid}, "):
        require_no_dvc(scratch)
    process.stdin.write("free\n")
    process.stdin.flush()
    assert process.stdout.readline() == "freed\n"
    require_no_dvc(scratch)


def test_resume_as_a_file_is_reported_before_anything_starts(scratch: Path) -> None:
    (scratch / ".resume").write_text("")
    refused = rlhf(scratch, "run")
    assert refused.returncode == 1
    assert refused.stderr == (
        f"error: {scratch / '.resume'} is a file, but stages need a folder of that name for their state. "
        "Rename the file.\n"
    )
    assert refused.stdout == ""
    assert not (scratch / ".rlhf" / "calls").exists()


def test_down_is_refused_while_a_terminal_run_uses_the_servers(
    scratch: Path, started: list["subprocess.Popen[str]"], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is connected to Prefect's port. Services on another port, or none, may be stopped."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("CONNECT", str(port))
        process = hold_run(scratch, "0.5", started)
        for services in (None, Services(prefect_port=port + 1)):
            monkeypatch.setattr(runs, "find", lambda root, found=services: found)
            runs.require_no_terminal_run(scratch)
        monkeypatch.setattr(runs, "find", lambda root: Services(prefect_port=port))
        with pytest.raises(
            UserError, match=rf"^A run uses these servers: pid {process.pid}, since .*\n.*kill {process.pid}$"
        ):
            runs.require_no_terminal_run(scratch)


# rlhf runs


@pytest.fixture
def four(scratch: Path, started: list["subprocess.Popen[str]"]) -> Path:
    """A checkout with a running, an interrupted, a failed and a finished run."""
    hold_run(scratch, "0.5", started)
    interrupted = hold_run(scratch, "0.25", started)
    interrupted.send_signal(signal.SIGKILL)
    interrupted.wait()
    with (
        pytest.raises(UserError),
        open_workspace(scratch, Changes(overrides={"sft.learning_rate": 0.125}).resolve(scratch), "failing"),
    ):
        raise UserError("stage sft: no")
    (scratch / "runs/done").mkdir()
    (scratch / "runs/done/report.html").write_bytes(b"x" * 5000)
    return scratch


def states(root: Path) -> dict[str, str]:
    return {run.name.rpartition("_")[0] or run.name: run.state for run in runs.list_runs(root)}


def test_states_and_sizes(four: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert states(four) == {
        "sft.learning_rate-0.5": "running",
        "sft.learning_rate-0.25": "interrupted",
        "failing": "failed",
        "done": "finished",
    }
    done = next(run for run in runs.list_runs(four) if run.name == "done")
    assert done.size == 8192  # two blocks of the file system
    cached = four / "cached"
    cached.write_bytes(b"x" * 100_000)
    os.link(cached, four / "runs/done/linked")  # as DVC does; deleting the run does not free it
    assert next(run for run in runs.list_runs(four) if run.name == "done").size == 8192
    # a failed run that is started again is running, and interrupted if the user stops it
    with (
        pytest.raises(KeyboardInterrupt),
        open_workspace(four, Changes(overrides={"sft.learning_rate": 0.125}).resolve(four), "failing"),
    ):
        assert states(four)["failing"] == "running"
        raise KeyboardInterrupt
    assert states(four)["failing"] == "interrupted"


def test_a_finished_run_without_a_report_has_its_time_and_no_size(scratch: Path) -> None:
    """`--only prepare` draws no page, so the run leaves an empty folder."""
    folder = scratch / "runs/only"
    folder.mkdir(parents=True)
    noon = datetime(2026, 1, 2, 12, 0).timestamp()
    os.utime(folder, (noon, noon))
    text = StringIO()
    runs.print_runs(scratch, Console(file=text, width=80))
    (line,) = [line for line in text.getvalue().splitlines() if "only" in line]
    assert [cell.strip() for cell in line.split("│")[1:-1]] == ["only", "finished", "2026-01-02 12:00", "–"]


def test_table_fits_80_columns_and_in_place_run_is_named(four: Path) -> None:
    name = "a-very-long-name-" * 5
    (four / "runs" / name).mkdir()
    text = StringIO()
    with only_one(four / ".rlhf/run", "A run"):
        runs.print_runs(four, Console(file=text, width=80))
    lines = text.getvalue().splitlines()
    assert lines[0].startswith(f"Running in this checkout: pid {os.getpid()}, since ")
    assert max(len(line) for line in lines[1:]) <= 80
    assert "".join(line.split("│")[1].strip() for line in lines if "a-very" in line or "very-" in line) == name


def test_remove_deletes_only_runs_that_are_not_running(four: Path) -> None:
    running = next(run.name for run in runs.list_runs(four) if run.state == "running")
    refused = rlhf(four, "runs", "--remove", "done", "--remove", running)
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"error: The run {running} is running: pid ")
    assert "Stop it before you delete it: kill " in refused.stderr
    assert len(states(four)) == 4  # nothing was deleted
    assert "Did you mean failing?" in rlhf(four, "runs", "--remove", "failng").stderr

    removed = rlhf(four, "runs", "--remove", "failing", "--remove", "done")
    assert removed.stdout.startswith("Deleted: failing, done (")
    assert set(states(four).values()) == {"running", "interrupted"}
    assert rlhf(four, "runs", "--remove-all").returncode == 0
    assert states(four) == {"sft.learning_rate-0.5": "running"}
    assert (four / "runs" / running / "checkout" / "dvc.yaml").is_file()
    assert "Nothing to delete." in rlhf(four, "runs", "--remove-all").stdout


def test_no_runs(scratch: Path) -> None:
    assert "No run has its own folder." in rlhf(scratch, "runs").stdout
    assert not calls_made(scratch)


def calls_made(root: Path) -> list[str]:
    return calls(root) if (root / ".rlhf" / "calls").exists() else []
