"""The comparison of two states of a repository."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from biases._checks import fail
from biases._files import writable_folder, write_atomically
from biases._signals import terminated_as_interrupted
from biases.bench.compare.measure import Budget, Measured, Pair, may_be_fixed
from biases.bench.compare.options import Options
from biases.bench.compare.results import Comparison, Row
from biases.bench.compare.revisions import Repository, State
from biases.bench.compare.rows import candidate, confirmed, judged, load
from biases.bench.compare.side import Side
from biases.bench.compare.statistics import Call, least_rounds, level_of_each
from biases.bench.compare.workspace import Workspace
from biases.bench.machine import facts
from biases.bench.timing import Progress

DEFAULT_ROUNDS = 100
WHOLE = ("suite", "__init__")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "OMP_WAIT_POLICY")


def compare(
    base: str,
    head: str | None = None,
    *,
    repository: str | os.PathLike[str] = ".",
    options: Options | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Measure two states of a git repository against each other, on this machine, at this time.

    Each side is a git worktree in a temporary folder, removed at the end however that comes, and one process, with that
    tree first on its path. Both run the same suite, that of head; each benchmark is prepared once and then sampled in
    turn, in the orders A B B A or B A A B as drawn. A candidate for a regression or an improvement is measured a second
    time, in new processes, before it is called one.

    Args:
        base: a revision.
        head: another one; ``None`` = the working tree as it is, with its changes.
        repository: a folder inside the repository, from which modules of the trees are imported too.
        options: how; the defaults otherwise.
        progress: called as ``progress(name, done, total)`` before every benchmark.

    Returns:
        What was found; if this is interrupted, by Ctrl-C or SIGTERM, what was found until then.

    Raises:
        ValueError: no repository, revision or suite of that name, an option that cannot be, fewer rounds than give an
            interval, an interpreter or command that cannot be run, or a folder that cannot be written in.
        OSError: the results can no longer be written.
    """
    options = options or Options()
    place = Repository(repository)
    states = {"base": place.resolve(base), "head": place.resolve(head) if head is not None else place.working_tree()}
    if options.out is not None:
        writable_folder("out", options.out)
    run = _Run(states, options, progress)
    with terminated_as_interrupted():
        try:
            with Workspace(place) as workspace:
                run.all(workspace)
        except KeyboardInterrupt:
            run.interrupted = True
            run.save()
    return run.result()


class _Run:
    """One comparison under way."""

    def __init__(self, states: dict[str, State], options: Options, progress: Progress | None) -> None:
        self.states, self.options, self.progress = states, options, progress
        self.rows: dict[str, Row] = {}
        self.candidates: dict[str, Call] = {}
        self.interrupted = False
        self.other: list[str] = []
        self.left_out: list[str] = []
        self.machine = {name: fact for name, fact in facts().items() if name != "git_revision"}
        self.machine["environment"] = {name: os.environ[name] for name in THREADS if name in os.environ}
        self.machine["load_before"] = load()
        self.settings: dict[str, Any] = {}
        self.level = options.confidence

    def result(self) -> Comparison:
        """What is known now."""
        machine = {**self.machine, "load_after": load()}
        rows, other = tuple(self.rows.values()), tuple(self.other)
        return Comparison(
            **self.states,
            rows=rows,
            settings=self.settings,
            machine=machine,
            not_compared=other,
            left_out=tuple(self.left_out),
            interrupted=self.interrupted,
        )

    def save(self) -> None:
        """Write it, if there is a folder for it."""
        if self.options.out is not None:
            content = json.dumps(self.result().as_dict(), indent=1) + "\n"
            write_atomically(Path(self.options.out) / "comparison.json", content.encode())

    def all(self, workspace: Workspace) -> None:
        """Check out, measure, confirm."""
        trees = {side: workspace.check_out(side, state) for side, state in self.states.items()}
        suite, timeout = workspace.copy_suite(trees["head"], self.options.suite)
        for tree in trees.values():
            if self.options.prepare:
                workspace.prepare(tree, self.options.prepare)
        python, root = self.options.python or sys.executable, workspace.repository.root
        base, head = (
            Side(workspace, trees[side], [root, trees[other]], suite, python)
            for side, other in (("base", "head"), ("head", "base"))
        )
        pair = Pair(base, head, timeout, self.options.seed)
        try:
            pair.start()
            self._measure(pair)
        finally:
            pair.stop()

    def _measure(self, pair: Pair) -> None:
        listings = {name: side.listing for name, side in pair.sides.items()}
        known = {name: {each["name"] for each in listing["benchmarks"]} for name, listing in listings.items()}
        matching = [each for each in listings["head"]["benchmarks"] if self._wanted(each["name"])]
        wanted = [each for each in matching if self._compared(each)]
        self.left_out = [each["name"] for each in matching if not self._compared(each)]
        self.other = [name for name in listings["head"]["other"] if self._wanted(name)]
        budget = self._plan(wanted, known["base"], listings)
        self._not_run(listings, known)
        for done, benchmark in enumerate(wanted):
            self._tell(benchmark["name"], done, len(wanted))
            present = [side for side in known if benchmark["name"] in known[side]]
            found = pair.measure(benchmark, present, budget)
            if "base" not in present:
                found.message["base"] = why_not_listed(benchmark["name"], listings["base"]["broken"])
            row, call = self._judged(benchmark, found)
            if call in ("regression", "improved"):
                self.candidates[row.name] = call
                row = candidate(row)
            self.rows[row.name] = row
            self.save()
        self._confirm(pair, wanted, budget)
        self.save()

    def _judged(self, benchmark: dict[str, Any], found: Measured) -> tuple[Row, Call | None]:
        options = self.options
        return judged(benchmark, found, level=self.level, threshold=options.threshold, tolerance=options.tolerance)

    def _confirm(self, pair: Pair, wanted: list[dict[str, Any]], budget: Budget) -> None:
        """Measure the candidates again, in new processes."""
        again = [each for each in wanted if each["name"] in self.candidates]
        if again:
            pair.start()
        for done, benchmark in enumerate(again):
            name = benchmark["name"]
            self._tell(f"again: {name}", done, len(again))
            second, _ = self._judged(benchmark, pair.measure(benchmark, list(pair.sides), budget))
            self.rows[name] = confirmed(self.rows[name], self.candidates[name], second)
            self.save()

    def _wanted(self, name: str) -> bool:
        return re.search(self.options.bench or "", name) is not None

    def _compared(self, benchmark: dict[str, Any]) -> bool:
        return self._wanted(benchmark["name"]) and (may_be_fixed(benchmark) or not self.options.deterministic_only)

    def _tell(self, name: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(name, done, total)

    def _plan(self, wanted: list[dict[str, Any]], at_base: set[str], listings: dict[str, Any]) -> Budget:
        """The level of each interval, and the rounds that it takes."""
        with_interval = () if self.options.deterministic_only else wanted
        family = sum(each["name"] in at_base and each["kind"] != "peakmem" for each in with_interval)
        self.level = level_of_each(family, self.options.confidence)
        least = least_rounds(self.level)
        if self.options.rounds is not None and self.options.rounds < least:
            fail("rounds", f"at least {least}, for intervals of {family} benchmarks together", self.options.rounds)
        rounds = self.options.rounds or max(DEFAULT_ROUNDS, least)
        asked = {
            name: getattr(self.options, name)
            for name in ("suite", "bench", "deterministic_only", "threshold", "tolerance", "seed", "prepare")
        }
        pythons = {side: listing["python"] for side, listing in listings.items()}
        self.settings = {
            **asked,
            "confidence": self.options.confidence,
            "family": family,
            "level": self.level,
            "rounds": rounds,
            "seconds": self.options.seconds,
            "python": pythons,
        }
        return Budget(rounds, least, self.options.seconds, self.options.deterministic_only)

    def _not_run(self, listings: dict[str, Any], known: dict[str, set[str]]) -> None:
        """Rows of what head cannot load, and of what it does not have."""
        for name, message in listings["head"]["broken"].items():
            if name in WHOLE or self._wanted(name):
                self.rows[name] = Row(name, "module", "", "failed", message)
        broken = set(self.rows)
        for each in listings["base"]["benchmarks"]:
            name = each["name"]
            lost = any(module in WHOLE or name.startswith(f"{module}.") for module in broken)
            if name not in known["head"] and self._compared(each) and not lost:
                self.rows[name] = Row(name, each["kind"], each["unit"], "not at head", "not in the listing of head")


def why_not_listed(name: str, broken: dict[str, str]) -> str:
    """Why base does not have a benchmark, given the modules of the suite that it cannot load."""
    for module, message in broken.items():
        if module in WHOLE or name.startswith(f"{module}."):
            return f"{module} cannot be loaded: {message}"
    return "not in the listing of base"
