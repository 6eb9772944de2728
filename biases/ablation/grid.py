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
from biases.ablation._provenance import Source, code_fingerprint, device_name, read_source, versions
from biases.ablation._run import GridRun, existing_result
from biases.ablation.executors import Open
from biases.ablation.executors.local import open_local
from biases.ablation.kinds import Data, kind_of, load_data
from biases.ablation.results import SCHEMA, Result, cells_directory

Build = Callable[[Any, Any], Any]


def run_cells(
    cells: Sequence[BaseCell],
    data: Data,
    progress: Progress | None = None,
    *,
    device: str = "cpu",
    build: Build | None = None,
    source: Source | None = None,
) -> list[Result]:
    """Train a unit of cells and describe each in full; an exception in a training becomes a result of status
    ``"failed"``.

    Several, which may differ in their seed alone, advance together where
    :func:`~biases.ablation.together.train_together` can train them so, and one after another where it cannot; what
    happened is in each result's ``"execution"``. ``"seconds"`` of cells that advanced together is their equal share.

    Args:
        data: what their ``data`` names, loaded.
        progress, device, build: as for :func:`run_grid`.
        source: what the process that asks for it was read from; by default that of this one.

    Raises:
        ValueError: this process runs other code than the one that asks.
    """
    source = _same_source(source)
    if len(cells) == 1:
        return [run_cell(cells[0], data, progress, device=device, build=build, source=source)]
    kind = kind_of(type(cells[0]))
    started, clock = datetime.now(UTC), time.perf_counter()
    try:
        name = device_name(device)
        if kind.name != "text":
            fail("cells that advance together", "trainings of texts", kind.name)
        from biases.ablation.together import train_together

        chosen = build or kind.build
        outcomes = train_together(cast(Any, cells), cast(Any, data), device=device, progress=progress, build=chosen)
    except Exception as error:
        # Each by itself is the specification; what fails there as well is recorded there.
        alone = [run_cell(cell, data, progress, device=device, build=build, source=source) for cell in cells]
        reason = f"{type(error).__name__}: {error}"
        return [{**result, "execution": {"together": 1, "alone_because": reason}} for result in alone]
    seconds = (time.perf_counter() - clock) / len(cells)
    described = functools.partial(
        _described, data=data, device=device, name=name, seconds=seconds, started=started, source=source
    )
    return [
        described(cell, outcome=outcome, together=len(cells)) for cell, outcome in zip(cells, outcomes, strict=True)
    ]


def run_cell(
    cell: BaseCell,
    data: Data,
    progress: Progress | None = None,
    *,
    device: str = "cpu",
    build: Build | None = None,
    source: Source | None = None,
) -> Result:
    """Train one cell and describe it in full; an exception in it becomes a result of status ``"failed"``.

    Args:
        progress, device, build, source: as for :func:`run_cells`.
    """
    kind, source, name = kind_of(type(cell)), _same_source(source), device
    started, clock = datetime.now(UTC), time.perf_counter()
    try:
        name = device_name(device)
        outcome = kind.train(cell, data, device=device, progress=progress, build=build or kind.build)
    except Exception:
        outcome = _failed(traceback.format_exc())
    return _described(
        cell,
        data=data,
        outcome=outcome,
        device=device,
        name=name,
        seconds=time.perf_counter() - clock,
        started=started,
        source=source,
    )


def _same_source(source: Source | None) -> Source:
    """What this process runs, which must be what it was asked to run."""
    if source is None:
        return read_source()
    if source.code != code_fingerprint():
        expected = f"{source.code}, as when the run was begun"
        fail("code of biases", expected, f"{code_fingerprint()}: it was changed while the run went on")
    return source


def _failed(error: str) -> dict[str, Any]:
    return {"status": "failed", "error": error, "metrics": {}, "learned": {}, "curve": []}


def _died(cell: BaseCell, error: str, *, data: Data, device: str, source: Source) -> Result:
    """The result of a cell that ended every process it was run by."""
    text = f"the process that trained it died, often for want of memory ({error})"
    started = datetime.now(UTC)
    return _described(
        cell, data=data, outcome=_failed(text), device=device, name=device, seconds=0.0, started=started, source=source
    )


def _described(
    cell: BaseCell,
    *,
    data: Data,
    outcome: Mapping[str, Any],
    device: str,
    name: str,
    seconds: float,
    started: datetime,
    source: Source,
    together: int = 1,
) -> Result:
    return {
        "schema": SCHEMA,
        "id": cell.id,
        "arm": cell.arm,
        "seed": cell.seed,
        "config": cell.config,
        **outcome,
        "versions": versions(source.code),
        "device": device,
        "device_name": name,
        "threads": torch.get_num_threads(),
        "execution": {"together": together},
        "data": {"name": data.name, "sha256": data.sha256},
        "git": source.git,
        "seconds": seconds,
        "started": started.isoformat(timespec="seconds"),
    }


def check_run(
    grid: BaseGrid,
    *,
    workers: int = 1,
    device: str = "cpu",
    together: int = 1,
    elsewhere: bool = False,
    build: Build | None = None,
) -> Data:
    """Refuse what every cell would fail on; what is to be trained on, where nothing is.

    Args:
        elsewhere: the device is of other machines, and not looked for here.
        workers, device, together, build: as for :func:`run_grid`, as is what is raised.
    """
    positive_int("workers", workers)
    kind = kind_of(grid.CELL)
    if positive_int("together", together) > 1 and kind.name != "text":
        fail("together", f"1 for {kind.name}", together)
    if not elsewhere:
        check_device(device)
    data = load_data(grid)
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
    return data


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
    executor: Open | None = None,
    study: Mapping[str, Any] | None = None,
    begin: Callable[[Data], None] | None = None,
) -> list[Result]:
    """Run a grid of texts or of images, or what is left of it.

    Each finished cell is ``out_dir/cells/<id>.json``; cells that have one are skipped, so the same call
    resumes a run that was interrupted or killed. Several processes may work on one directory: a cell is
    locked while it is run, locks of dead processes of this machine are taken over, and cells that others
    hold are left to them. When a worker dies, what it and the others had in hand is run again, each cell by itself;
    one that ends its worker then too has failed.

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
        executor: runs the units elsewhere, instead of ``workers``.
        study: stored with every result, as its ``"study"``.
        begin: called with the data when all that can be refused is checked, before anything is written.

    Returns:
        The results there are, in the order of ``grid.cells()``; fewer than cells if stopped or locked
        elsewhere.

    Raises:
        ValueError: before anything is trained: data that do not fit, a device that cannot train, a model configuration
            that is refused, results of other data of the same name or of another schema in ``out_dir``. Later: this
            package was changed, so that a new worker runs other code.
        OSError: a result cannot be written; those already there are untouched.
        RuntimeError: workers cannot be started, or a cluster is gone; the cells in flight are lost, the rest is not.
        KeyboardInterrupt: after the locks are given back; what had finished is kept.
    """
    elsewhere = executor is not None
    data = check_run(grid, workers=workers, device=device, together=together, elsewhere=elsewhere, build=build)
    if not elsewhere:
        device = check_device(device)
    source, out = read_source(), Path(out_dir)
    if begin is not None:
        begin(data)
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
        functools.partial(_died, data=data, device=device, source=source),
        label,
    )
    work = functools.partial(run_cells, device=device, build=build, source=source)
    run.leave_out_what_is_done()
    try:
        if executor is None and workers == 1:
            run.here(work)
        elif run.pending:
            opened = executor or functools.partial(open_local, workers)
            with opened(data, work) as there:
                run.in_executor(there)
    finally:
        run.unlock_all()
    found = (existing_result(cell, data, out) for cell in grid.cells())
    return [result for result in found if result is not None]
