"""Local worker processes that train cells and never outlive the process that started them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

import torch

from biases.ablation.data import Text
from biases.ablation.spec import Cell

Work = Callable[[Cell, Text, Callable[[dict[str, Any]], None]], dict[str, Any]]

_here: dict[str, Any] = {}


def _start_worker(name: str, content: str, lifeline: Connection, events: Any, work: Work) -> None:
    # Ctrl-C reaches the whole process group; what becomes of the workers is for the parent to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()
    torch.set_num_threads(1)
    # Events still unsent must not hold up the exit.
    events.cancel_join_thread()
    _here.update(text=Text.from_string(name, content), events=events, work=work)


def _end_with(lifeline: Connection) -> None:
    """End this process when the other end of the pipe is closed, by the parent or by its death."""
    with contextlib.suppress(EOFError, OSError):
        lifeline.recv_bytes()
    os._exit(1)


def _work(cell: Cell) -> dict[str, Any]:
    return _here["work"](cell, _here["text"], _here["events"].put)


class Pool:
    """Workers for :func:`~biases.ablation.run_grid`; use :func:`open_pool`."""

    def __init__(self, workers: int, text: Text, work: Work) -> None:
        try:
            pickle.dumps(work)
        except Exception as error:
            raise ValueError(f"build: expected an importable function, got {work} ({error})") from error
        context = multiprocessing.get_context("spawn")
        self._reader, self._lifeline = context.Pipe(duplex=False)
        self._events: Any = context.Queue()
        # The characters travel, not the tensor: shared memory is scarce in containers.
        arguments = (text.name, text.decode(), self._reader, self._events, work)
        self._executor = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=arguments)

    def submit(self, cell: Cell) -> Future[dict[str, Any]]:
        return self._executor.submit(_work, cell)

    def events(self) -> Iterator[dict[str, Any]]:
        """What the workers have told since the last call."""
        with contextlib.suppress(queue.Empty):
            while True:
                yield self._events.get_nowait()

    def close(self, *, finish: bool) -> None:
        """End the workers, after the work they are at or at once."""
        if not finish:
            self._lifeline.close()
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._lifeline.close()
        self._reader.close()
        self._events.close()


@contextlib.contextmanager
def open_pool(workers: int, text: Text, work: Work) -> Iterator[Pool]:
    """A pool whose workers are ended at once if the block is left by an exception."""
    pool = Pool(workers, text, work)
    try:
        yield pool
    except BaseException:
        pool.close(finish=False)
        raise
    pool.close(finish=True)
