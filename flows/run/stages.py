"""Run each stage as a process group: start it through DVC, stream its output, kill it as a whole."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from flows.run import stopping
from flows.servers import supervise

MISTAKE = "error: "  # prefix that stages use only for a UserError
LAST = 4  # largest number of lines with which a stage ends after a UserError, DVC's included
HINTS = (  # DVC's advice after each stage, omitted from the log
    "To track the changes with git, run:",
    "git add dvc.lock",
    "To enable auto staging, run:",
    "dvc config core.autostage true",
    "Use `dvc push` to send your updates to remote storage.",
)


@dataclass(frozen=True)
class Outcome:
    """How a stage ended: DVC's exit code, the error message, and whether the user can fix the error."""

    code: int
    message: str = ""
    is_mistake: bool = False


@dataclass
class StageRunner:
    """Runs stages of the checkout `root`, several at a time, until `stop` is called.

    As a context manager it stops running stages on exit and on a signal (`flows.run.stopping`).
    """

    root: Path
    environment: dict[str, str]
    _running: dict[str, "subprocess.Popen[str]"] = field(default_factory=dict)
    is_stopped: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _signals: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Self:
        self._signals.enter_context(stopping.calling(self.stop))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._signals.close()
        self.stop()

    def run(self, stage: str, log: Callable[[str], None]) -> Outcome:
        """Run `dvc repro --single-item STAGE` and pass each line of output to `log`.

        DVC decides whether the stage is up to date. `--wait-for-lock` allows several stages at the same time.
        """
        return self.call(stage, ["dvc", "--wait-for-lock", "repro", "--single-item", stage], log)

    def call(self, name: str, module: list[str], log: Callable[[str], None]) -> Outcome:
        """Run `python -m MODULE ARGUMENTS` in the checkout, in a new process group."""
        with self._lock:
            if self.is_stopped:
                return Outcome(code=128 + signal.SIGKILL, message=f"{name} was not started: the run was stopped.")
            process = subprocess.Popen(
                [sys.executable, "-I", supervise.__file__, str(os.getpid()), sys.executable, "-m", *module],
                cwd=self.root,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
            self._running[name] = process
        lines: list[str] = []
        logged = 0
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if (text := line.rstrip()) and text.strip() not in HINTS:
                    lines.append(text)
                if not any(held.startswith(MISTAKE) for held in lines[-LAST:]):
                    for text in lines[logged:]:
                        log(text)
                    logged = len(lines)
            code = process.wait()
        finally:
            with self._lock:
                _kill_group(self._running.pop(name))
        outcome = Outcome(code, *_diagnose(name, code, lines)) if code else Outcome(code)
        if not outcome.is_mistake:  # a mistake is shown once, with the end of the run
            for text in lines[logged:]:
                log(text)
        return outcome

    def stop(self) -> None:
        """Kill every running stage with all its processes and refuse to start new ones."""
        with self._lock:
            self.is_stopped = True
            for process in self._running.values():
                _kill_group(process)


def _kill_group(process: "subprocess.Popen[str]") -> None:
    """Kill a process and its children, unless it has ended: another process may then have its id."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def _diagnose(name: str, code: int, lines: list[str]) -> tuple[str, bool]:
    """Return the error message of a stage, in one or two lines, and whether the user can fix the error.

    A stage prints its UserError as `error: ...`, then DVC adds `ERROR: failed to reproduce ...`.
    """
    by_dvc = [line for line in lines if line.startswith("ERROR: ")]
    starts = [index for index, line in enumerate(lines) if line.startswith(MISTAKE)]
    if starts:
        said = [line for line in lines[starts[-1] :] if not line.startswith("ERROR: ")]
        return " ".join(said[:2]).removeprefix(MISTAKE), True
    if by_dvc:
        return by_dvc[-1].removeprefix("ERROR: "), False
    how = f"was killed (signal {abs(code) % 128})" if code < 0 or code > 128 else f"ended with exit code {code}"
    return f"{name} {how} without an error message.", False
