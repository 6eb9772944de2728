"""Measure older commits of main on this machine, with the suites as they are here.

    python -m benchmarks.history 10                 the ten newest that changed biases/, the newest first
    python -m benchmarks.history 10 -- --full       with options of `python -m benchmarks.run`

Each commit is checked out into a temporary clone whose `benchmarks/` is replaced by this one's, and measured there by
`python -m benchmarks.run`; a commit that has results of this machine is not measured again, so that the same command
goes on where it was stopped. What an older commit does not have, or gets wrong, fails there, is told, and stays a gap
in the history. It ends at the first commit where nothing could be measured, as those before it are older still.

Times of different hours are compared: leave the machine alone meanwhile, and decide about a change with `biases
compare`. Exit code 0: all that the commits have was measured; 1: some of it failed; 2: bad usage, or no such branch;
3: nothing was measured, now or before; 130: interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.asv_results import BENCHMARKS_FILE
from benchmarks.counting import environment_name
from benchmarks.machine import machine_name
from biases._files import write_atomically
from biases.bench import facts

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "asv"
INTERRUPTED = 130
FAILED, NOTHING = 1, 3
MEASURED_FROM = "biases"
"""What a commit has to change for its times to change."""


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    end = words.index("--") if "--" in words else len(words)
    options, of_run = _parser().parse_args(words[:end]), words[end + 1 :]
    try:
        commits = select(ROOT, options.branch, options.number)
    except ValueError as error:
        print(f"benchmarks.history: {error}", file=sys.stderr)
        return 2
    results, worst, measured = options.results.resolve(), 0, 0
    machine = machine_name(facts())
    for number, commit in enumerate(commits, 1):
        name = f"{commit[:8]} ({number} of {len(commits)})"
        if (results / machine / f"{commit[:8]}-{environment_name()}.json").is_file():
            print(f"{name}: has results", flush=True)
            measured += 1
            continue
        print(f"{name}: measuring", flush=True)
        code = measure(ROOT, commit, results, of_run)
        if code not in (0, FAILED, NOTHING):
            return code
        if code == NOTHING:
            print(f"{name}: nothing could be measured with these suites; the history ends before it")
            break
        worst, measured = max(worst, code), measured + 1
    return worst if measured else NOTHING


def select(root: Path, branch: str, number: int) -> list[str]:
    """The newest commits of the branch's first-parent history that changed the package, newest first.

    Raises:
        ValueError: no such branch.
    """
    command = ["git", "rev-list", "--first-parent", f"--max-count={number}", "--end-of-options", branch]
    done = subprocess.run([*command, "--", MEASURED_FROM], cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"--branch: expected a branch of {root}, got {branch!r}: {done.stderr.strip()}")
    return done.stdout.split()


def measure(root: Path, commit: str, results: Path, options: Sequence[str] = ()) -> int:
    """Measure one commit with the suites of ``root``; the exit code of :mod:`benchmarks.run`, or 3 where what it
    measured is not to be kept.

    Args:
        root: of the checkout whose suites these are.
        commit: of its repository.
        results: asv's folder of results, where those of the commit go if anything was measured to the end.
        options: of :mod:`benchmarks.run`.
    """
    with tempfile.TemporaryDirectory() as folder:
        tree, saved = Path(folder, "tree"), Path(folder, "asv")
        _check_out(root, commit, tree)
        paths = os.pathsep.join([str(tree), *_paths()])
        # asv takes the first one from what it runs, and gives it the second one instead.
        environment = {**os.environ, "PYTHONPATH": paths, "ASV_PYTHONPATH": paths}
        command = [sys.executable, "-m", "benchmarks.run", "--results", str(saved), *options]
        with subprocess.Popen(command, cwd=tree, env=environment) as process:
            try:
                code = process.wait()
            except KeyboardInterrupt:
                # The run was told so too, and ends by itself.
                process.wait()
                return INTERRUPTED
        summaries = list(saved.with_name("asv-runs").glob("*.json"))
        if code not in (0, FAILED) or len(summaries) != 1:
            # Python's own exit code 1 leaves no counts behind.
            return code if code not in (0, FAILED) else NOTHING
        summary = _json(summaries[0])
        if not summary["measured"]:
            return NOTHING
        summary["suite"] = _suite(root)
        _keep(saved, results)
        path = results.with_name(f"{results.name}-runs") / summaries[0].name
        write_atomically(path, (json.dumps(summary, indent=2) + "\n").encode())
    return code


def _check_out(root: Path, commit: str, tree: Path) -> None:
    """The commit, with the suites and asv's configuration of ``root``."""
    for command in (
        ["git", "clone", "--quiet", "--shared", "--no-checkout", str(root), str(tree)],
        ["git", "-C", str(tree), "checkout", "--quiet", "--detach", commit],
    ):
        subprocess.run(command, check=True)
    shutil.rmtree(tree / "benchmarks", ignore_errors=True)
    shutil.copytree(root / "benchmarks", tree / "benchmarks", ignore=shutil.ignore_patterns("results", "__pycache__"))
    shutil.copy(root / "asv.conf.json", tree)


def _suite(root: Path) -> str:
    """The revision that the suites of ``root`` are of; results that were added since do not change them."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    changed = git("status", "--porcelain", "--", "benchmarks", "asv.conf.json", ":(exclude)benchmarks/results")
    return git("rev-parse", "HEAD") + ("-dirty" if changed else "")


def _keep(saved: Path, results: Path) -> None:
    """Put what was measured among the other results. asv's list of benchmarks there grows, but keeps what an older
    commit does not have."""
    for path in sorted(saved.glob("*/*.json")):
        write_atomically(results / path.relative_to(saved), path.read_bytes())
    there, ours = results / BENCHMARKS_FILE, _json(saved / BENCHMARKS_FILE)
    listed = _json(there) if there.is_file() else {}
    for name, benchmark in ours.items():
        if name in listed and isinstance(benchmark, dict):
            before = listed[name]["params"]
            if len(before) == len(benchmark["params"]):
                axes = zip(before, benchmark["params"], strict=True)
                benchmark["params"] = [list(dict.fromkeys([*old, *new])) for old, new in axes]
        listed[name] = benchmark
    write_atomically(there, (json.dumps(listed, indent=4, sort_keys=True) + "\n").encode())


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _paths() -> list[str]:
    return list(filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.history",
        description="Measure older commits with the suites as they are here.",
        epilog="What follows -- is handed on to python -m benchmarks.run.",
    )
    parser.add_argument("number", type=_positive, help="of commits that changed biases/, from the newest one")
    parser.add_argument("--branch", default="main", help="whose commits (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="asv's (default: %(default)s)")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
