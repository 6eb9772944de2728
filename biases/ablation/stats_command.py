"""``biases stats``: its arguments, and what it prints."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from biases._checks import fail
from biases._exit_codes import NOTHING, OK
from biases.ablation.contrasts import METRICS, first_metric
from biases.ablation.results import Result, load_results
from biases.ablation.study_folder import STUDY_FILE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``biases stats``."""
    parser.add_argument("directory", metavar="DIR", help=f"a run's folder, with {STUDY_FILE} and cells")
    what = "of all contrasts, instead of the declared ones, to explore"
    parser.add_argument("--metric", metavar="M", help=what)
    parser.add_argument("--a", metavar="ARM", help="explore the difference of two arms, without or beside a study:")
    parser.add_argument("--b", metavar="ARM", help="arm a - arm b")


def run(options: argparse.Namespace) -> int:
    """``biases stats DIR``: returns the exit code, 3 where no cell has finished.

    Raises:
        ValueError: no run in the folder, no study in it and no arms named, unknown arms or metrics.
    """
    analysis = analyse_folder(options.directory, metric=options.metric, a=options.a, b=options.b)
    if options.json:
        print(json.dumps(analysis, indent=1, allow_nan=False))
    else:
        from biases.ablation.stats_view import show

        show(analysis)
    return OK if any(arm["n"] for arm in analysis["arms"].values()) else NOTHING


def analyse_folder(
    directory: str | Path, *, metric: str | None = None, a: str | None = None, b: str | None = None
) -> dict[str, Any]:
    """The analysis of a run's folder: of its study, or of the arms ``a`` and ``b`` alone.

    Raises:
        ValueError: see :func:`run`.
    """
    from biases.ablation.analysis import analyse, compare_arms
    from biases.ablation.study import load_study
    from biases.ablation.study_folder import redeclared

    if (a is None) != (b is None):
        fail("--a and --b", "both or neither", "--a alone" if b is None else "--b alone")
    results = load_results(directory)
    spec = Path(directory) / STUDY_FILE
    study = load_study(spec) if spec.is_file() else None
    if a is not None and b is not None:
        if study is None:
            return compare_arms(results, a, b, metric or _usual_metric(results))
        cells = {cell.id for cell in study.grid.cells()}
        own = [result for result in results if result["id"] in cells]
        statistics = study.statistics
        return compare_arms(own, a, b, metric or statistics.metric, confidence=statistics.confidence)
    if study is None:
        arms = ", ".join(sorted({result["arm"] for result in results})) or "none"
        fail(
            str(directory),
            f"{STUDY_FILE} beside its cells, or --a ARM --b ARM",
            f"no {STUDY_FILE}; it has the arms {arms}",
        )
    return analyse(study, results, metric=metric, redeclared=redeclared(study, directory))


def _usual_metric(results: Sequence[Result]) -> str:
    measured = {name for result in results for name in result["metrics"]}
    return next((first_metric(kind) for kind in METRICS if first_metric(kind) in measured), first_metric("text"))
