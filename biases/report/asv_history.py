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
FEWEST_VALUES = 8
"""Of noise of 5 % alone, asv's detection finds steps in 59 % of the series of three values, in 26 % of those of five
and in 0.7 % of those of eight."""
LASTING_VALUES = 2
LEAST_OF_TIMES = 1.05


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
                "steps": steps(values, weights, unit=str(benchmarks[name].get("unit", ""))),
            }
            for (name, params), (values, weights) in sorted(series.items())
        ],
    }


def steps(
    values: Sequence[float | None], weights: Sequence[float | None] | None = None, *, unit: str = ""
) -> list[dict[str, Any]]:
    """Where a new level begins that lasts, among the levels that asv's detection finds.

    Args:
        values: ``None`` where there is none; none of fewer than :data:`FEWEST_VALUES` has steps.
        weights: of the values, ``None`` for a usual one; asv's site takes the inverse of a value's own uncertainty.
        unit: of the values; times are noisy, so that small steps in ``"seconds"`` are left out.

    Returns:
        ``at``, the index of the first value of a level; ``before`` and ``after``, the levels; ``ratio`` of the later
        one to the earlier, ``None`` where that is 0.
    """
    from asv.step_detect import detect_steps

    left = list(values)
    found: list[Any] = []
    while _count(left) >= FEWEST_VALUES:
        found = detect_steps(left, None if weights is None else list(weights))
        short = [(first, end) for first, end, *_ in found if _count(left[first:end]) < LASTING_VALUES]
        if not short:
            break
        # What lies between two outliers is judged without them.
        for first, end in short:
            left[first:end] = [None] * (end - first)
    else:
        return []
    least = LEAST_OF_TIMES if unit == "seconds" else 1.0
    return [
        {"at": at, "before": before, "after": after, "ratio": after / before if before else None}
        for (_, _, before, *_), (at, _, after, *_) in itertools.pairwise(found)
        if before != after and max(before, after) >= least * min(before, after)
    ]


def _count(values: Sequence[float | None]) -> int:
    return sum(value is not None for value in values)
