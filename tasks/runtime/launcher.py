"""What starts the work of a stage, in one or more processes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol


class Launcher(Protocol):
    """Starts a stage's work in a fixed number of processes."""

    @property
    def processes(self) -> int:
        """The number of processes; every one checks that it has joined so many (`make_accelerator`)."""
        ...

    def run(self, work: Callable[..., None], *arguments: str) -> None:
        """Call `work(*arguments)` in every process, and return when all have ended.

        `work` is a function of a module and its arguments are text, so that another process can import and call it.

        Raises:
            Exception: what `work` raised in any of them, after the others were stopped.
        """
        ...


@dataclass(frozen=True)
class OneProcess:
    """This process, which DVC has started, does the work itself."""

    processes: ClassVar[int] = 1

    def run(self, work: Callable[..., None], *arguments: str) -> None:
        """Call it."""
        work(*arguments)


LAUNCHER: Launcher = OneProcess()  # of every stage
