"""Running a grid: resumable, shared between processes, losing at most the cells in flight."""

from __future__ import annotations

import functools
import os
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import torch

from biases._checks import fail, positive_int
from biases.ablation._cells import BaseCell, BaseGrid
from biases.ablation._loop import Progress, check_device
from biases.ablation._provenance import device_name, git_revision, versions
from biases.ablation._run import GridRun, existing_result
from biases.ablation.executors import Open
from biases.ablation.executors.local import open_local
from biases.ablation.kinds import Data, kind_of
from biases.ablation.results import SCHEMA, Result, cells_directory

Build = Callable[[Any, Any], Any]


def run_cells(
    cells: Sequence[BaseCell],
    data: Data,
    progress: Progress | None = None,
    *,
    device: str = "cpu",
    build: Build | None = None,
) -> list[Result]:
    """Train a unit of cells and describe each in full; an exception in a training becomes a result of status
    ``"failed"``.

    Several, which may differ in their seed alone, advance together where
    :func:`~biases.ablation.together.train_together` can train them so, and one after another where it cannot; what
    happened is in each result's ``"execution"``. ``"seconds"`` of cells that advanced together is their equal share.

    Args:
        data: what their ``data`` names, loaded.
        progress, device, build: as for :func:`run_grid`.
    """
    if len(cells) == 1:
        return [run_cell(cells[0], data, progress, device=device, build=build)]
    kind = kind_of(type(cells[0]))
    started, clock = datetime.now(UTC), time.perf_counter()
    try:
        if kind.name != "text":
            fail("cells that advance together", "trainings of texts", kind.name)
        from biases.ablation.together import train_together

        chosen = build or kind.build
        outcomes = train_together(cast(Any, cells), cast(Any, data), device=device, progress=progress, build=chosen)
    except Exception as error:
        # Each by itself is the specification; what fails there as well is recorded there.
        alone = [run_cell(cell, data, progress, device=device, build=build) for cell in cells]
        reason = f"{type(error).__name__}: {error}"
        return [{**result, "execution": {"together": 1, "alone_because": reason}} for result in alone]
    seconds = (time.perf_counter() - clock) / len(cells)
    return [
        _described(cell, data, outcome, device, seconds, started, len(cells))
        for cell, outcome in zip(cells, outcomes, strict=True)
    ]


def run_cell(
    cell: BaseCell,
    data: Data,
    progress: Progress | None = None,
    *,
    device: str = "cpu",
    build: Build | None = None,
) -> Result:
    """Train one cell and describe it in full; an exception in it becomes a result of status ``"failed"``."""
    kind = kind_of(type(cell))
    started, clock = datetime.now(UTC), time.perf_counter()
    try:
        outcome = kind.train(cell, data, device=device, progress=progress, build=build or kind.build)
    except Exception:
        outcome = {"status": "failed", "error": traceback.format_exc(), "metrics": {}, "learned": {}, "curve": []}
    return _described(cell, data, outcome, device, time.perf_counter() - clock, started, 1)


def _described(
    cell: BaseCell,
    data: Data,
    outcome: Mapping[str, Any],
    device: str,
    seconds: float,
    started: datetime,
    together: int,
) -> Result:
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
        "execution": {"together": together},
        "data": {"name": data.name, "sha256": data.sha256},
        "git": git_revision(),
        "seconds": seconds,
        "started": started.isoformat(timespec="seconds"),
    }


def _check_grid(grid: BaseGrid, data: Data, build: Build | None) -> None:
    """Refuse what every cell would fail on, before anything is run or written."""
    kind = kind_of(grid.CELL)
    for cell in grid.cells()[: len(grid.arms)]:
        kind.check(cell, data)
        try:
            with torch.random.fork_rng(devices=[]):
                (build or kind.build)(cell, kind.model_input(data))
        except ValueError as error:
            raise ValueError(f"arm {cell.arm!r}: {error}") from error
        except Exception:
            # Not a refused configuration: the cell's own failure, and recorded as one when it is run.
            continue


def run_grid(
    grid: BaseGrid,
    out_dir: str | os.PathLike[str],
    *,
    workers: int = 1,
    device: str = "cpu",
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
    retry_failed: bool = False,
    build: Build | None = None,
    together: int = 1,
    shard: tuple[int, int] = (1, 1),
    executor: Open | None = None,
    study: Mapping[str, Any] | None = None,
) -> list[Result]:
    """Run a grid of texts or of images, or what is left of it.

    Each finished cell is ``out_dir/cells/<id>.json``; cells that have one are skipped, so the same call
    resumes a run that was interrupted or killed. Several processes may work on one directory: a cell is
    locked while it is run, locks of dead processes of this machine are taken over, and cells that others
    hold are left to them.

    Args:
        workers: 1 runs in this process; more, in so many new ones (spawned, one thread each), for which
            ``build`` must be importable and the calling script must guard its entry by ``__name__``.
        device: where to train; with an ``executor``, a device of the machines that it runs on.
        progress: called in this process with ``{"event", "id", "arm", "seed", ...}``; ``event`` is
            ``"started"``, ``"step"``, ``"evaluation"``, ``"finished"``, ``"skipped"`` or ``"locked"``
            (another process has it).
        stop: polled before each unit; once it is true no further one is started.
        retry_failed: run cells whose result is ``"failed"`` or ``"diverged"`` again.
        build: makes the models, see :func:`~biases.ablation.training.build_model` and
            :func:`~biases.ablation.image_cells.build_image_cell`, which are the defaults.
        together: seeds of an arm that are one unit of work and advance together, see :func:`run_cells`; texts only.
        shard: ``(I, N)``: only part I of N, from 1, see :meth:`~biases.ablation.Grid.shard`.
        executor: runs the units elsewhere, instead of ``workers``.
        study: stored with every result, as its ``"study"``.

    Returns:
        The results there are, in the order of ``grid.cells()``; fewer than cells if stopped or locked
        elsewhere.

    Raises:
        ValueError: data that do not fit, an unknown device, a model configuration that is refused, a shard that is
            none, or results of other data of the same name in ``out_dir``.
        OSError: a result cannot be written; those already there are untouched.
        RuntimeError: a worker process died (as when memory ran out); the cells in flight are lost, the rest
            is not.
        KeyboardInterrupt: after the locks are given back; what had finished is kept.
    """
    positive_int("workers", workers)
    grid = grid.shard(*shard)
    kind = kind_of(grid.CELL)
    if positive_int("together", together) > 1 and kind.name != "text":
        fail("together", f"1 for {kind.name}", together)
    if executor is None:
        device = check_device(device)
    data = kind.load(grid.data)
    _check_grid(grid, data, build)
    out = Path(out_dir)
    cells_directory(out).mkdir(parents=True, exist_ok=True)
    label: dict[str, Any] = {"execution": {} if executor else {"workers": workers}}
    if study is not None:
        label["study"] = dict(study)
    run = GridRun(
        grid.units(together),
        data,
        out,
        progress or (lambda event: None),
        stop or (lambda: False),
        retry_failed,
        label,
    )
    work = functools.partial(run_cells, device=device, build=build)
    try:
        if executor is None and workers == 1:
            run.here(work)
        else:
            opened = executor or functools.partial(open_local, workers)
            with opened(data, work) as there:
                run.in_executor(there)
    finally:
        run.unlock_all()
    found = (existing_result(cell, data, out) for cell in grid.cells())
    return [result for result in found if result is not None]
