"""A folder locked by one process; the kernel releases the lock when the process ends."""

import fcntl
import os
from pathlib import Path


def hold(folder: Path) -> int | None:
    """Make `folder` and return a locked handle, None where another process holds it. Close the handle to release it."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:  # deleted just now
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        if folder.exists() and os.path.samestat(os.fstat(handle), folder.stat()):
            return handle
        os.close(handle)  # deleted between opening and locking
