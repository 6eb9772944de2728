"""Local worker processes that train cells and never outlive the process that started them."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import pickle
import queue
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from typing import Any

import torch

from biases.ablation.executors import Unit, Work
from biases.ablation.kinds import Data
from biases.ablation.results import Result

_here: dict[str, Any] = {}


def _start_worker(content: bytes, lifeline: Connection, events: Any, work: Work) -> None:
    # Ctrl-C reaches the whole process group; what becomes of the workers is for the parent to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()
    torch.set_num_threads(1)
    # Events still unsent must not hold up the exit.
    events.cancel_join_thread()
    _here.update(data=pickle.loads(content), events=events, work=work)


def _end_with(lifeline: Connection) -> None:
    """End this process when the other end of the pipe is closed, by the parent or by its death."""
    with contextlib.suppress(EOFError, OSError):
        lifeline.recv_bytes()
    os._exit(1)


def _work(cells: Unit) -> list[Result]:
    return _here["work"](cells, _here["data"], _here["events"].put)


def _nothing() -> None:
    """The work of a worker that only has to start."""


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Processes started within it are deaf to Ctrl-C from their first moment; it reaches this one afterwards."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    came = list[int]()
    handler = signal.getsignal(signal.SIGINT)
    # Another thread of this process may be given the signal, and Python then interrupts the main one all the same.
    deferred = threading.current_thread() is threading.main_thread() and handler is not None
    if deferred:
        signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if deferred:
            signal.signal(signal.SIGINT, handler)
        if came:
            signal.raise_signal(signal.SIGINT)


class LocalExecutor:
    """So many worker processes, spawned, of one thread each; use :func:`open_local`.

    When a worker dies, the next unit is run by new ones.
    """

    def __init__(self, workers: int, data: Data, work: Work) -> None:
        try:
            pickle.dumps(work)
        except Exception as error:
            raise ValueError(f"build: expected an importable function, got {work} ({error})") from error
        self.slots = workers
        # Bytes travel, not tensors: shared memory is scarce in containers. The copy is without cached views.
        self._content = pickle.dumps(dataclasses.replace(data))
        self._work = work
        self._open()

    def _open(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._reader, self._lifeline = context.Pipe(duplex=False)
        # A worker that died may have held its lock.
        self._events: Any = context.Queue()
        arguments = (self._content, self._reader, self._events, self._work)
        self._pool = ProcessPoolExecutor(self.slots, mp_context=context, initializer=_start_worker, initargs=arguments)

    def submit(self, cells: Unit) -> Future[list[Result]]:
        """Start a unit as soon as there is room.

        Raises:
            BrokenExecutor: workers cannot be started.
        """
        with _uninterrupted():
            try:
                return self._pool.submit(_work, cells)
            except BrokenProcessPool:
                self.close(finish=False)
                self._open()
                first = self._pool.submit(_nothing)
        try:
            first.result()
        except BrokenProcessPool as error:
            raise BrokenExecutor(f"worker processes die as they start: {error}") from error
        with _uninterrupted():
            return self._pool.submit(_work, cells)

    def events(self) -> Iterator[dict[str, Any]]:
        """What the workers have told since the last call."""
        with contextlib.suppress(queue.Empty):
            while True:
                yield self._events.get_nowait()

    def close(self, *, finish: bool) -> None:
        """End the workers, after the work they are at or at once."""
        if not finish:
            self._lifeline.close()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._lifeline.close()
        self._reader.close()
        self._events.close()


@contextlib.contextmanager
def open_local(workers: int, data: Data, work: Work) -> Iterator[LocalExecutor]:
    """Workers that are ended at once if the block is left by an exception."""
    executor = LocalExecutor(workers, data, work)
    try:
        yield executor
    except BaseException:
        executor.close(finish=False)
        raise
    executor.close(finish=True)
