"""What ``biases ablate`` prints of a run and of its cells."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from biases.ablation import _locks
from biases.ablation._cells import BaseGrid
from biases.ablation._run import existing_result, lock_path
from biases.ablation.kinds import Data
from biases.ablation.progress import Tally, duration
from biases.ablation.results import STATUSES
from biases.ablation.study import Study
from biases.ablation.study_folder import check_folder


def show_run(
    study: Study, tally: Tally, results: Sequence[Mapping[str, Any]], out: Path, *, ended: str | None, as_json: bool
) -> None:
    """What became of the cells.

    Args:
        results: of all cells that have one; of a run that was ended, the events of those that it finished.
        ended: why the run stopped before its end; ``None`` where it did not.
    """
    counts = {status: list(tally.status.values()).count(status) for status in STATUSES}
    missing = tally.total - len(tally.status)
    if as_json:
        document = {
            **_described(study, out),
            "cells": {"total": tally.total, **counts, "missing": missing, "locked_elsewhere": len(tally.locked)},
            "trained": tally.trained,
            "interrupted": ended == "interrupted",
            "error": None if ended in (None, "interrupted") else ended,
            "results": [_brief(result) for result in results],
        }
        print(json.dumps(document, indent=1))
    else:
        _show_counts(tally, counts, results, out, finished=ended is None)


def _show_counts(
    tally: Tally, counts: Mapping[str, int], results: Sequence[Mapping[str, Any]], out: Path, *, finished: bool
) -> None:
    took = duration(tally.clock() - tally.began)
    ways = ", ".join(f"{number} {status}" for status, number in counts.items() if number) or "none"
    print(f"{len(tally.status)} of {tally.total} cells done: {ways}; {len(tally.trained)} trained here in {took}")
    for result in results:
        if result["status"] != "ok":
            reason = result["error"].strip().splitlines()[-1]
            print(f"  {result['id']} {result['arm']} seed {result['seed']} {result['status']}: {reason}")
    if tally.locked:
        print(f"{len(tally.locked)} in the hands of other processes: {' '.join(tally.locked)}")
        print(f"  (if one ran on another machine that died, remove its lock: {out}/cells/ID.lock)")
    if finished:
        print(f"results: {out}    next: biases stats {out}")


def show_cells(study: Study, grid: BaseGrid, data: Data, out: Path, *, as_json: bool) -> None:
    """``--dry-run``: every cell and whether it is done, failed, diverged, running elsewhere or to be run.

    Raises:
        ValueError: the folder is of another study or other data.
    """
    check_folder(study, out, data)
    rows = [
        {"id": cell.id, "arm": cell.arm, "seed": cell.seed, "state": _state(cell, data, out)} for cell in grid.cells()
    ]
    if as_json:
        print(json.dumps({**_described(study, out), "cells": rows}, indent=1))
        return
    width = max(len(row["arm"]) for row in rows)
    for row in rows:
        print(f"{row['id']}  {row['arm']:{width}}  seed {row['seed']:<3} {row['state']}")
    left = sum(row["state"] == "to run" for row in rows)
    print(f"{len(rows)} cells, {left} to run; results: {out}")


def _state(cell: Any, data: Data, out: Path) -> str:
    result = existing_result(cell, data, out)
    if result is not None:
        return str(result["status"])
    return "running" if _locks.held(lock_path(cell, out)) else "to run"


def _brief(result: Mapping[str, Any]) -> dict[str, Any]:
    return {name: result[name] for name in ("id", "arm", "seed", "status", "error", "metrics", "seconds")}


def _described(study: Study, out: Path) -> dict[str, Any]:
    told = {"name": study.name, "size": study.size, "question": study.question.strip(), "file": study.file}
    return {"schema": 1, "study": told, "out": str(out)}
