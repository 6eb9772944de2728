"""Stop a call that does not end."""

from __future__ import annotations

import ctypes
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Seconds; a timer of none would not ring.
_SOON, _AGAIN = 1e-3, 0.5


class TimeUp(BaseException):
    """The time is up. Not an ``Exception``, so that code under test that catches those does not swallow it."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise :class:`TimeUp` inside the block once ``seconds`` have passed.

    In the main thread, waiting and sleeping are interrupted too; in other threads, and where the system has no interval
    timer, only Python code is. One call into C that never comes back is interrupted in neither. A timer that somebody
    else has set still rings when it is due.
    """
    if threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer"):
        with _by_signal(seconds):
            yield
    else:
        with _by_exception(seconds):
            yield


@contextmanager
def _by_signal(seconds: float) -> Iterator[None]:
    armed = True
    ours = time.monotonic() + seconds
    # Somebody else's alarm, such as that of a test runner, is kept: it rings when it is due, inside or afterwards.
    previous = signal.getsignal(signal.SIGALRM) or signal.SIG_DFL
    left, interval = signal.setitimer(signal.ITIMER_REAL, 0)
    theirs = time.monotonic() + left if left else math.inf

    def ring_at(moment: float) -> None:
        if moment < math.inf:
            signal.setitimer(signal.ITIMER_REAL, max(moment - time.monotonic(), _SOON))

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal ours, theirs
        if not armed:
            return
        if ours <= theirs:
            # Once more a little later, for code that catches even this.
            ours = time.monotonic() + _AGAIN
            ring_at(min(ours, theirs))
            raise TimeUp
        theirs = time.monotonic() + interval if interval else math.inf
        ring_at(min(ours, theirs))
        if callable(previous):
            previous(number, frame)

    try:
        signal.signal(signal.SIGALRM, stop)
        ring_at(min(ours, theirs))
        try:
            yield
        finally:
            armed = False
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        if theirs < math.inf:
            signal.setitimer(signal.ITIMER_REAL, max(theirs - time.monotonic(), _SOON), interval)


@contextmanager
def _by_exception(seconds: float) -> Iterator[None]:
    identifier = ctypes.c_ulong(threading.get_ident())
    lock, ended = threading.Lock(), False

    def stop() -> None:
        with lock:
            if not ended:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(identifier, ctypes.py_object(TimeUp))

    timer = threading.Timer(seconds, stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        with lock:
            ended = True
        timer.cancel()
