"""`rlhf runs`: list the runs under runs/ with state and size, and delete them."""

import difflib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from flows.run.locks import CHECKOUT, FAILED, HOLDER, IN_PLACE, RUNS, holder, last_holder
from flows.servers.services import MARK, find
from rlhf_core.common.errors import UserError
from tasks.reporting.formats import NONE
from tasks.runtime.hold import hold

RUNNING, INTERRUPTED, FAILURE, FINISHED = "running", "interrupted", "failed", "finished"


@dataclass(frozen=True)
class Run:
    """One folder under runs/."""

    name: str
    state: str
    since: float  # seconds since the epoch: the start of a running or interrupted run, the end of any other
    size: int  # bytes that deleting the folder frees


def list_runs(root: Path) -> list[Run]:
    """Return the runs of a checkout that have their own folder, latest first."""
    folders = [path for path in (root / RUNS).glob("*") if path.is_dir()]
    found = [Run(path.name, *_state(path), _size(path)) for path in folders]
    return sorted(found, key=lambda run: -run.since)


def print_runs(root: Path, out: Console) -> None:
    """Print the runs of a checkout as a table that fits 80 columns, then how to delete them."""
    if (here := holder(root / IN_PLACE)) is not None:
        out.print(f"Running in this checkout: {here}", soft_wrap=True)
    runs = list_runs(root)
    if not runs:
        out.print("No run has its own folder. A run with changed parameters gets one: rlhf run --set KEY=VALUE")
        return
    table = Table()
    table.add_column("run", overflow="fold", max_width=36)
    for title in ("state", "since"):
        table.add_column(title, no_wrap=True)
    table.add_column("size", no_wrap=True, justify="right")
    for run in runs:
        since = f"{datetime.fromtimestamp(run.since):%Y-%m-%d %H:%M}"
        table.add_row(run.name, run.state, since, size_text(run.size) if run.size else NONE)
    out.print(table)
    out.print("Size: disk space that deleting frees, without files in DVC's cache.")
    out.print("Delete: rlhf runs --remove NAME, or --remove-all for all runs that are not running.")


def delete(root: Path, names: Sequence[str], is_all: bool, out: Console) -> None:
    """Delete the folders of these runs, or with `is_all` of all runs that are not running.

    The DVC experiments of finished runs are kept.

    Raises:
        UserError: a run does not exist or is running; then nothing is deleted.
    """
    runs = {run.name: run for run in list_runs(root)}
    for name in names:
        if name not in runs:
            near = difflib.get_close_matches(name, runs, n=1)
            hint = f"Did you mean {near[0]}?" if near else "List the runs with: rlhf runs"
            raise UserError(f"There is no run {name} in {root / RUNS}. {hint}")
        if (found := holder(root / RUNS / name)) is not None:
            raise UserError(f"The run {name} is running: {found}.\nStop it before you delete it: kill {found.pid}")
    wanted = list(runs) if is_all else list(dict.fromkeys(names))
    deleted = [runs[name] for name in wanted if _delete(root / RUNS / name)]
    freed = size_text(sum(run.size for run in deleted))
    listed = ", ".join(run.name for run in deleted)
    out.print(f"Deleted: {listed} ({freed})." if deleted else "Nothing to delete.", soft_wrap=True)


def require_no_terminal_run(root: Path) -> None:
    """Refuse to stop the services while a run started in a terminal reports to their Prefect server.

    The worker's runs end with the services. A terminal's run would lose its server before its end.

    Raises:
        UserError: there is such a run; the message names it.
    """
    services = find(root)
    if services is None:
        return
    for folder in (root / IN_PLACE, *(root / RUNS).glob("*")):
        found = holder(folder)
        if found is not None and _is_client(found.pid, services.prefect_port):
            raise UserError(f"A run uses these servers: {found}.\nWait for it, or stop it: kill {found.pid}")


def _is_client(pid: int, port: int) -> bool:
    """Return whether the process is not one of the services and has a connection to this port."""
    try:
        process = psutil.Process(pid)
        return MARK not in process.environ() and any(
            connection.raddr and connection.raddr.port == port for connection in process.net_connections("tcp")
        )
    except psutil.Error:
        return False


def size_text(size: int) -> str:
    """Return a size in its largest unit of at least 1: `1.4 GiB`."""
    value = float(size)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def _delete(folder: Path) -> bool:
    """Delete a run's folder unless a process holds its lock; return whether it was deleted."""
    handle = hold(folder)
    if handle is None:
        return False
    try:
        shutil.rmtree(folder)
    finally:
        os.close(handle)
    return True


def _state(folder: Path) -> tuple[str, float]:
    if (live := holder(folder)) is not None:
        return RUNNING, live.since
    if (folder / FAILED).is_file():
        return FAILURE, (folder / FAILED).stat().st_mtime
    if (folder / CHECKOUT).is_dir():
        last = last_holder(folder)
        return INTERRUPTED, last.since if last else folder.stat().st_mtime
    files = [path.stat().st_mtime for path in folder.iterdir() if path.name != HOLDER]
    return FINISHED, max(files, default=folder.stat().st_mtime)  # a run without stage `report` leaves no file


def _size(folder: Path) -> int:
    """Return the bytes on disk of files that exist only in this folder; hard links to DVC's cache do not count."""
    links: dict[int, list[os.stat_result]] = {}
    for status in _files(folder):
        links.setdefault(status.st_ino, []).append(status)
    return sum(found[0].st_blocks * 512 for found in links.values() if len(found) == found[0].st_nlink)


def _files(folder: Path) -> Iterator[os.stat_result]:
    for path in folder.rglob("*"):
        try:
            if path.is_file() and not path.is_symlink():
                yield path.lstat()
        except FileNotFoundError:  # a running stage may move its files
            continue
