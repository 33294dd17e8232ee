"""A temporary Prefect server for one `rlhf run`, used when `rlhf up` is not running.

Prefect can start such a server itself, but in the terminal's process group: Ctrl-C would end the server before the
run could report that it was stopped. This server runs in its own session and ends with the run.
"""

import atexit
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from typing import IO

from flows.servers import supervise
from rlhf_core.common.errors import UserError

HOST = "127.0.0.1"
APPLICATION = "prefect.server.api.server:create_app"
# The settings of Prefect's own temporary server: no UI, and only the services that a single run needs.
ENVIRONMENT = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
START_SECONDS = 180.0  # the first run creates the database
STOP_SECONDS = 3.0


@dataclass
class TemporaryServer:
    """A server that is starting or running; its database is in PREFECT_HOME."""

    port: int
    process: "subprocess.Popen[bytes]"
    log: IO[bytes]

    @property
    def api(self) -> str:
        """Value for PREFECT_API_URL."""
        return f"http://{HOST}:{self.port}/api"

    def stop(self) -> None:
        """Let the server store what it has received, then end it and all its children."""
        if self.process.poll() is not None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGINT)
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def begin() -> TemporaryServer:
    """Start a server without waiting for it. It is stopped when this process exits."""
    log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
    # The socket is bound here and inherited, so that no other program can take the port in between.
    with socket.socket() as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # uvicorn sets it only on its own sockets
        listener.bind((HOST, 0))
        port = int(listener.getsockname()[1])
        command = ["uvicorn", "--factory", APPLICATION, "--fd", str(listener.fileno()), "--log-level", "error"]
        command += ["--timeout-graceful-shutdown", "1"]  # an open event connection would delay the shutdown
        process = subprocess.Popen(
            [sys.executable, "-I", supervise.__file__, str(os.getpid()), sys.executable, "-m", *command],
            env={**os.environ, **ENVIRONMENT},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=[listener.fileno()],
        )
    server = TemporaryServer(port, process, log)
    # Prefect sends its remaining logs and events before functions registered here are called.
    atexit.register(server.stop)
    return server


def wait(server: TemporaryServer) -> None:
    """Wait until the server answers.

    Raises:
        UserError: the server did not start; the message contains its last line of output.
    """
    deadline = time.monotonic() + START_SECONDS
    while server.process.poll() is None and time.monotonic() < deadline:
        with suppress(urllib.error.URLError, OSError), urllib.request.urlopen(f"{server.api}/health", timeout=5):
            return
        time.sleep(0.05)
    server.log.seek(0)
    said = server.log.read().decode(errors="replace").strip().splitlines() or ["nothing"]
    raise UserError(
        f"Prefect's temporary server did not start. Its last output: {said[-1]}\nStart a server with: rlhf up"
    )
