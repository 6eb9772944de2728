"""Running a grid: resumable, shared between processes, losing at most the cells in flight."""

from __future__ import annotations

import functools
import os
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from biases._checks import fail, positive_int
from biases._files import remove_temporaries
from biases.ablation import _locks
from biases.ablation._pool import Pool, open_pool
from biases.ablation._provenance import device_name, git_revision, versions
from biases.ablation.data import Text, load_text
from biases.ablation.results import (
    SCHEMA,
    DamagedResult,
    Result,
    cells_directory,
    read_result,
    result_path,
    write_result,
)
from biases.ablation.spec import Cell, Grid
from biases.ablation.training import Build, Progress, build_model, check_device, check_text, train_cell


def run_cell(
    cell: Cell,
    text: Text,
    progress: Progress | None = None,
    *,
    device: str = "cpu",
    build: Build = build_model,
) -> Result:
    """Train one cell and describe it in full; an exception in it becomes a result of status ``"failed"``."""
    started, clock = datetime.now(UTC), time.perf_counter()
    try:
        outcome = train_cell(cell, text, device=device, progress=progress, build=build)
    except Exception:
        outcome = {"status": "failed", "error": traceback.format_exc(), "metrics": {}, "learned": {}, "curve": []}
    return {
        "schema": SCHEMA,
        "id": cell.id,
        "arm": cell.arm,
        "seed": cell.seed,
        "config": cell.config,
        **outcome,
        "versions": versions(),
        "device": device,
        "device_name": device_name(device),
        "threads": torch.get_num_threads(),
        "data": {"name": text.name, "sha256": text.sha256},
        "git": git_revision(),
        "seconds": time.perf_counter() - clock,
        "started": started.isoformat(timespec="seconds"),
    }


class _GridRun:
    """The cells of one call of :func:`run_grid`, and which of them are left."""

    def __init__(self, cells: list[Cell], text: Text, out_dir: Path, tell: Progress, stop: Callable[[], bool]) -> None:
        self.text, self.out_dir, self.tell, self.stop = text, out_dir, tell, stop
        self.pending = cells
        self.held: set[Path] = set()

    def event(self, kind: str, cell: Cell, **values: Any) -> None:
        self.tell({"event": kind, "id": cell.id, "arm": cell.arm, "seed": cell.seed, **values})

    def lock_path(self, cell: Cell) -> Path:
        return cells_directory(self.out_dir) / f"{cell.id}.lock"

    def take(self, retry_failed: bool) -> Iterator[Cell]:
        """Cells to be run now, each locked; those that others hold are looked at again after the rest."""
        while self.pending:
            held_elsewhere = []
            for cell in self.pending:
                if self.stop():
                    return
                if not self.lock(cell):
                    held_elsewhere.append(cell)
                    continue
                existing = existing_result(cell, self.text, self.out_dir)
                if existing is not None and (existing["status"] == "ok" or not retry_failed):
                    self.unlock(cell)
                    self.event("skipped", cell, status=existing["status"])
                    continue
                remove_temporaries(result_path(self.out_dir, cell.id))
                self.event("started", cell)
                yield cell
            if len(held_elsewhere) == len(self.pending):
                for cell in held_elsewhere:
                    self.event("locked", cell, lock=str(self.lock_path(cell)))
                return
            self.pending = held_elsewhere

    def lock(self, cell: Cell) -> bool:
        path = self.lock_path(cell)
        if not _locks.acquire(path):
            return False
        self.held.add(path)
        return True

    def unlock(self, cell: Cell) -> None:
        path = self.lock_path(cell)
        _locks.release(path)
        self.held.discard(path)

    def unlock_all(self) -> None:
        for path in self.held:
            _locks.release(path)
        self.held.clear()

    def finish(self, cell: Cell, result: Result) -> None:
        write_result(self.out_dir, result)
        self.unlock(cell)
        self.event("finished", cell, status=result["status"], metrics=result["metrics"], error=result["error"])


def existing_result(cell: Cell, text: Text, out_dir: str | os.PathLike[str]) -> Result | None:
    """The cell's stored result; ``None`` if there is none, or only a damaged file.

    Raises:
        ValueError: it is of another text of the same name, with which nothing here may be paired, or of
            another schema.
    """
    path = result_path(out_dir, cell.id)
    if not path.exists():
        return None
    try:
        result = read_result(path)
    except DamagedResult:
        return None
    if result["data"].get("sha256") != text.sha256:
        expected = f"a result on text {text.name!r} of SHA-256 {text.sha256}"
        fail(f"result {path}", expected, f"{result['data'].get('sha256')}; use another output directory")
    return result


def _check_grid(grid: Grid, text: Text, build: Build) -> None:
    """Refuse what every cell would fail on, before anything is run or written."""
    for cell in grid.cells()[: len(grid.arms)]:
        check_text(cell, text)
        try:
            with torch.random.fork_rng(devices=[]):
                build(cell, len(text.vocabulary))
        except ValueError:
            raise
        except Exception:
            # Not a refused configuration: the cell's own failure, and recorded as one when it is run.
            continue


def run_grid(
    grid: Grid,
    out_dir: str | os.PathLike[str],
    *,
    workers: int = 1,
    device: str = "cpu",
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
    retry_failed: bool = False,
    build: Build = build_model,
) -> list[Result]:
    """Run a grid, or what is left of it.

    Each finished cell is ``out_dir/cells/<id>.json``; cells that have one are skipped, so the same call
    resumes a run that was interrupted or killed. Several processes may work on one directory: a cell is
    locked while it is run, locks of dead processes of this machine are taken over, and cells that others
    hold are left to them.

    Args:
        workers: 1 runs in this process; more, in so many new ones (spawned, one thread each), for which
            ``build`` must be importable and the calling script must guard its entry by ``__name__``.
        progress: called in this process with ``{"event", "id", "arm", "seed", ...}``; ``event`` is
            ``"started"``, ``"step"``, ``"evaluation"``, ``"finished"``, ``"skipped"`` or ``"locked"``
            (another process has it).
        stop: polled before each cell; once it is true no further one is started.
        retry_failed: run cells whose result is ``"failed"`` or ``"diverged"`` again.
        build: makes the models, see :func:`~biases.ablation.training.build_model`.

    Returns:
        The results there are, in the order of ``grid.cells()``; fewer than cells if stopped or locked
        elsewhere.

    Raises:
        ValueError: a text too short, an unknown device, a model configuration that is refused, or results of
            another text of the same name in ``out_dir``.
        OSError: a result cannot be written; those already there are untouched.
        RuntimeError: a worker process died (as when memory ran out); the cells in flight are lost, the rest
            is not.
        KeyboardInterrupt: after the locks are given back; what had finished is kept.
    """
    positive_int("workers", workers)
    device = check_device(device)
    text = load_text(grid.data)
    _check_grid(grid, text, build)
    out = Path(out_dir)
    cells_directory(out).mkdir(parents=True, exist_ok=True)
    run = _GridRun(grid.cells(), text, out, progress or (lambda event: None), stop or (lambda: False))
    work = functools.partial(run_cell, device=device, build=build)
    try:
        if workers == 1:
            for cell in run.take(retry_failed):
                run.finish(cell, work(cell, text, run.tell))
        else:
            with open_pool(workers, text, work) as pool:
                _run_in_pool(run, pool, workers, retry_failed)
    finally:
        run.unlock_all()
    found = (existing_result(cell, text, out) for cell in grid.cells())
    return [result for result in found if result is not None]


def _run_in_pool(run: _GridRun, pool: Pool, workers: int, retry_failed: bool) -> None:
    """Keep ``workers`` cells in flight; a cell is locked only when a worker is free for it."""
    waiting, exhausted = run.take(retry_failed), False
    flying: dict[Future[Result], Cell] = {}
    try:
        while True:
            while not exhausted and len(flying) < workers:
                cell = next(waiting, None)
                if cell is None:
                    exhausted = True
                else:
                    flying[pool.submit(cell)] = cell
            if not flying:
                return
            done, _ = wait(flying, timeout=0.2, return_when=FIRST_COMPLETED)
            for event in pool.events():
                run.tell(event)
            for future in done:
                run.finish(flying[future], future.result())
                del flying[future]
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a worker process died, often because memory ran out; in flight were "
            f"{', '.join(cell.id for cell in flying.values())}; run again to resume, with fewer workers if "
            "it recurs"
        ) from error
