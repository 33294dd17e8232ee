"""Local services on 127.0.0.1: Prefect's server, MLflow's server, and a worker that runs what the UI starts.

Every process started here, and all it starts in turn, carries the checkout's path in `RLHF_SERVICES`. They are
found again by that, not by numbers in a file, so a crash or a restart of the machine leaves nothing stale.
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
LOGIN = "/rlhf-login"  # path of the page that logs a browser in: see flows/servers/serve.py
VIEW = "rlhf"  # name of MLflow's view of the runs: see flows/servers/serve.py
MARK, PART = "RLHF_SERVICES", "RLHF_SERVICE"
PORTS = range(1024, 65536)  # those below belong to the system
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


def up(root: Path, prefect_port: int | None = None, mlflow_port: int | None = None) -> Services:
    """Start what is not running yet, wait until it answers, and return where it listens.

    Raises:
        UserError: a port is out of range, in use, given twice, or differs from the one that the running services
            have; or a service did not start, and the message names its log.
    """
    wanted = Services(prefect_port or PREFECT_PORT, mlflow_port or MLFLOW_PORT)
    asked = {"--prefect-port": prefect_port, "--mlflow-port": mlflow_port}
    _require_ports({flag: port for flag, port in asked.items() if port is not None}, wanted)
    running = find(root)
    if running is not None:
        _require_same(running, prefect_port, mlflow_port)
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


def login_addresses(root: Path, services: Services) -> tuple[str, str]:
    """Addresses that log a browser in: to Prefect, and to MLflow's table of this project's training runs."""
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
    """Address of MLflow's UI, running or not (then where `rlhf up` would put it)."""
    return (find(root) or Services()).mlflow


def _start(root: Path, part: str, services: Services, module: Sequence[str]) -> "subprocess.Popen[bytes]":
    """Start one service detached from this terminal, its output in .rlhf/PART.log."""
    port = services.prefect_port
    environment = {
        **os.environ,
        MARK: str(root),
        PART: part,
        "PREFECT_API_URL": f"{services.prefect}/api",
        "PREFECT_API_AUTH_STRING": login(root),
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"http://{HOST}:{port},http://localhost:{port}",
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # 10 processes and a minute more otherwise
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


def _require_ports(asked: dict[str, int], wanted: Services) -> None:
    """Raise UserError where a port that was asked for cannot be one, or both are the same."""
    for flag, port in asked.items():
        if port not in PORTS:
            raise UserError(f"{flag} {port} is out of range.\nChoose a port from {PORTS.start} to {PORTS.stop - 1}.")
    if wanted.prefect_port == wanted.mlflow_port:
        raise UserError(
            f"Prefect and MLflow cannot both listen on port {wanted.prefect_port}.\n"
            f"Choose two ports: rlhf up --prefect-port {PREFECT_PORT} --mlflow-port {MLFLOW_PORT}"
        )


def _require_same(running: Services, prefect_port: int | None, mlflow_port: int | None) -> None:
    """Raise UserError where a port was asked for and the services run on another."""
    if prefect_port in (None, running.prefect_port) and mlflow_port in (None, running.mlflow_port):
        return
    raise UserError(
        f"The services already run: Prefect on port {running.prefect_port}, MLflow on port {running.mlflow_port}.\n"
        "Stop them first (rlhf down), then start them on other ports."
    )


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
