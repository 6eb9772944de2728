"""Whether ``biases compare`` can be believed: unchanged commits, a slowdown by two, an allocation of N x N.

    python benchmarks/compare_check.py --summary benchmarks/results/compare_check.json

A small repository is made with attention over PyTorch, and commits of it are compared as a user would: pairs whose code
is equal, of which none may be called a regression or an improvement; pairs in which attention is computed twice, each
of which must be called a regression in time and in operations, and not in bytes; and one that stores the weights, which
must be called a regression in bytes. Of the times of equal code at least four in five must be called unchanged: what is
never settled raises no alarm either. Exit code 0: all of that; 1: not all; 130: interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from biases._files import write_atomically
from biases.bench import facts
from biases.bench.compare import Comparison, Options, compare
from biases.bench.compare.results import VERDICTS

ATTENTION = """
import torch.nn.functional as F


def attend(q, k, v):
    return F.scaled_dot_product_attention(q, k, v)
"""
TWICE = ATTENTION.replace("    return", "    F.scaled_dot_product_attention(q, k, v)\n    return")
SQUARE = """
def attend(q, k, v):
    return (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ v
"""
SUITE = """
import numpy
import torch
from attention import attend
from torch.utils._python_dispatch import TorchDispatchMode

from biases.bench import peak_bytes


class Operations(TorchDispatchMode):
    number = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.number += 1
        return function(*arguments, **(options or {}))


class Attention:
    params = [128, 512]
    param_names = ["length"]

    def setup(self, length):
        torch.set_num_threads(1)
        self.inputs = [torch.randn(1, 4, length, 64) for _ in range(3)]

    def time_forward(self, length):
        attend(*self.inputs)

    def track_peak_bytes(self, length):
        return peak_bytes(lambda: attend(*self.inputs))

    track_peak_bytes.unit = "bytes"

    def track_operations(self, length):
        with Operations() as counted:
            attend(*self.inputs)
        return counted.number


def time_python():
    sum(i * i for i in range(10_000))


class Sort:
    def setup(self):
        self.values = numpy.random.default_rng(0).random(20_000)

    def time_sort(self):
        numpy.sort(self.values)
"""


# ``unchanged`` differs from ``start`` in a file that is not run.
COMMITS = {
    "start": {"attention/__init__.py": ATTENTION, "benchmarks/operators.py": SUITE},
    "unchanged": {"README": "A file that nothing reads.\n"},
    "twice": {"attention/__init__.py": TWICE},
    "square": {"attention/__init__.py": SQUARE},
}
TIMES = ("operators.Attention.time_forward(128)", "operators.Attention.time_forward(512)")
BYTES = ("operators.Attention.track_peak_bytes(128)", "operators.Attention.track_peak_bytes(512)")
OPERATIONS = ("operators.Attention.track_operations(128)", "operators.Attention.track_operations(512)")
OTHER_TIMES = ("operators.Sort.time_sort", "operators.time_python")
ROWS = {*TIMES, *BYTES, *OPERATIONS, *OTHER_TIMES}
PLANTED = {"unchanged": (), "twice": (*TIMES, *OPERATIONS), "square": BYTES}
LEAST_SETTLED = 0.8
HARMLESS = ("no change", "inconclusive", "unsettled")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--unchanged", type=int, default=20, metavar="N", help="comparisons of equal code")
    parser.add_argument("--slowdowns", type=int, default=3, metavar="N", help="comparisons with a slowdown by two")
    parser.add_argument("--rounds", type=int, default=60, help="for each benchmark")
    parser.add_argument("--summary", type=Path, metavar="FILE", help="write the results here (JSON)")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        commits = make_repository(Path(folder), COMMITS)
        runs: dict[str, list[Comparison]] = {"unchanged": [], "twice": [], "square": []}
        for what, count in (("unchanged", options.unchanged), ("twice", options.slowdowns), ("square", 1)):
            for seed in range(count):
                chosen = Options(rounds=options.rounds, seed=seed)
                found = compare(commits["start"], commits[what], repository=folder, options=chosen)
                if found.interrupted:
                    return 130
                runs[what].append(found)
                print(f"{what} {seed + 1}/{count} {time.monotonic() - begin:.0f} s {found.summary}", flush=True)
    results = {what: [plain(each) for each in found] for what, found in runs.items()}
    faults = judge(results)
    summary = {
        "schema": 1,
        "asked": {name: value for name, value in vars(options).items() if name != "summary"},
        "machine": facts(),
        "threads": os.environ["OMP_NUM_THREADS"],
        "faults": faults,
        "verdicts": {what: verdicts(found) for what, found in results.items()},
        "seconds": round(time.monotonic() - begin, 1),
        "runs": results,
    }
    if options.summary:
        write_atomically(options.summary, (json.dumps(summary, indent=1) + "\n").encode())
    print(json.dumps(summary["verdicts"], indent=1))
    print("\n".join(faults) or "all as it should be")
    return 1 if faults else 0


def make_repository(folder: Path, commits: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """A git repository in ``folder`` with one commit after the other; each is what it is named and what it writes.

    Args:
        folder: an empty one.
        commits: name -> path -> text.

    Returns:
        name -> full hash.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout

    def commit(name: str, files: Mapping[str, str]) -> str:
        for path, text in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
        git("add", "--all")
        git("commit", "--quiet", "--message", name)
        return git("rev-parse", "HEAD").strip()

    git("init", "--quiet")
    git("config", "user.name", "nobody")
    git("config", "user.email", "nobody@localhost")
    return {name: commit(name, files) for name, files in commits.items()}


def judge(runs: dict[str, list[dict[str, Any]]]) -> list[str]:
    """What is not as it should be.

    Args:
        runs: ``"unchanged"``, ``"twice"`` and ``"square"`` -> comparisons as of :func:`plain`.
    """
    faults = [f"{what}: expected at least one comparison, got none" for what in PLANTED if not runs.get(what)]
    for what, found in runs.items():
        for seed, each in enumerate(found):
            faults += [f"{what} {seed}: {fault}" for fault in faults_of(what, each)]
    rows = [row for each in runs.get("unchanged", []) for row in each["rows"] if row["name"] in (*TIMES, *OTHER_TIMES)]
    settled = sum(row["verdict"] == "no change" for row in rows)
    if settled < LEAST_SETTLED * len(rows):
        expected = f"expected no change in at least {LEAST_SETTLED:.0%} of {len(rows)} times of equal code"
        faults.append(f"{expected}, got {settled}: use a quieter machine, or more rounds")
    return faults


def faults_of(what: str, comparison: dict[str, Any]) -> Iterator[str]:
    """Of one comparison."""
    rows = {row["name"]: row for row in comparison["rows"]}
    if set(rows) != ROWS or len(comparison["rows"]) != len(ROWS):
        yield f"expected the benchmarks {sorted(ROWS)}, got {[row['name'] for row in comparison['rows']]}"
    if comparison["exit_code"] != bool(PLANTED[what]):
        yield f"expected exit code {int(bool(PLANTED[what]))}, got {comparison['exit_code']}"
    for name, row in rows.items():
        allowed = allowed_verdicts(what, name)
        if row["verdict"] not in allowed:
            yield f"{name} is {row['verdict']} ({row['reason']}), expected {' or '.join(allowed)}"


def allowed_verdicts(what: str, name: str) -> tuple[str, ...]:
    """That a benchmark may get; whatever is not planted and not excluded by its code may get any."""
    if name in PLANTED[what]:
        return ("regression",)
    if name in OTHER_TIMES or (what == "unchanged" and name in TIMES):
        return HARMLESS
    if what == "unchanged" or (what == "twice" and name in BYTES):
        return ("no change",)
    return VERDICTS


def verdicts(found: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Benchmark -> verdict -> comparisons."""
    counts: dict[str, Counter[str]] = {}
    for each in found:
        for row in each["rows"]:
            counts.setdefault(row["name"], Counter())[row["verdict"]] += 1
    return {name: dict(count) for name, count in counts.items()}


def plain(comparison: Comparison) -> dict[str, Any]:
    """Without the single rounds."""
    rows = [{key: value for key, value in row.as_dict().items() if key != "values"} for row in comparison.rows]
    machine = {key: comparison.machine[key] for key in ("load_before",)}
    return {"exit_code": comparison.exit_code, "settings": comparison.settings, **machine, "rows": rows}


if __name__ == "__main__":
    sys.exit(main())
