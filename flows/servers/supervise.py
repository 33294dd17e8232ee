"""Run a command that dies, with all it has started, when whoever started it dies: even by SIGKILL.

    python supervise.py PARENT_PID COMMAND [ARGUMENT ...]

Started as the leader of a process group. The kernel reports the parent's death by a signal (Linux), upon
which the whole group is killed: `dvc`, the stage, and what the stage runs. A killed stage resumes later.
"""

import ctypes
import os
import signal
import subprocess
import sys
from types import FrameType

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def kill_group(signal_number: int = 0, frame: FrameType | None = None) -> None:
    """Kill this process group, this process included."""
    os.killpg(0, signal.SIGKILL)


def main() -> int:
    """Run the command and return its exit code, as a shell would (128 + N when signal N ended it)."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    signal.signal(signal.SIGTERM, kill_group)
    signal.signal(signal.SIGINT, lambda *_: None)  # for the command to act on
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before the line above
        kill_group()
    code = subprocess.run(command, check=False, close_fds=False).returncode  # a server is given its socket
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
