"""asv's folder of results: what it holds, a copy of it to be published, and what asv made of that."""

from __future__ import annotations

import itertools
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asv.graph import Graph
from asv.results import Results
from asv.util import UserError, is_na

BENCHMARKS_FILE, MACHINE_FILE = "benchmarks.json", "machine.json"
# asv begins another series with every new value of these, an update of the kernel included. What tells series apart
# here is the machine's name.
FACTS = ("arch", "cpu", "num_cpu", "os", "ram")

Place = tuple[str, str]
"""A machine and a commit."""


@dataclass(frozen=True)
class Saved:
    """Values in asv's folder of results.

    Attributes:
        benchmarks: asv's description of each.
        runs: files that asv reads.
        values: how many values there are of benchmarks as they are, by machine and commit.
        measured: parameters that have a value on some machine and commit, by benchmark.
        older: how many values are of benchmarks that have changed or gone since; asv does not show them.
        unread: files that asv passes over, with the reason.
    """

    benchmarks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    runs: tuple[Path, ...] = ()
    values: Counter[Place] = field(default_factory=Counter)
    measured: Mapping[str, set[tuple[str, ...]]] = field(default_factory=dict)
    older: int = 0
    unread: tuple[str, ...] = ()


def read_saved(folder: Path) -> Saved:
    """Read ``folder`` as asv does, and what it would not say.

    Raises:
        ValueError: no benchmarks that asv could read.
    """
    path = folder / BENCHMARKS_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: expected asv's benchmarks, got {error}") from error
    benchmarks = {name: told for name, told in found.items() if isinstance(told, Mapping)}
    values, measured = Counter[Place](), {name: set[tuple[str, ...]]() for name in benchmarks}
    runs, unread, older = list[Path](), list[str](), 0
    for path in sorted(folder.glob("*/*.json")):
        if path.name == MACHINE_FILE:
            continue
        try:
            if not path.with_name(MACHINE_FILE).is_file():
                raise ValueError(f"there is no {MACHINE_FILE} beside it")
            run = Results.load(str(path), machine_name=path.parent.name)
        except (UserError, ValueError, TypeError, AttributeError) as error:
            unread.append(f"{path}: {error}")
            continue
        runs.append(path)
        current = run.get_result_keys(benchmarks)
        for name in run.get_all_result_keys():
            older += _count(run.get_result_value(name, run.get_result_params(name)))
            if name not in current:
                continue
            parameters = benchmarks[name]["params"]
            results = run.get_result_value(name, parameters)
            values[path.parent.name, run.commit_hash] += _count(results)
            older -= _count(results)
            combinations = zip(itertools.product(*parameters), results, strict=True)
            measured[name].update(where for where, value in combinations if not is_na(value))
    return Saved(benchmarks, tuple(runs), +values, measured, older, tuple(unread))


def write_copy(saved: Saved, folder: Path) -> None:
    """Write into ``folder`` what asv is to publish: benchmarks and their parameters without those that no machine has
    a value of, which would be empty charts and rows, and a machine's results as one series.

    asv finds results by the value of a parameter, and opens a chart on the first values of each: those measured with
    the most values of the others come first."""
    benchmarks: dict[str, Any] = {"version": 2}
    for name, where in saved.measured.items():
        if where:
            often = [Counter(axis) for axis in zip(*where, strict=True)]
            told = dict(saved.benchmarks[name])
            told["params"] = [
                sorted((each for each in axis if each in of), key=of.__getitem__, reverse=True)
                for axis, of in zip(told["params"], often, strict=True)
            ]
            benchmarks[name] = told
    folder.mkdir(parents=True)
    (folder / BENCHMARKS_FILE).write_text(json.dumps(benchmarks), encoding="utf-8")
    for path in saved.runs:
        machine = folder / path.parent.name
        machine.mkdir(exist_ok=True)
        shutil.copy(path.with_name(MACHINE_FILE), machine)
        run = json.loads(path.read_text(encoding="utf-8"))
        run["params"] = {name: value for name, value in run["params"].items() if name not in FACTS}
        (machine / path.name).write_text(json.dumps(run), encoding="utf-8")


def read_published(site: Path, index: Mapping[str, Any]) -> Counter[Place]:
    """Count the values that the charts of ``site`` have, by machine and commit.

    Args:
        site: folder that asv published.
        index: its ``index.json``.
    """
    commits, found = index["revision_to_hash"], Counter[Place]()
    for machine, path in _charts(site, index):
        for revision, values in json.loads(path.read_text(encoding="utf-8")):
            found[machine, commits[str(revision)]] += _count(values)
    return +found


def write_empty_charts(site: Path, index: Mapping[str, Any]) -> None:
    """Give every machine a chart of every benchmark: a page asks for those that asv has not written, too."""
    for _, path in _charts(site, index):
        if not path.is_file():
            path.write_text("[]", encoding="utf-8")


def _charts(site: Path, index: Mapping[str, Any]) -> Iterator[tuple[str, Path]]:
    for parameters in index["graph_param_list"]:
        for name in index["benchmarks"]:
            yield parameters["machine"], site / f"{Graph.get_file_path(parameters, name)}.json"


def _count(values: Any) -> int:
    return sum(not is_na(value) for value in (values if isinstance(values, list) else [values]))
