"""Locks of a checkout: only one run at a time, and no `dvc` command of the user at the same time."""

import fcntl
import json
import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psutil

from rlhf_core.common.errors import UserError
from tasks.runtime.hold import hold

IN_PLACE = Path(".rlhf/run")  # the folder that a run in the checkout itself locks; other runs lock runs/NAME/
RUNS, CHECKOUT, FAILED = "runs", "checkout", "failed"  # runs/NAME/ contains the last two until the run is finished
HOLDER = "holder.json"
PATIENCE = 3.0  # seconds to wait for a short command, such as an editor's `dvc status`
STEP = 0.05


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock."""

    pid: int
    since: float  # seconds since the epoch
    command: str

    def __str__(self) -> str:
        began = datetime.fromtimestamp(self.since)
        day = "" if began.date() == datetime.now().date() else f"{began:%Y-%m-%d} "
        return f"pid {self.pid}, since {day}{began:%H:%M:%S}: {self.command}"


@contextmanager
def only_one(folder: Path, what: str) -> Iterator[None]:
    """Lock `folder` for this process and record the holder. `what` names the run in messages.

    Raises:
        UserError: another process holds the lock; the message names it.
    """
    handle = _patiently_hold(folder)
    if handle is None:
        raise _under_way(what, _read(folder))
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    partial = folder / f"{HOLDER}.partial"
    partial.write_text(json.dumps({"pid": os.getpid(), "since": time.time(), "command": command}), encoding="utf-8")
    partial.rename(folder / HOLDER)
    try:
        yield
        (folder / HOLDER).unlink(missing_ok=True)
    finally:
        os.close(handle)


def holder(folder: Path) -> Holder | None:
    """Return the process that holds the lock of `folder`, None if it is not locked."""
    if not folder.is_dir():
        return None
    handle = hold(folder)
    if handle is None:
        return _read(folder)
    os.close(handle)
    return None


def last_holder(folder: Path) -> Holder | None:
    """Return the last holder of `folder` if it ended before its work was done, else None."""
    return _read(folder) if (folder / HOLDER).is_file() else None


def require_idle(folder: Path, what: str) -> None:
    """Raise UserError if another run holds the lock of `folder`; the message names it."""
    if (found := holder(folder)) is not None:
        raise _under_way(what, found)


def require_no_dvc(checkout: Path) -> None:
    """Refuse to start while a `dvc` command is running in a checkout. Stale locks of killed commands are ignored.

    Raises:
        UserError: a `dvc` command is running; the message names it.
    """
    deadline = time.monotonic() + PATIENCE
    while (found := _dvc_holder(checkout)) is not None:
        if time.monotonic() > deadline:
            raise UserError(f"DVC is running in {checkout}: {found}.\nWait for it, or stop it: kill {found.pid}")
        time.sleep(STEP)


def _under_way(what: str, found: Holder) -> UserError:
    return UserError(f"{what} is already running: {found}.\nWait for it, or stop it: kill {found.pid}")


def _patiently_hold(folder: Path) -> int | None:
    """Lock `folder` and return the handle. Retry, since a process that only checks the lock holds it briefly."""
    for _ in range(20):
        if (handle := hold(folder)) is not None:
            return handle
        time.sleep(STEP)
    return None


def _read(folder: Path) -> Holder:
    try:
        return Holder(**json.loads((folder / HOLDER).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return Holder(0, folder.stat().st_mtime, "unknown")


def _dvc_holder(checkout: Path) -> Holder | None:
    """Return a live process that holds DVC's lock of the checkout or of paths in it, None if there is none."""
    folder = checkout / ".dvc" / "tmp"
    for pid, command in [*_repository_lock(folder / "lock"), *_path_locks(folder / "rwlock")]:
        if (found := _dvc_process(pid, command)) is not None:
            return found
    return None


def _repository_lock(path: Path) -> list[tuple[int, str]]:
    """Return the process id in DVC's lock file if the file is locked (zc.lockfile uses flock)."""
    try:
        with path.open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return [(int(lock.read().split()[0]), "dvc")]
    except (FileNotFoundError, ValueError, IndexError):
        pass
    return []


def _path_locks(path: Path) -> list[tuple[int, str]]:
    """Return process ids and commands in DVC's file of locked paths.

    Killed processes remain in that file. If it has no others, it is deleted: DVC would warn of each of them, or wait
    for another program that now has the process id.
    """
    found = _locked_paths(path)
    if found and not any(_dvc_process(*entry) for entry in found):
        with path.with_name(f"{path.name}.lock").open("a") as guard, suppress(BlockingIOError):
            fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)  # DVC edits the file only with this lock
            if _locked_paths(path) == found:
                path.unlink(missing_ok=True)
        return []
    return found


def _locked_paths(path: Path) -> list[tuple[int, str]]:
    try:
        locks = json.loads(path.read_text(encoding="utf-8"))
        readers = [entry for entries in locks.get("read", {}).values() for entry in entries]
        return sorted(
            {(int(entry["pid"]), str(entry["cmd"])) for entry in [*readers, *locks.get("write", {}).values()]}
        )
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
        return []


def _dvc_process(pid: int, command: str) -> Holder | None:
    """Return the process if it is alive and is the one that DVC recorded, not a program that reuses its id."""
    try:
        process = psutil.Process(pid)
        line = " ".join(process.cmdline())
        is_it = process.status() != psutil.STATUS_ZOMBIE and ("dvc" in line or line.endswith(command))
        return Holder(pid, process.create_time(), line) if is_it else None
    except psutil.Error:
        return None
