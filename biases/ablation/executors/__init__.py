"""Where units of cells are run: processes of this machine (:mod:`.local`), or a Ray cluster (:mod:`.ray`).

An executor runs units and hands their results back; the process that opened it locks the cells, writes the results and
decides what is run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager
from typing import Any, Protocol

from biases.ablation._cells import BaseCell
from biases.ablation.kinds import Data
from biases.ablation.results import Result

Unit = tuple[Any, ...]
"""Cells that are run together: one, or several seeds of one arm."""

Work = Callable[[tuple[BaseCell, ...], Data, Callable[[dict[str, Any]], None]], list[Result]]
"""``work(cells, data, progress)`` trains a unit and returns a result a cell; it must be importable elsewhere."""


class Executor(Protocol):
    """Runs units somewhere else.

    A future's exception is a unit that was lost, never a training that failed, which is a result:
    :class:`~concurrent.futures.BrokenExecutor` where what ran it died.
    """

    @property
    def slots(self) -> int:
        """Units in flight at once, at least 1; may change while the executor is open."""
        ...

    def submit(self, cells: Unit) -> Future[list[Result]]:
        """Start a unit as soon as there is room."""
        ...

    def events(self) -> Iterator[dict[str, Any]]:
        """What the trainings have told since the last call; some may be lost."""
        ...

    def close(self, *, finish: bool) -> None:
        """End what is run, after the units in flight or at once."""
        ...


Open = Callable[[Data, Work], AbstractContextManager[Executor]]
"""``with open(data, work) as executor``; left by an exception, what is in flight is ended at once."""
