"""A command on its own terminal: its output, keys sent to it, and the processes it leaves behind."""

import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

PATIENCE = 180.0  # seconds; reached only if something is wrong


class Terminal:
    """`command` in `folder` as the foreground job of a pseudo-terminal."""

    def __init__(self, folder: Path, command: list[str], environment: dict[str, str]) -> None:
        self.folder, self.text = folder, ""
        self.pid, self._keyboard = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            os.execve(command[0], command, environment)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                chunk = os.read(self._keyboard, 65536)
            except OSError:  # all have closed the terminal
                return
            if not chunk:
                return
            self.text += chunk.decode(errors="replace")

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        os.write(self._keyboard, b"\x03")

    def wait(self) -> int:
        """The exit code."""
        poll(lambda: psutil.Process(self.pid).status() == psutil.STATUS_ZOMBIE, lambda: self.text)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
        self._reader.join(PATIENCE)
        os.close(self._keyboard)


def poll(is_done: Callable[[], object], told: Callable[[], object] = str) -> None:
    """Wait until `is_done` returns true. The result of `told` explains a timeout."""
    deadline = time.monotonic() + PATIENCE
    while not is_done():
        assert time.monotonic() < deadline, told()
        time.sleep(0.05)


def processes(root: Path) -> list[psutil.Process]:
    """Live processes whose environment names the checkout, except those of `rlhf up`."""
    found = []
    for process in psutil.process_iter():
        try:
            environment = process.environ()
            is_live = process.status() != psutil.STATUS_ZOMBIE
        except (psutil.Error, OSError):
            continue
        if is_live and environment.get("RLHF_ROOT") == str(root) and "RLHF_SERVICE" not in environment:
            found.append(process)
    return found


def mlflow_runs(root: Path) -> dict[str, tuple[str, dict[str, str]]]:
    """Status and tags of the latest run of each name in a checkout's store."""
    script = (
        "import json, mlflow; c = mlflow.MlflowClient(); e = c.get_experiment_by_name('rlhf');"
        "runs = c.search_runs([e.experiment_id], order_by=['attributes.start_time ASC']) if e else [];"
        "print(json.dumps({r.info.run_name: [r.info.status, r.data.tags] for r in runs}))"
    )
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{root / 'mlflow.db'}"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    import json

    return {name: (status, tags) for name, (status, tags) in json.loads(done.stdout.splitlines()[-1]).items()}
