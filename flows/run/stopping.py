"""Handle Ctrl-C and SIGTERM in `rlhf run`: kill the stages, close the run, print one line, exit with code 130.

Before the flow starts, a signal raises KeyboardInterrupt as usual. During the flow, an exception inside Prefect or
MLflow would leave incomplete records. A signal then only calls the callbacks of `calling`; the flow notices that its
stages have ended and returns. Further signals are ignored.
"""

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 130  # the code that shells report after Ctrl-C
PATIENCE = 20.0  # seconds until a stop that hangs is forced
LINE = "stopped; run the same command to continue"

_asked, _said = threading.Event(), threading.Event()
_callbacks: list[Callable[[], None]] = []


class Stopped(BaseException):
    """The user stopped the run. This is not an `Exception`, so that no handler reports it as a failure."""


def is_asked() -> bool:
    """Return whether this process was asked to stop."""
    return _asked.is_set()


@contextmanager
def stoppable() -> Iterator[None]:
    """Handle SIGINT and SIGTERM: if one of them ends the body, print one line and exit with code 130.

    If the body completes in spite of a signal, the signal came too late and the exit code is unchanged.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _ask)
    atexit.register(_leave)  # registered first, so called last
    try:
        yield
    except BaseException:  # libraries may have replaced the KeyboardInterrupt
        if not is_asked():
            raise
        _say()
        sys.exit(EXIT_CODE)
    finally:
        # A second Ctrl-C must not interrupt exit handlers, such as the one that sends the last log lines.
        after = signal.SIG_IGN if is_asked() else signal.SIG_DFL
        signal.signal(signal.SIGTERM, after)
        signal.signal(signal.SIGINT, after if is_asked() else signal.default_int_handler)


@contextmanager
def calling(callback: Callable[[], None]) -> Iterator[None]:
    """Within this context, a signal calls `callback` in a new thread instead of raising KeyboardInterrupt."""
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
        # In a new thread, since the main thread may hold the lock that the callback needs.
        threading.Thread(target=callback, daemon=True).start()


def _give_up() -> None:
    _say()
    os._exit(EXIT_CODE)  # child processes die with this one


def _leave() -> None:
    """Skip Python's slow shutdown after a stop."""
    if _said.is_set():
        os._exit(EXIT_CODE)


def _say() -> None:
    """Print the line once, overwriting a progress line or the terminal's ^C."""
    if _said.is_set():
        return
    _said.set()
    sys.stderr.write(("\r\033[K" if sys.stderr.isatty() else "") + LINE + "\n")
    sys.stderr.flush()
