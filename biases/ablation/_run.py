"""One call of :func:`~biases.ablation.run_grid`: which cells are left, who holds them, what becomes of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from biases._checks import fail
from biases._files import remove_temporaries
from biases.ablation import _locks
from biases.ablation._cells import BaseCell
from biases.ablation._loop import Progress
from biases.ablation.executors import Executor, Unit, Work
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
        label: what every result carries beside its own: the execution's ``workers``, the study.
    """

    pending: Sequence[Unit]
    data: Data
    out_dir: Path
    tell: Progress
    stop: Callable[[], bool]
    retry_failed: bool
    label: Mapping[str, Any] = field(default_factory=dict)
    held: set[Path] = field(default_factory=set)

    def event(self, kind: str, cell: BaseCell, **values: Any) -> None:
        self.tell({"event": kind, "id": cell.id, "arm": cell.arm, "seed": cell.seed, **values})

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
            existing = existing_result(cell, self.data, self.out_dir)
            if existing is not None and (existing["status"] == "ok" or not self.retry_failed):
                self.unlock(cell)
                self.event("skipped", cell, status=existing["status"])
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
            RuntimeError: what ran a unit died.
        """
        waiting, exhausted = self.take(), False
        flying: dict[Future[list[Result]], Unit] = {}
        try:
            while True:
                while not exhausted and len(flying) < executor.slots:
                    unit = next(waiting, None)
                    if unit is None:
                        exhausted = True
                    else:
                        flying[executor.submit(unit)] = unit
                if not flying:
                    return
                done, _ = wait(flying, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
                for event in executor.events():
                    self.tell(event)
                for future in done:
                    self.finish(flying[future], future.result())
                    del flying[future]
        except BrokenExecutor as error:
            lost = ", ".join(cell.id for unit in flying.values() for cell in unit)
            raise RuntimeError(
                "a worker process died, often because memory ran out; in flight were "
                f"{lost}; run again to resume, with fewer workers if it recurs ({error})"
            ) from error
