"""Launchers start the work of a stage, in one or more processes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol


class Launcher(Protocol):
    """Starts a stage's work in a fixed number of processes."""

    @property
    def processes(self) -> int:
        """The number of processes. Each process checks that this many have joined (`make_accelerator`)."""
        ...

    def run(self, work: Callable[..., None], *arguments: str) -> None:
        """Call `work(*arguments)` in every process, and return when all have ended.

        `work` is a module-level function and its arguments are text, so that another process can import and call it.

        Raises:
            Exception: the exception of `work` in any process, after the other processes were stopped.
        """
        ...


@dataclass(frozen=True)
class OneProcess:
    """Does the work in this process, which DVC has started."""

    processes: ClassVar[int] = 1

    def run(self, work: Callable[..., None], *arguments: str) -> None:
        """Call `work` directly."""
        work(*arguments)


LAUNCHER: Launcher = OneProcess()  # used by every stage
