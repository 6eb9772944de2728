"""The result store: one JSON file a cell, and the paired values that statistics need."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from biases._checks import fail, one_of
from biases._files import write_atomically

SCHEMA = 1
STATUSES = ("ok", "failed", "diverged")
REQUIRED: Mapping[str, type] = {
    "id": str,
    "arm": str,
    "seed": int,
    "config": dict,
    "status": str,
    "metrics": dict,
    "curve": list,
    "data": dict,
}

Result = dict[str, Any]


class DamagedResult(ValueError):
    """A result file that is not JSON."""


def check_one_data(results: Iterable[Result], *, what: str) -> None:
    """Check that all results are of the same bytes, whatever these are called.

    Raises:
        ValueError: they are of several; the message begins with ``what`` and names them.
    """
    counts = Counter(f"{each['data'].get('name')} of SHA-256 {each['data'].get('sha256')}" for each in results)
    hashes = {told.rpartition(" ")[2] for told in counts}
    if len(hashes) > 1:
        fail(what, "cells of one data", "; ".join(f"{told} ({count} cells)" for told, count in sorted(counts.items())))


def cells_directory(out_dir: str | os.PathLike[str]) -> Path:
    return Path(out_dir) / "cells"


def result_path(out_dir: str | os.PathLike[str], cell_id: str) -> Path:
    return cells_directory(out_dir) / f"{cell_id}.json"


def write_result(out_dir: str | os.PathLike[str], result: Result) -> Path:
    """Write a result under its id, whole or not at all.

    Raises:
        OSError: it could not be written; a result that was there still is.
    """
    path = result_path(out_dir, result["id"])
    write_atomically(path, (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())
    return path


def read_result(path: Path, *, of_grid: bool = True) -> Result:
    """Read one result.

    Args:
        of_grid: its configuration is that of a cell; other programmes store other ones in the same form.

    Raises:
        ValueError: not JSON, another schema, a missing or mistyped field, a metric that is no finite number, arm, seed
            or id that are not the configuration's; the message names the file.
        OSError: the file cannot be read.
    """

    def refuse(constant: str) -> None:
        fail(f"result {path}", "finite numbers", constant)

    try:
        result = json.loads(path.read_bytes(), parse_constant=refuse)
    except RecursionError as error:
        raise DamagedResult(f"result {path}: expected JSON, got values nested too deeply to be read") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DamagedResult(f"result {path}: expected JSON, got {error}") from error
    if not isinstance(result, dict) or result.get("schema") != SCHEMA:
        got = repr(result.get("schema")) if isinstance(result, dict) else f"a {type(result).__name__}"
        fail(f"result {path}", f"an object with schema {SCHEMA}", got)
    for name, kind in REQUIRED.items():
        if not isinstance(result.get(name), kind):
            fail(f"result {path} {name!r}", f"a {kind.__name__}", repr(result.get(name)))
    one_of(f"result {path} 'status'", result["status"], STATUSES)
    if result["id"] != path.stem:
        fail(f"result {path} 'id'", f"the file's name {path.stem!r}", repr(result["id"]))
    if of_grid:
        _check_cell(path, result)
    for name, value in result["metrics"].items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            fail(f"result {path} metric {name!r}", "a finite number", repr(value))
    return result


def _check_cell(path: Path, result: Result) -> None:
    """Check that arm, seed and id are those of the configuration."""
    from biases.ablation.spec import Cell

    try:
        cell = Cell.from_config(result["config"])
    except ValueError as error:
        raise ValueError(f"result {path} 'config': {error}") from error
    for name in ("arm", "seed", "id"):
        if result[name] != getattr(cell, name):
            fail(f"result {path} {name!r}", f"that of its configuration, {getattr(cell, name)!r}", repr(result[name]))


def load_results(directory: str | os.PathLike[str]) -> list[Result]:
    """Every result of a run, failed and diverged ones included, by arm and seed. Temporary files are ignored.

    Args:
        directory: the ``out_dir`` of :func:`~biases.ablation.run_grid`.

    Raises:
        ValueError: no such run, or a file in it that is not a result; the message names it.
    """
    folder = cells_directory(directory)
    if not folder.is_dir():
        fail("results directory", "a run's directory with a folder 'cells'", str(directory))
    results = [read_result(path) for path in folder.glob("*.json") if not path.name.startswith(".")]
    return sorted(results, key=lambda result: (result["arm"], result["seed"], result["id"]))


def table(results: Iterable[Result], metric: str) -> dict[str, dict[int, float]]:
    """``{arm: {seed: value}}`` over the cells that finished; an arm none of whose cells did has no seeds.

    Raises:
        ValueError: a finished cell has no such metric, or two cells are of one arm and seed (a directory
            with runs of two configurations: select one first).
    """
    values: dict[str, dict[int, float]] = {}
    for result in results:
        row = values.setdefault(result["arm"], {})
        if result["status"] != "ok":
            continue
        arm, seed = result["arm"], result["seed"]
        one_of(f"metric of cell {result['id']}", metric, result["metrics"])
        if seed in row:
            fail(f"results of arm {arm!r}, seed {seed}", "one finished cell", f"another, {result['id']}")
        row[seed] = float(result["metrics"][metric])
    return values


def paired_values(
    results: Iterable[Result], arm_a: str, arm_b: str, metric: str
) -> tuple[list[int], list[float], list[float]]:
    """The values of two arms over the seeds that both finished, ascending: ``(seeds, a, b)``, possibly empty.

    Raises:
        ValueError: an arm of which there is no result, see also :func:`table`; or a pair that differs in
            more than its arm (training configuration or text), which is no pair.
    """
    results = [result for result in results if result["arm"] in (arm_a, arm_b)]
    values = table(results, metric)
    for arm in (arm_a, arm_b):
        if arm not in values:
            fail("arm", "an arm with results", repr(arm))
    seeds = sorted(values[arm_a].keys() & values[arm_b].keys())
    finished = {(r["arm"], r["seed"]): r for r in results if r["status"] == "ok"}
    for seed in seeds:
        _check_pair(finished[arm_a, seed], finished[arm_b, seed])
    return seeds, [values[arm_a][seed] for seed in seeds], [values[arm_b][seed] for seed in seeds]


def _check_pair(a: Result, b: Result) -> None:
    for what, of in (
        ("text", lambda result: result["data"].get("sha256")),
        ("training configuration", lambda result: result["config"].get("train")),
        ("context", lambda result: result["config"].get("model", {}).get("context")),
    ):
        if of(a) != of(b):
            fail(f"cells {a['id']} and {b['id']}, a pair", f"one {what}", f"{of(a)} and {of(b)}")
