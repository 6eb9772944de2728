"""Results of asv over commits, as asv itself reads them, with the steps that its own detection finds."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from biases._checks import fail

BENCHMARKS_FILE, MACHINE_FILE = "benchmarks.json", "machine.json"
HASH = 8
"""Digits of a commit that are shown."""


def is_results_folder(folder: Path) -> bool:
    """Whether asv wrote the folder."""
    return (folder / BENCHMARKS_FILE).is_file() and any(folder.glob(f"*/{MACHINE_FILE}"))


def read_folder(folder: Path) -> list[dict[str, Any]]:
    """Every machine's history, as :func:`biases.report.history.view` takes it. Needs asv.

    Raises:
        ValueError: a file that asv cannot read; the message names it.
    """
    benchmarks = _json(folder / BENCHMARKS_FILE)
    return [_machine(path.parent, benchmarks) for path in sorted(folder.glob(f"*/{MACHINE_FILE}"))]


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON, got {error}") from error
    if not isinstance(found, dict):
        fail(str(path), "an object", type(found).__name__)
    return found


def _machine(folder: Path, benchmarks: Mapping[str, Any]) -> dict[str, Any]:
    from asv._stats import get_weight
    from asv.results import Results
    from asv.util import UserError

    runs: list[tuple[int, str, str, Any]] = []
    for path in sorted(folder.glob("*.json")):
        if path.name == MACHINE_FILE:
            continue
        try:
            run = Results.load(str(path))
        except (UserError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: expected results of asv, got {type(error).__name__}: {error}") from error
        runs.append((run.date, run.commit_hash, path.stem.partition("-")[2], run))
    environments = sorted({environment for _, _, environment, _ in runs})
    commits = list(dict.fromkeys((date, commit) for date, commit, *_ in sorted(runs, key=lambda run: run[:2])))
    order = {commit: index for index, (_, commit) in enumerate(commits)}
    series: dict[tuple[str, str], tuple[list[float | None], list[float | None]]] = {}
    for _, commit, environment, run in runs:
        for name in run.get_all_result_keys():
            told = benchmarks.get(name)
            version = run.benchmark_version.get(name)
            # Values of another version of a benchmark are of something else.
            if not isinstance(told, Mapping) or version not in (None, told.get("version")):
                continue
            params = run.get_result_params(name)
            found = zip(run.get_result_value(name, params), run.get_result_stats(name, params), strict=True)
            for words, (value, stats) in zip(itertools.product(*params), found, strict=True):
                if value is None or value != value:
                    continue
                named = [word.strip("'") for word in words] + ([environment] if len(environments) > 1 else [])
                blank: list[float | None] = [None] * len(commits)
                values, weights = series.setdefault((name, ", ".join(named)), (blank, blank.copy()))
                values[order[commit]], weights[order[commit]] = float(value), get_weight(stats)
    return {
        "machine": folder.name,
        "commits": [{"hash": commit[:HASH], "date": date} for date, commit in commits],
        "series": [
            {
                "benchmark": name,
                "params": params,
                "unit": str(benchmarks[name].get("unit", "")),
                "values": values,
                "steps": steps(values, weights),
            }
            for (name, params), (values, weights) in sorted(series.items())
        ],
    }


def steps(values: Sequence[float | None], weights: Sequence[float | None] | None = None) -> list[dict[str, Any]]:
    """Where a new level begins: ``at``, the index, and ``ratio`` of the level to the one before.

    Args:
        values: ``None`` where there is none.
        weights: of the values, ``None`` for a usual one; asv's site takes the inverse of a value's own uncertainty.
    """
    from asv.step_detect import detect_steps

    found = detect_steps(list(values), None if weights is None else list(weights))
    return [{"at": right[0], "ratio": right[2] / left[2]} for left, right in itertools.pairwise(found) if left[2]]
