"""Local services on 127.0.0.1: Prefect's server, MLflow's server, and a worker for runs started in the UI.

Every process started here, and every descendant of it, has the checkout's path in the environment variable
`RLHF_SERVICES`. Processes are found by that variable, not by process ids in a file, so that nothing is stale after a
crash or a reboot.
"""

import base64
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

from flows.servers.settings import HOST, login
from rlhf_core.common.errors import UserError
from tasks.runtime.tracking import EXPERIMENT

PREFECT_PORT = 4200
MLFLOW_PORT = 5000
LOGIN = "/rlhf-login"  # path of the page that logs a browser in, see flows/servers/serve.py
VIEW = "rlhf"  # name of MLflow's saved view of the runs, see flows/servers/serve.py
MARK, PART = "RLHF_SERVICES", "RLHF_SERVICE"
PORTS = range(1024, 65536)  # lower ports are reserved for the system
START_SECONDS = 240.0  # a busy machine needs more than a minute
STOP_SECONDS = 15.0


@dataclass(frozen=True)
class Services:
    """Ports of a checkout's services."""

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


def up(root: Path, prefect_port: int | None = None, mlflow_port: int | None = None) -> Services:
    """Start the services unless they are running, wait until they answer, and return their ports.

    Raises:
        UserError: a port is out of range, in use, given twice, or differs from the port of the running services;
            or a service did not start (the message names its log).
    """
    wanted = Services(prefect_port or PREFECT_PORT, mlflow_port or MLFLOW_PORT)
    asked = {"--prefect-port": prefect_port, "--mlflow-port": mlflow_port}
    _require_ports({flag: port for flag, port in asked.items() if port is not None}, wanted)
    running = find(root)
    if running is not None:
        _require_same(running, prefect_port, mlflow_port)
        return running
    down(root)  # one service may have survived a crash of the others
    _require_free(wanted.prefect_port, "--prefect-port")
    _require_free(wanted.mlflow_port, "--mlflow-port")
    folder = root / ".rlhf"
    folder.mkdir(exist_ok=True)
    registered = folder / "registered"
    registered.unlink(missing_ok=True)
    (folder / "services.json").write_text(json.dumps(asdict(wanted)))
    try:
        prefect = _start(root, "prefect", wanted, ["flows.servers.serve", "prefect", str(wanted.prefect_port)])
        mlflow = _start(root, "mlflow", wanted, ["flows.servers.serve", "mlflow", str(wanted.mlflow_port)])
        _wait(root, "prefect", prefect, lambda: _answers(f"{wanted.prefect}/api/health"))
        worker = _start(root, "worker", wanted, ["flows.run.worker", str(registered)])
        _wait(root, "mlflow", mlflow, lambda: _answers(f"{wanted.mlflow}/health"))
        _wait(root, "worker", worker, registered.is_file)
    except BaseException:
        down(root)
        raise
    return wanted


def down(root: Path) -> list[str]:
    """Stop the services of `root` and everything they run; return the names of those that were running.

    The worker is stopped first, so that its runs can still report to the server that they were stopped.
    """
    stopped: list[str] = []
    for parts in (("worker",), ("prefect", "mlflow")):
        stopped += _stop(root, parts)
    (root / ".rlhf" / "services.json").unlink(missing_ok=True)
    return stopped


def find(root: Path) -> Services | None:
    """Return the ports of the services of `root`, None unless both servers answer and the worker is running."""
    path = root / ".rlhf" / "services.json"
    if not path.is_file():
        return None
    services = Services(**json.loads(path.read_text()))
    answering = all(map(_answers, (f"{services.prefect}/api/health", f"{services.mlflow}/health")))
    return services if answering and _processes(root, ("worker",)) else None


def login_addresses(root: Path, services: Services) -> tuple[str, str]:
    """Return addresses that log a browser in: Prefect's UI, and MLflow's table of this project's training runs."""
    question = f"{services.mlflow}/api/2.0/mlflow/experiments/get-by-name?experiment_name={EXPERIMENT}"
    authorization = "Basic " + base64.b64encode(login(root).encode()).decode()
    request = urllib.request.Request(question, headers={"Authorization": authorization})
    with urllib.request.urlopen(request, timeout=60) as response:
        experiment = json.load(response)["experiment"]["experiment_id"]
    table = f"/experiments/{experiment}/runs?workflowType=machine_learning&viewStateShareKey={VIEW}"
    return (
        f"{services.prefect}{LOGIN}#{login(root)}",
        f"http://{login(root)}@{HOST}:{services.mlflow_port}{LOGIN}#{table}",
    )


def mlflow_address(root: Path) -> str:
    """Return the address of MLflow's UI; if it is not running, the address that `rlhf up` would use."""
    return (find(root) or Services()).mlflow


def _start(root: Path, part: str, services: Services, module: Sequence[str]) -> "subprocess.Popen[bytes]":
    """Start one service detached from this terminal; its output goes to .rlhf/PART.log."""
    port = services.prefect_port
    environment = {
        **os.environ,
        MARK: str(root),
        PART: part,
        "PREFECT_API_URL": f"{services.prefect}/api",
        "PREFECT_API_AUTH_STRING": login(root),
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"http://{HOST}:{port},http://localhost:{port}",
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # saves 10 processes and a minute
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
    }
    with (root / ".rlhf" / f"{part}.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", *module],
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
        UserError: the process ended, or did not answer in time.
    """
    deadline = time.monotonic() + START_SECONDS
    while not is_ready():
        ended = process.poll() is not None
        if ended or time.monotonic() > deadline:
            log = root / ".rlhf" / f"{part}.log"
            said = log.read_text(errors="replace").strip().splitlines() or ["nothing"]
            happened = "stopped during startup" if ended else f"did not answer within {START_SECONDS:.0f} s"
            raise UserError(
                f"The {part} service {happened}. Its last output: {said[-1].strip()}\nSee {log}, then try again."
            )
        time.sleep(0.3)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _require_ports(asked: dict[str, int], wanted: Services) -> None:
    """Raise UserError if a requested port is out of range or both ports are the same."""
    for flag, port in asked.items():
        if port not in PORTS:
            raise UserError(f"{flag} {port} is out of range.\nChoose a port from {PORTS.start} to {PORTS.stop - 1}.")
    if wanted.prefect_port == wanted.mlflow_port:
        raise UserError(
            f"Prefect and MLflow cannot both listen on port {wanted.prefect_port}.\n"
            f"Choose two ports: rlhf up --prefect-port {PREFECT_PORT} --mlflow-port {MLFLOW_PORT}"
        )


def _require_same(running: Services, prefect_port: int | None, mlflow_port: int | None) -> None:
    """Raise UserError if the services are running on a port other than the requested one."""
    if prefect_port in (None, running.prefect_port) and mlflow_port in (None, running.mlflow_port):
        return
    raise UserError(
        f"The services are already running: Prefect on port {running.prefect_port}, "
        f"MLflow on port {running.mlflow_port}.\nStop them with `rlhf down`, then start them on other ports."
    )


def _require_free(port: int, flag: str) -> None:
    """Raise UserError if another program uses `port`."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise UserError(
                f"Port {port} of {HOST} is in use.\nFree it, or choose another: rlhf up {flag} {port + 1}"
            ) from error


def _processes(root: Path, parts: Sequence[str]) -> list[tuple[psutil.Process, str]]:
    """Return all live processes of these services of `root`, each with the name of its service."""
    found = []
    for process in psutil.process_iter():
        try:
            environment = process.environ()
        except psutil.Error:  # owned by another user, or already ended
            continue
        if environment.get(MARK) == str(root) and environment.get(PART) in parts:
            found.append((process, environment[PART]))
    return found


def _stop(root: Path, parts: Sequence[str]) -> list[str]:
    """Terminate all processes of these services, then kill the remaining ones."""
    running = _processes(root, parts)
    for process, _ in running:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    psutil.wait_procs([process for process, _ in running], timeout=STOP_SECONDS)
    for process, _ in _processes(root, parts):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    return sorted({part for _, part in running})
