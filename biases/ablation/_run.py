"""One call of :func:`~biases.ablation.run_grid`: which cells are left, who holds them, what becomes of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from biases._checks import fail
from biases._files import remove_temporaries
from biases.ablation import _locks
from biases.ablation._cells import BaseCell
from biases.ablation._loop import Progress
from biases.ablation.executors import Executor, Unit, UnitDied, Work
from biases.ablation.kinds import Data
from biases.ablation.results import DamagedResult, Result, cells_directory, read_result, result_path, write_result

POLL_SECONDS = 0.2


def existing_result(cell: BaseCell, data: Data, out_dir: str | os.PathLike[str]) -> Result | None:
    """The cell's stored result; ``None`` if there is none, or only a damaged file.

    Raises:
        ValueError: it is of other data of the same name, with which nothing here may be paired, or of another schema.
    """
    path = result_path(out_dir, cell.id)
    if not path.exists():
        return None
    if not path.is_file():
        fail(f"result {path}", "a file", "a folder" if path.is_dir() else "something else")
    try:
        result = read_result(path)
    except DamagedResult:
        return None
    if result["data"].get("sha256") != data.sha256:
        expected = f"a result on {data.name!r} of SHA-256 {data.sha256}"
        fail(f"result {path}", expected, f"{result['data'].get('sha256')}; use another output directory")
    return result


def lock_path(cell: BaseCell, out_dir: str | os.PathLike[str]) -> Path:
    """The file that exists while a process has the cell in hand."""
    return cells_directory(out_dir) / f"{cell.id}.lock"


@dataclass
class GridRun:
    """The units that are left.

    Attributes:
        pending: units not looked at, or held by other processes when they were.
        died: the result of a cell that ends what runs it, from the cell and what is known of its end.
        label: what every result carries beside its own: the execution's ``workers``, the study.
        suspects: units of which one ended what ran them.
    """

    pending: Sequence[Unit]
    data: Data
    out_dir: Path
    tell: Progress
    stop: Callable[[], bool]
    retry_failed: bool
    died: Callable[[Any, str], Result]
    label: Mapping[str, Any] = field(default_factory=dict)
    held: set[Path] = field(default_factory=set)
    suspects: list[Unit] = field(default_factory=list)

    def event(self, kind: str, cell: BaseCell, **values: Any) -> None:
        self.tell({"event": kind, "id": cell.id, "arm": cell.arm, "seed": cell.seed, **values})

    def leave_out_what_is_done(self) -> None:
        """Look at every result there is before anything is run.

        Raises:
            ValueError: one of them cannot be gone on with, see :func:`existing_result`.
        """
        found = {cell.id: existing_result(cell, self.data, self.out_dir) for unit in self.pending for cell in unit}
        units = []
        for unit in self.pending:
            left = tuple(cell for cell in unit if not self.done(cell, found[cell.id]))
            if left:
                units.append(left)
        self.pending = units

    def done(self, cell: BaseCell, existing: Result | None) -> bool:
        """Whether the cell has a result that stands, which is then told."""
        if existing is None or (existing["status"] != "ok" and self.retry_failed):
            return False
        self.event("skipped", cell, status=existing["status"])
        return True

    def take(self) -> Iterator[Unit]:
        """Units to be run, their cells locked; those that others hold are looked at again after the rest.

        Of a unit that is partly done, or partly held by another process, what is left.
        """
        while self.pending:
            held_elsewhere = []
            for unit in self.pending:
                if self.stop():
                    return
                mine, others = self.lock_what_is_left(unit)
                if others:
                    held_elsewhere.append(others)
                if mine:
                    for cell in mine:
                        self.event("started", cell)
                    yield mine
            if sum(map(len, held_elsewhere)) == sum(map(len, self.pending)):
                for cell in (cell for unit in held_elsewhere for cell in unit):
                    self.event("locked", cell, lock=str(lock_path(cell, self.out_dir)))
                return
            self.pending = held_elsewhere

    def lock_what_is_left(self, unit: Unit) -> tuple[Unit, Unit]:
        """The unit's cells that are to be run and are locked here, and those that other processes hold."""
        mine, others = [], []
        for cell in unit:
            if not self.lock(cell):
                others.append(cell)
                continue
            if self.done(cell, existing_result(cell, self.data, self.out_dir)):
                self.unlock(cell)
                continue
            remove_temporaries(result_path(self.out_dir, cell.id))
            mine.append(cell)
        return tuple(mine), tuple(others)

    def lock(self, cell: BaseCell) -> bool:
        path = lock_path(cell, self.out_dir)
        if not _locks.acquire(path):
            return False
        self.held.add(path)
        return True

    def unlock(self, cell: BaseCell) -> None:
        path = lock_path(cell, self.out_dir)
        _locks.release(path)
        self.held.discard(path)

    def unlock_all(self) -> None:
        for path in self.held:
            _locks.release(path)
        self.held.clear()

    def finish(self, unit: Unit, results: list[Result]) -> None:
        for cell, result in zip(unit, results, strict=True):
            label = {key: {**value, **result.get(key, {})} for key, value in self.label.items()}
            write_result(self.out_dir, {**result, **label})
            self.unlock(cell)
            told = {name: result[name] for name in ("status", "metrics", "error", "seconds")}
            self.event("finished", cell, **told)

    def here(self, work: Work) -> None:
        """Run the units in this process, one after another."""
        for unit in self.take():
            self.finish(unit, work(unit, self.data, self.tell))

    def in_executor(self, executor: Executor) -> None:
        """Keep the executor's slots busy; a cell is locked only when there is room for it.

        Raises:
            RuntimeError: nothing can be run there any more.
        """
        waiting = self.take()
        flying: dict[Future[list[Result]], Unit] = {}
        try:
            while True:
                self._fill(executor, waiting, flying)
                if not flying:
                    return
                done, _ = wait(flying, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
                for event in executor.events():
                    self.tell(event)
                # What has finished is written first, whatever has become of the others.
                for future in sorted(done, key=lambda future: future.exception() is not None):
                    self._land(flying[future], future)
                    del flying[future]
                if not flying and self.suspects:
                    self._try_alone(executor)
        except BrokenExecutor as error:
            lost = ", ".join(cell.id for unit in (*flying.values(), *self.suspects) for cell in unit)
            raise RuntimeError(
                "what runs the cells died, often because memory ran out; in flight were "
                f"{lost}; run again to resume, with fewer workers if it recurs ({error})"
            ) from error

    def _fill(self, executor: Executor, waiting: Iterator[Unit], flying: dict[Future[list[Result]], Unit]) -> None:
        """Start units while there is room; none while there are suspects, which are run alone."""
        while not self.suspects and len(flying) < executor.slots:
            unit = next(waiting, None)
            if unit is None:
                return
            try:
                flying[executor.submit(unit)] = unit
            except BrokenExecutor:
                self.suspects.append(unit)
                raise

    def _land(self, unit: Unit, future: Future[list[Result]]) -> None:
        """Write a unit's results, or find what becomes of it where there are none."""
        try:
            self.finish(unit, future.result())
        except UnitDied as error:
            self._bury(unit, error)
        except BrokenProcessPool:
            self.suspects.append(unit)

    def _try_alone(self, executor: Executor) -> None:
        """Run the suspects one by one: one of them ended the processes that the others were run by."""
        while self.suspects and not self.stop():
            unit = self.suspects[0]
            future = executor.submit(unit)
            while not wait([future], timeout=POLL_SECONDS).done:
                for event in executor.events():
                    self.tell(event)
            self.suspects.pop(0)
            try:
                self.finish(unit, future.result())
            except (UnitDied, BrokenProcessPool) as error:
                self._bury(unit, error)
        self.suspects.clear()

    def _bury(self, unit: Unit, error: BrokenExecutor) -> None:
        """Record the cell that ends what runs it; of several, each is first tried alone."""
        if len(unit) > 1:
            self.suspects += [(cell,) for cell in unit]
            return
        self.finish(unit, [self.died(cell, str(error)) for cell in unit])
