"""Show the progress of a stage: a bar with the remaining time on a terminal, otherwise lines at intervals."""

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
    """A display of how many of `total` units are done."""

    def advance(self, count: int = 1, note: str = "") -> None:
        """Add `count` finished units and show `note` next to the count."""
        ...

    def close(self) -> None:
        """End the display."""
        ...


class Bar:
    """A progress bar on the terminal."""

    def __init__(self, name: str, total: int, done: int, *, stays: bool) -> None:
        columns = (TextColumn("{task.description:12}"), BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn())
        note = TextColumn("{task.fields[note]}")
        console = Console(stderr=True, highlight=False)
        self.shown = RichProgress(*columns, note, console=console, transient=not stays)
        self.task = self.shown.add_task(name, total=total, completed=done, note="")
        self.shown.start()
        atexit.register(self.close)  # restores the terminal's cursor in any case

    def advance(self, count: int = 1, note: str = "") -> None:
        """Move the bar."""
        self.shown.update(self.task, advance=count, note=note)

    def close(self) -> None:
        """Stop updating the bar."""
        self.shown.stop()
        atexit.unregister(self.close)


class Lines:
    """Progress lines on stderr: at most one every INTERVAL seconds, and one at the end.

    Work that takes less than INTERVAL and has no note prints nothing. `clock` returns seconds (default:
    time.monotonic). `began` is the clock's value when work on the remaining units began.
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
        """Add `count` and print a line if one is due."""
        self.done += count
        now = self.clock()
        is_end = self.done >= self.total and (self.has_spoken or note != "")
        if now - self.last < INTERVAL and not is_end:
            return
        self.last, self.has_spoken = now, True
        left = (self.total - self.done) * (now - self.began) / max(self.done - self.start, 1)
        line = f"{self.name:12} {self.done}/{self.total}  {left:,.0f} s left  {note}"
        sys.stderr.write(line.rstrip() + "\n")  # in one call, since parallel stages share a log
        sys.stderr.flush()

    def close(self) -> None:
        """Do nothing; lines need no cleanup."""


def show(name: str, total: int, done: int = 0, began: float | None = None, *, stays: bool = True) -> Shown:
    """Start a display of how many of `total` units are done. The caller must close it.

    began: see Lines. stays: keep the bar on the terminal at the end.
    """
    return Bar(name, total, done, stays=stays) if sys.stderr.isatty() else Lines(name, total, done, began)


@contextmanager
def progress(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show the progress of a `with` block; yields the function that adds finished units."""
    shown = show(name, total, stays=False)
    try:
        yield shown.advance
    finally:
        shown.close()


def counted(name: str, items: Collection[T]) -> Iterator[T]:
    """Yield the items and show how many have been processed."""
    with progress(name, len(items)) as report:
        for item in items:
            yield item
            report(1)


def transformers_progress(bar: Callable[..., Any], args: tuple[Any, ...], settings: dict[str, Any]) -> Any:
    """Show transformers' own progress (loading weights) in this format; see transformers' `set_tqdm_hook`."""
    if args and isinstance(args[0], Collection):
        return counted(str(settings.get("desc") or "loading").lower(), args[0])
    return bar(*args, **settings)
