"""Ctrl-C and SIGTERM of `rlhf run`: the stages are killed, the run is closed, one line is printed, exit code 130.

Before the flow runs, a signal raises KeyboardInterrupt as usual. While it runs, an exception in the middle of
Prefect's or MLflow's code would leave their records half-written. So a signal only calls what `calling` names;
the flow notices that its stages have ended and returns. Further signals are ignored.
"""

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 130  # what shells report for a command that was ended by Ctrl-C
PATIENCE = 20.0  # seconds until a stop that hangs ends the process
LINE = "stopped; run the same command to continue"

_asked, _said = threading.Event(), threading.Event()
_callbacks: list[Callable[[], None]] = []


class Stopped(BaseException):
    """The run was stopped by a person; no Exception, so that nothing takes it for a failure."""


def is_asked() -> bool:
    """Whether this process was told to stop."""
    return _asked.is_set()


@contextmanager
def stoppable() -> Iterator[None]:
    """Handle SIGINT and SIGTERM; a body that ends by them exits with 130 after one line.

    A body that ends as if nothing had happened was stopped too late: its work is done.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _ask)
    atexit.register(_leave)  # registered before all others, so called after them
    try:
        yield
    except BaseException:  # whatever the signal has become on its way
        if not is_asked():
            raise
        _say()
        sys.exit(EXIT_CODE)
    finally:
        # What still runs at exit, such as sending the last log lines, must not be interrupted by a second Ctrl-C.
        after = signal.SIG_IGN if is_asked() else signal.SIG_DFL
        signal.signal(signal.SIGTERM, after)
        signal.signal(signal.SIGINT, after if is_asked() else signal.default_int_handler)


@contextmanager
def calling(callback: Callable[[], None]) -> Iterator[None]:
    """While this is open a signal calls `callback` in a thread of its own instead of raising KeyboardInterrupt."""
    _callbacks.append(callback)
    try:
        if is_asked():
            callback()
        yield
    finally:
        _callbacks.remove(callback)


def _ask(number: int, frame: FrameType | None) -> None:
    if is_asked():
        return
    _asked.set()
    limit = threading.Timer(PATIENCE, _give_up)
    limit.daemon = True
    limit.start()
    if not _callbacks:
        raise KeyboardInterrupt
    for callback in tuple(_callbacks):
        # Not here: the main thread may hold the lock that the callback needs.
        threading.Thread(target=callback, daemon=True).start()


def _give_up() -> None:
    _say()
    os._exit(EXIT_CODE)  # what this process started dies with it


def _leave() -> None:
    """Spare a stopped run the seconds in which Python takes its libraries apart."""
    if _said.is_set():
        os._exit(EXIT_CODE)


def _say() -> None:
    """Print the line once, over a progress line or the ^C of the terminal."""
    if _said.is_set():
        return
    _said.set()
    sys.stderr.write(("\r\033[K" if sys.stderr.isatty() else "") + LINE + "\n")
    sys.stderr.flush()
