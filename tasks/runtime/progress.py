"""How far a stage is: a bar with the time left on a terminal, whole lines at intervals where there is none."""

import atexit
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

T = TypeVar("T")
INTERVAL = 10.0  # seconds between two lines


class Shown(Protocol):
    """Something that shows how many of `total` are done."""

    def advance(self, count: int = 1, note: str = "") -> None:
        """`count` more are done; `note` is shown next to the count."""
        ...

    def close(self) -> None:
        """Show nothing more."""
        ...


class Bar:
    """A bar on the terminal."""

    def __init__(self, name: str, total: int, done: int, *, stays: bool) -> None:
        columns = (TextColumn("{task.description:12}"), BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn())
        note = TextColumn("{task.fields[note]}")
        console = Console(stderr=True, highlight=False)
        self.shown = RichProgress(*columns, note, console=console, transient=not stays)
        self.task = self.shown.add_task(name, total=total, completed=done, note="")
        self.shown.start()
        atexit.register(self.close)  # whatever happens, the terminal gets its cursor back

    def advance(self, count: int = 1, note: str = "") -> None:
        """Move the bar."""
        self.shown.update(self.task, advance=count, note=note)

    def close(self) -> None:
        """Stop updating the bar."""
        self.shown.stop()
        atexit.unregister(self.close)


class Lines:
    """Lines on stderr, at most one every INTERVAL seconds and one at the end; short work without a note prints nothing.

    `clock` gives seconds (time.monotonic); `began` is its reading when work on what is not done yet began.
    """

    def __init__(
        self,
        name: str,
        total: int,
        done: int = 0,
        began: float | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.name, self.total, self.done, self.start = name, total, done, done
        self.clock = clock or time.monotonic
        self.began = self.last = self.clock() if began is None else began
        self.has_spoken = False

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count, and write a line when it is time for one."""
        self.done += count
        now = self.clock()
        is_end = self.done >= self.total and (self.has_spoken or note != "")
        if now - self.last < INTERVAL and not is_end:
            return
        self.last, self.has_spoken = now, True
        left = (self.total - self.done) * (now - self.began) / max(self.done - self.start, 1)
        line = f"{self.name:12} {self.done}/{self.total}  {left:,.0f} s left  {note}"
        sys.stderr.write(line.rstrip() + "\n")  # one write per line: parallel stages share a log
        sys.stderr.flush()

    def close(self) -> None:
        """Nothing to clean up."""


def show(name: str, total: int, done: int = 0, began: float | None = None, *, stays: bool = True) -> Shown:
    """Begin to show how many of `total` are done; whoever begins also closes.

    began: see Lines. stays: leave the bar on the terminal when all is done.
    """
    return Bar(name, total, done, stays=stays) if sys.stderr.isatty() else Lines(name, total, done, began)


@contextmanager
def progress(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a piece of work while it lasts: yields the function that is told how many more are done."""
    shown = show(name, total, stays=False)
    try:
        yield shown.advance
    finally:
        shown.close()


def counted(name: str, items: Collection[T]) -> Iterator[T]:
    """The items one by one, showing how many have been dealt with."""
    with progress(name, len(items)) as report:
        for item in items:
            yield item
            report(1)


def transformers_progress(bar: Callable[..., Any], args: tuple[Any, ...], settings: dict[str, Any]) -> Any:
    """What transformers counts (weights that it loads), as our progress; see transformers' `set_tqdm_hook`."""
    if args and isinstance(args[0], Collection):
        return counted(str(settings.get("desc") or "loading").lower(), args[0])
    return bar(*args, **settings)
