"""The piece ``tests`` of ``python -m benchmarks.gpu``: ``pytest -m gpu``, a few cases at a time."""

from __future__ import annotations

import importlib.util
import itertools
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.gpu_plan import ROOT, Cells, Outcome, Plan

NEEDED_BY_TESTS = ("pytest", "hypothesis")
# Cases of a test function in one process. It may take a third of the time or LEAST_SECONDS, whichever is more, as
# kernels are compiled first, but go on for no more than GRACE seconds after the deadline.
CASES_TOGETHER, LEAST_SECONDS, GRACE = 2, 240.0, 30.0


def tests(plan: Plan) -> Cells:
    """The tests that need a GPU, a cell for each function of them, or for every few of its cases: what had finished
    when the time was up is not run again."""
    missing = [name for name in NEEDED_BY_TESTS if importlib.util.find_spec(name) is None]
    if missing:
        yield "collection", lambda: {"status": "skipped", "message": f"{' and '.join(missing)} is not installed"}
        return
    longest = max(LEAST_SECONDS, plan.left / 3)
    files = [path for folder in ("properties", "tests") for path in sorted((ROOT / folder).glob("test_*.py"))]
    found = _collected([path for path in files if "mark.gpu" in path.read_text()], plan, longest)
    cases: list[str] = found.pop("cases", [])
    yield "collection", lambda: found
    for function, group in itertools.groupby(cases, key=lambda case: case.partition("[")[0]):
        of_function = list(group)
        parts = [of_function[n : n + CASES_TOGETHER] for n in range(0, len(of_function), CASES_TOGETHER)]
        for n, part in enumerate(parts, 1):
            yield function if len(parts) == 1 else f"{function} {n}/{len(parts)}", partial(_pytest, part, plan, longest)


def _collected(files: list[Path], plan: Plan, longest: float) -> Outcome:
    """Names of the cases marked ``gpu`` in these files, each ``file::function[parameters]``."""
    if not files:
        return {"status": "ok"}
    done = _run_pytest(["--collect-only", "-q", *map(str, files)], plan, longest)
    if done is None:
        return {"status": "error", "message": "collecting the tests took too long"}
    cases = [line for line in done.stdout.splitlines() if "::" in line]
    if done.returncode not in (0, 5):
        return {"status": "error", "message": (done.stdout + done.stderr)[-4000:]}
    return {"status": "ok", "count": len(cases), "cases": cases}


def _pytest(cases: list[str], plan: Plan, longest: float) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        done = _run_pytest(["-q", f"--junitxml={report}", *cases], plan, longest)
        if done is None:
            return {"status": "error", "message": f"not finished after {longest:.0f} seconds, or when the time was up"}
        tail = (done.stdout + done.stderr)[-4000:]
        if not report.exists():
            return {"status": "error", "message": tail}
        found = ElementTree.parse(report).getroot().iter("testsuite")
        totals = [
            {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")} for suite in found
        ]
    counts = {name: sum(each[name] for each in totals) for name in ("tests", "failures", "errors", "skipped")}
    if counts["failures"] or counts["errors"] or done.returncode not in (0, 5):
        return {"status": "wrong", **counts, "message": tail}
    nothing = counts["tests"] == counts["skipped"]
    return {"status": "skipped" if nothing else "ok", **counts, "message": tail if nothing else ""}


def _run_pytest(arguments: list[str], plan: Plan, longest: float) -> subprocess.CompletedProcess[str] | None:
    """Run pytest on what is marked ``gpu``; ``None`` if it took too long."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", f"--rootdir={ROOT}"]
    # Without pytest-timeout its option in pyproject.toml is unknown, which --strict-config would not forgive.
    command += ["-o", "addopts=", *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), *sys.path]))}
    limit = min(longest, max(0.0, plan.left) + GRACE)
    try:
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return None
