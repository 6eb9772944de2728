"""Where units of cells are run: processes of this machine (:mod:`.local`), or a Ray cluster (:mod:`.ray`).

An executor runs units and hands their results back; the process that opened it locks the cells, writes the results and
decides what is run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Future
from contextlib import AbstractContextManager
from typing import Any, Protocol

from biases.ablation.kinds import Data
from biases.ablation.results import Result

Unit = tuple[Any, ...]
"""Cells that are run together: one, or several seeds of one arm."""

Work = Callable[..., list[Result]]
"""``work(cells, data, progress)`` trains a unit and returns a result a cell; it must be importable elsewhere.

One for GPUs takes ``device`` by name."""


class UnitDied(BrokenExecutor):
    """A unit that ended what ran it, again and again, with no other in it."""


class Executor(Protocol):
    """Runs units somewhere else.

    A future's exception is a unit that was lost, never a training that failed, which is a result:
    :class:`UnitDied`; :class:`~concurrent.futures.process.BrokenProcessPool`, of every unit in flight where one of them
    ended a process that they share, after which further units may be submitted; any other
    :class:`~concurrent.futures.BrokenExecutor` is the executor's end.
    """

    @property
    def slots(self) -> int:
        """Units in flight at once, at least 1; may change while the executor is open."""
        ...

    def submit(self, cells: Unit) -> Future[list[Result]]:
        """Start a unit as soon as there is room.

        Raises:
            BrokenExecutor: nothing can be run any more.
        """
        ...

    def events(self) -> Iterator[dict[str, Any]]:
        """What the trainings have told since the last call; some may be lost."""
        ...

    def close(self, *, finish: bool) -> None:
        """End what is run, after the units in flight or at once."""
        ...


Open = Callable[[Data, Work], AbstractContextManager[Executor]]
"""``with open(data, work) as executor``; left by an exception, what is in flight is ended at once."""
