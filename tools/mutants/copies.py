"""Copies of the project in which faults are planted and tests are run. The project itself is never changed."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import psutil

from tools.mutants.fault import OutdatedError, Planted, planted

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 300.0  # seconds for the tests of one fault
MARK = "PLANTED_FAULT"  # environment variable that identifies every process started by the tests
FAILED = 1  # pytest's exit code if tests ran and failed; any other code proves nothing
UNMARKED = "not slow and not browser and not data"
KILLED, SURVIVED, TIMED_OUT, OUTDATED, BROKEN = "killed", "SURVIVED", "timed out", "OUTDATED", "BROKEN"

LIBRARIES = [  # imported by most tests; importing them takes longer than most tests
    "pytest", "pydantic", "torch._dynamo", "accelerate", "transformers.generation.utils",
    "transformers.models.llama.modeling_llama", "transformers.models.gpt2.modeling_gpt2",
]  # fmt: skip
SERVER = get_context("forkserver")
SERVER.set_forkserver_preload(LIBRARIES)


@dataclass(frozen=True)
class Result:
    """The result of planting a fault. `detail` is the failed test, or what went wrong."""

    planted: Planted
    verdict: str
    detail: str
    seconds: float = 0.0

    @property
    def is_noticed(self) -> bool:
        """Whether a test failed or did not end."""
        return self.verdict in (KILLED, TIMED_OUT)

    def __str__(self) -> str:
        return f"{self.verdict:9} {self.planted}\n{'':14}{self.detail} ({self.seconds:.0f} s)"


def make_copy(root: Path, folder: Path) -> Path:
    """Copy the files that git tracks or would track into a new repository, which tests can clone."""
    listed = _git(root, "ls-files", "--cached", "--others", "--exclude-standard", "-z")
    for name in filter(None, listed.split("\0")):
        if (root / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, folder / name)
    _git(folder, "init", "-q")
    _git(folder, "add", "-A")
    return folder


def run_tests(copy: Path, tests: Sequence[str], timeout: float = TIMEOUT) -> tuple[int | None, str]:
    """Run pytest on a copy up to the first failure. Return exit code and output, or None if it did not end in time.

    The process is forked from a server that has imported the libraries, because importing torch takes longer than most
    tests.
    """
    log = copy.with_name(f"{copy.name}.log")
    process = SERVER.Process(target=_become_pytest, args=(copy, log, list(tests)))
    process.start()
    process.join(timeout)
    code = process.exitcode
    if code is None:
        process.kill()
        process.join()
    _kill_all(copy)
    return code, log.read_text(encoding="utf-8", errors="replace")


def _kill_all(copy: Path) -> None:
    """Kill every process that the tests of a copy started and left running, in any session."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == str(copy):
                process.kill()


def _become_pytest(copy: Path, log: Path, tests: list[str]) -> None:
    """Run tests in a copy, with no module of this project imported yet."""
    os.setsid()
    with log.open("wb") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(1, 2)
    os.chdir(copy)
    # Do not write bytecode: Python would use a stale file for a faulty source of the same size.
    sys.dont_write_bytecode = True
    os.environ |= {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    os.environ[MARK] = str(copy)
    sys.path[:] = [str(copy), *(entry for entry in sys.path if entry and Path(entry) != ROOT)]
    for name in [name for name in sys.modules if name.partition(".")[0] == "tools"]:
        del sys.modules[name]
    import pytest

    sys.exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-m", UNMARKED, *tests])))


def try_fault(copy: Path, fault: Planted, timeout: float = TIMEOUT) -> Result:
    """Plant a fault in a copy, run its tests, and restore the file."""
    began = time.monotonic()
    path = copy / fault.path
    try:
        source = path.read_text(encoding="utf-8")
        changed = planted(source, fault.fault)
    except (OutdatedError, FileNotFoundError) as error:
        return Result(fault, OUTDATED, str(error))
    path.write_text(changed, encoding="utf-8")
    try:
        code, output = run_tests(copy, fault.tests, timeout)
    finally:
        path.write_text(source, encoding="utf-8")
    return Result(fault, *_verdict(code, output, fault, timeout), time.monotonic() - began)


def _verdict(code: int | None, output: str, fault: Planted, timeout: float) -> tuple[str, str]:
    if code is None:
        return TIMED_OUT, f"{' '.join(fault.tests)} did not end within {timeout:.0f} s"
    if code == 0:
        return SURVIVED, f"{' '.join(fault.tests)} passed"
    failed = re.search(r"^(?:FAILED|ERROR) (\S+::\w+)", output, re.MULTILINE)
    if code == FAILED and failed:
        return KILLED, failed[1]
    last = (output.strip().splitlines() or ["no output"])[-1]
    return BROKEN, f"pytest ended with exit code {code}, not with a failed test: {last}"


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout
