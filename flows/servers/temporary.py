"""Prefect's server for one `rlhf run` where `rlhf up` has started none.

Prefect would start one itself, but in the terminal's process group: Ctrl-C would end it before the run could report
that it was stopped. This one has a session of its own, and dies with the run.
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
# How Prefect sets up its own temporary server: no UI, and only the services that a single run needs.
ENVIRONMENT = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
START_SECONDS = 180.0  # it makes its database on the first run
STOP_SECONDS = 3.0


@dataclass
class TemporaryServer:
    """A server that is starting or running; its database is the one in PREFECT_HOME."""

    port: int
    process: "subprocess.Popen[bytes]"
    log: IO[bytes]

    @property
    def api(self) -> str:
        """Value for PREFECT_API_URL."""
        return f"http://{HOST}:{self.port}/api"

    def stop(self) -> None:
        """Let it write what it has received, then end it with all it has started."""
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
    """Start a server without waiting for it; it is stopped when this process exits."""
    log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
    # Bound here and handed over, so that no other program can take the port in between.
    with socket.socket() as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # uvicorn sets it on its own sockets alone
        listener.bind((HOST, 0))
        port = int(listener.getsockname()[1])
        command = ["uvicorn", "--factory", APPLICATION, "--fd", str(listener.fileno()), "--log-level", "error"]
        command += ["--timeout-graceful-shutdown", "1"]  # an open connection for events would keep it from ending
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
    # Prefect sends what is left of logs and events before functions registered here are called.
    atexit.register(server.stop)
    return server


def wait(server: TemporaryServer) -> None:
    """Wait until the server answers.

    Raises:
        UserError: it did not start; the message holds its last line.
    """
    deadline = time.monotonic() + START_SECONDS
    while server.process.poll() is None and time.monotonic() < deadline:
        with suppress(urllib.error.URLError, OSError), urllib.request.urlopen(f"{server.api}/health", timeout=5):
            return
        time.sleep(0.05)
    server.log.seek(0)
    said = server.log.read().decode(errors="replace").strip().splitlines() or ["nothing"]
    raise UserError(f"Prefect's temporary server did not start; it last said: {said[-1]}\nStart one with: rlhf up")
