"""Run a command, and kill it with all its children when the parent process dies, even by SIGKILL.

    python supervise.py PARENT_PID COMMAND [ARGUMENT ...]

This process must lead its process group. On Linux the kernel signals the parent's death; the whole group is then
killed: `dvc`, the stage, and the stage's children. A killed stage can be resumed.
"""

import ctypes
import os
import signal
import subprocess
import sys
from types import FrameType

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def kill_group(signal_number: int = 0, frame: FrameType | None = None) -> None:
    """Kill this process group, including this process."""
    os.killpg(0, signal.SIGKILL)


def main() -> int:
    """Run the command and return its exit code as a shell does (128 + N if signal N ended it)."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    signal.signal(signal.SIGTERM, kill_group)
    signal.signal(signal.SIGINT, lambda *_: None)  # the command handles Ctrl-C itself
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # the parent died before the line above
        kill_group()
    code = subprocess.run(command, check=False, close_fds=False).returncode  # a server inherits its socket
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
