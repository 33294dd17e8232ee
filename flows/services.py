"""Local services on 127.0.0.1: Prefect's server, MLflow's server, and a worker that runs what the UI starts.

Every process started here, and all it starts in turn, carries the checkout's path in `RLHF_SERVICES`. They are
found again by that, not by numbers in a file, so a crash or a restart of the machine leaves nothing stale.
"""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from rlhf_core.errors import UserError

HOST = "127.0.0.1"
PREFECT_PORT = 4200
MLFLOW_PORT = 5000
MARK, PART = "RLHF_SERVICES", "RLHF_SERVICE"
START_SECONDS = 240.0  # a loaded machine takes over a minute
STOP_SECONDS = 15.0


@dataclass(frozen=True)
class Services:
    """Where the services of a checkout listen."""

    prefect_port: int = PREFECT_PORT
    mlflow_port: int = MLFLOW_PORT

    @property
    def prefect(self) -> str:
        """Address of Prefect's UI."""
        return f"http://{HOST}:{self.prefect_port}"

    @property
    def mlflow(self) -> str:
        """Address of MLflow's UI."""
        return f"http://{HOST}:{self.mlflow_port}"


def up(root: Path, wanted: Services) -> Services:
    """Start what is not running yet, wait until it answers, and return where it listens.

    Raises:
        UserError: a port is in use, or a service did not start; the message names its log.
    """
    running = find(root)
    if running is not None:
        return running
    down(root)  # a part may have survived a crash of the others
    _require_free(wanted.prefect_port, "--prefect-port")
    _require_free(wanted.mlflow_port, "--mlflow-port")
    folder = root / ".rlhf"
    folder.mkdir(exist_ok=True)
    registered = folder / "registered"
    registered.unlink(missing_ok=True)
    (folder / "services.json").write_text(json.dumps(asdict(wanted)))
    try:
        prefect = _start(root, "prefect", wanted, _prefect_command(wanted))
        mlflow = _start(root, "mlflow", wanted, _mlflow_command(root, wanted))
        _wait(root, "prefect", prefect, lambda: _answers(f"{wanted.prefect}/api/health"))
        worker = _start(root, "worker", wanted, [sys.executable, "-m", "flows.worker", str(registered)])
        _wait(root, "mlflow", mlflow, lambda: _answers(f"{wanted.mlflow}/health"))
        _wait(root, "worker", worker, registered.is_file)
    except BaseException:
        down(root)
        raise
    return wanted


def down(root: Path) -> list[str]:
    """Stop the services of `root` with everything they run; return which were running. Stopping none is fine.

    The worker goes first, so that its runs can still report to the server that they were stopped.
    """
    stopped: list[str] = []
    for parts in (("worker",), ("prefect", "mlflow")):
        stopped += _stop(root, parts)
    (root / ".rlhf" / "services.json").unlink(missing_ok=True)
    return stopped


def find(root: Path) -> Services | None:
    """Return where the services of `root` listen, None unless both servers answer and the worker lives."""
    path = root / ".rlhf" / "services.json"
    if not path.is_file():
        return None
    services = Services(**json.loads(path.read_text()))
    answering = all(map(_answers, (f"{services.prefect}/api/health", f"{services.mlflow}/health")))
    return services if answering and _processes(root, ("worker",)) else None


def mlflow_address(root: Path) -> str:
    """Address of MLflow's UI, running or not (then where `rlhf up` would put it)."""
    return (find(root) or Services()).mlflow


def _prefect_command(services: Services) -> list[str]:
    port = str(services.prefect_port)
    return [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", port]


def _mlflow_command(root: Path, services: Services) -> list[str]:
    store, artifacts = f"sqlite:///{root / 'mlflow.db'}", (root / "mlartifacts").as_uri()
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(services.mlflow_port)]
    return [*command, "--workers", "1", "--backend-store-uri", store, "--artifacts-destination", artifacts]


def _start(root: Path, part: str, services: Services, command: Sequence[str]) -> "subprocess.Popen[bytes]":
    """Start one service detached from this terminal, its output in .rlhf/PART.log."""
    environment = {
        **os.environ,
        MARK: str(root),
        PART: part,
        "PREFECT_API_URL": f"{services.prefect}/api",
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # 10 processes and a minute more otherwise
        "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
    }
    with (root / ".rlhf" / f"{part}.log").open("wb") as log:
        return subprocess.Popen(
            command,
            cwd=root,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _wait(root: Path, part: str, process: "subprocess.Popen[bytes]", is_ready: Callable[[], bool]) -> None:
    """Wait until a service is ready.

    Raises:
        UserError: the process ended, or took too long.
    """
    deadline = time.monotonic() + START_SECONDS
    while not is_ready():
        ended = process.poll() is not None
        if ended or time.monotonic() > deadline:
            log = root / ".rlhf" / f"{part}.log"
            said = log.read_text(errors="replace").strip().splitlines() or ["nothing"]
            happened = "ended at once" if ended else f"did not answer within {START_SECONDS:.0f} s"
            raise UserError(
                f"The {part} service {happened}; it last said: {said[-1].strip()}\nSee {log}, then try again."
            )
        time.sleep(0.3)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _require_free(port: int, flag: str) -> None:
    """Raise UserError where something listens on `port` already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise UserError(
                f"Port {port} of {HOST} is in use. Free it, or choose another: rlhf up {flag} {port + 1}"
            ) from error


def _processes(root: Path, parts: Sequence[str]) -> list[tuple[psutil.Process, str]]:
    """All live processes of these services of `root`, whoever started them, and which service each belongs to."""
    found = []
    for process in psutil.process_iter():
        try:
            environment = process.environ()
        except psutil.Error:  # somebody else's, or gone
            continue
        if environment.get(MARK) == str(root) and environment.get(PART) in parts:
            found.append((process, environment[PART]))
    return found


def _stop(root: Path, parts: Sequence[str]) -> list[str]:
    """Ask all processes of these services to end, then kill what is left."""
    running = _processes(root, parts)
    for process, _ in running:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    psutil.wait_procs([process for process, _ in running], timeout=STOP_SECONDS)
    for process, _ in _processes(root, parts):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    return sorted({part for _, part in running})
