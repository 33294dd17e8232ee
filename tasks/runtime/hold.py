"""A lock on a folder. The kernel releases it when the process ends, even after a crash or SIGKILL."""

import fcntl
import os
from pathlib import Path


def hold(folder: Path) -> int | None:
    """Create and lock `folder`. Return the handle, which releases the lock when closed; None if it is locked."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:  # deleted since mkdir
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        if folder.exists() and os.path.samestat(os.fstat(handle), folder.stat()):
            return handle
        os.close(handle)  # deleted between opening and locking
