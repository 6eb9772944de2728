"""What asv measured, skipped and failed, counted in the results that it saved."""

from __future__ import annotations

import itertools
import json
import math
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Counted:
    """Benchmarks that were selected, with their parameters, as ``name(parameter, ...)``.

    Attributes:
        measured: how many have a result.
        skipped: those that asv calls n/a: no device, or nothing to measure.
        failed: those that raised, crashed or ran out of time.
        missing: those that were never run.
    """

    measured: int
    skipped: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0: all well; 1: something failed or was never run; 3: nothing was measured."""
        if self.failed or self.missing:
            return 1
        return 0 if self.measured else 3


def python_version() -> str:
    """Such as ``3.11``."""
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


def environment_name() -> str:
    """What :mod:`benchmarks.checkout` calls this environment in asv's files."""
    return f"checkout-py{python_version()}"


def read_results(folder: Path, machine: str, commit: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """asv's benchmarks, and its results of one machine and revision; either is empty where there is no such file."""
    found = []
    for path in (folder / "benchmarks.json", folder / machine / f"{commit[:8]}-{environment_name()}.json"):
        found.append(json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {})
    return found[0], found[1]


def count(
    benchmarks: Mapping[str, Any], results: Mapping[str, Any], patterns: Iterable[str] = (), *, since: float = 0.0
) -> Counted:
    """Count the benchmarks that ``patterns`` select.

    Args:
        benchmarks: asv's ``benchmarks.json``.
        results: asv's file of results.
        patterns: as given to ``asv run --bench``; all benchmarks if there are none.
        since: seconds of the epoch; a result begun earlier is that of another run, and counts as never run.
    """
    chosen = [re.compile(pattern) for pattern in patterns]
    rows = {
        name: dict(zip(results["result_columns"], row, strict=False))
        for name, row in results.get("results", {}).items()
    }
    measured, skipped, failed, missing = 0, list[str](), list[str](), list[str]()
    for name, benchmark in benchmarks.items():
        if not isinstance(benchmark, dict):
            continue
        row = rows.get(name, {})
        # asv truncates to milliseconds.
        current = row.get("started_at") is not None and row["started_at"] >= math.floor(since) * 1000
        combinations = list(itertools.product(*benchmark["params"]))
        values = row.get("result") if current else None
        if values is None:
            values = [None] * len(combinations)
        for parameters, value in zip(combinations, values, strict=True):
            label = f"{name}({', '.join(parameters)})" if parameters else name
            if chosen and not any(pattern.search(label) for pattern in chosen):
                continue
            if not current:
                missing.append(label)
            elif value is None:
                failed.append(label)
            elif math.isnan(value):
                skipped.append(label)
            else:
                measured += 1
    return Counted(measured, tuple(skipped), tuple(failed), tuple(missing))
