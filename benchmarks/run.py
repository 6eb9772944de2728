"""Run the asv suites in this environment, then count what was measured.

    python -m benchmarks.run                            the quick selection, as `make bench`
    python -m benchmarks.run --full                     every benchmark
    python -m benchmarks.run -b 'operators.Cpu.*swat'   those that match, as `asv run -b`

asv's exit code does not tell a run that measured nothing from one that went well, so the saved results are read again.
Exit code 0: everything selected was measured, or skipped for want of a device; 1: something failed, wrong results
included; 2: bad usage, no git checkout, or asv cannot be run; 3: nothing was measured; 130: interrupted, with what was
measured saved.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from asv.machine import MachineCollection

from benchmarks.asv_config import asv_command, write_config
from benchmarks.counting import Counted, count, read_results
from benchmarks.machine import asv_machine
from biases._files import write_atomically
from biases.bench import facts

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "asv"
SKIPPED = re.compile(r"asv: skipped: NotImplementedError\((['\"])(.*?)\1\)")
# Rows of asv's tables that hold nothing, and what it says before a reason; these are counted.
NOT_SHOWN = re.compile(r"\bn/a *$|For parameters: ")

INTERRUPTED = 130
PATIENCE = 60.0  # seconds for asv to save what it has, once it is interrupted

# One of each kind of benchmark, at small sizes.
QUICK = (
    r"^operators\.Cpu\..*\('(ega-token|alibi-symmetric|swat|retention)', 1024, 'float32', .*backward'\)",
    r"^operators\.Cpu\..*\('manhattan-decomposed', 1024, 'float32', 'cpu', 'forward'\)",
    r"^operators\.Cpu\..*\('ega-token', 1024, 'bfloat16', 'cpu', 'forward'\)",
    r"^operators\.(Cuda|Memory|Kernels)\..*\('(ega-token|swat)', (1024|4096), 'bfloat16', .*backward'\)",
    r"^operators\.Counts\..*\('(ega-token|swat)', 1024, .*backward'\)",
    r"^layers\.Cpu\..*\('(ega-token|manhattan-decomposed)', \d+, 'float32', .*, 'forward'\)",
    r"^layers\.Cuda\..*\('(ega-token|manhattan-decomposed)', .*, 'forward'\)",
    r"^layers\.(Counts|Compiled|Kernels)\..*\('ega-token', .*, 'forward'\)",
    r"^models\.(Cpu|Cuda|Counts)\..*\('swin-digits', .*, 'forward'\)",
    r"^training\.(Cpu|Cuda|Counts)\..*\('swin-digits', ",
    r"^battery\.Layers\..*\('alibi'\)",
    r"^battery\.Properties\..*\('(future-independence|bfloat16-budget)'\)",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module."""
    try:
        return _measure(_parser().parse_args(arguments))
    except KeyboardInterrupt:
        print("benchmarks.run: interrupted", file=sys.stderr)
        return INTERRUPTED


def _measure(options: argparse.Namespace) -> int:
    commit = _commit()
    if commit is None:
        print("benchmarks.run: expected a git checkout, whose revision names the results, got none", file=sys.stderr)
        return 2
    patterns = options.bench or ([] if options.full else list(QUICK))
    found, begin = facts(), time.time()
    machine = asv_machine(found)
    try:
        # `asv machine` would keep only what differs from its own guesses.
        MachineCollection.save(machine["machine"], machine)
    except OSError as error:
        print(f"benchmarks.run: {MachineCollection.get_machine_file_path()}: {error}", file=sys.stderr)
        return 2
    results = options.results.resolve()
    with tempfile.TemporaryDirectory() as folder:
        # The revision that is checked out is the branch: one that is detached, as in CI, may have no other.
        config = write_config(ROOT, Path(folder), branches=["HEAD"], results_dir=str(results))
        chosen = [flag for pattern in patterns for flag in ("--bench", pattern)]
        # A process forked from one that has imported the suites starts at once, but cannot use CUDA.
        method = "spawn" if found["cuda_device"] else "forkserver"
        command = asv_command(config, "run", "--environment", "checkout:same", "--set-commit-hash", commit)
        command += ["--machine", machine["machine"], "--launch-method", method]
        command += ["--show-stderr", "--record-samples", "--no-pull", *chosen, *_attributes(options)]
        code, reasons = _run(command)
    if code not in (0, 2, INTERRUPTED):
        print(f"benchmarks.run: asv ended with code {code}, nothing was measured", file=sys.stderr)
        return 3
    counted = count(*read_results(results, machine["machine"], commit), patterns, since=begin)
    interrupted = code == INTERRUPTED
    summary = _summary(commit, counted, reasons, found, patterns, time.time() - begin, interrupted)
    path = results.with_name(f"{results.name}-runs") / f"{machine['machine']}-{commit[:8]}.json"
    write_atomically(path, (json.dumps(summary, indent=2) + "\n").encode())
    _show(counted, summary, results)
    return INTERRUPTED if interrupted else counted.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description="Run the asv suites, and count.")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--full", action="store_true", help="every benchmark; hours")
    what = "those that match name(parameters)"
    which.add_argument("-b", "--bench", action="append", type=_pattern, metavar="REGEX", help=what)
    parser.add_argument("--rounds", type=int, help="of each time; 1 unless --full")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="where asv keeps its results")
    return parser


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"expected a regular expression, got {text!r} ({error})") from None
    return text


def _attributes(options: argparse.Namespace) -> list[str]:
    rounds = options.rounds or (None if options.full else 1)
    return [] if rounds is None else ["--attribute", f"rounds={rounds}"]


def _commit() -> str | None:
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def _run(command: Sequence[str]) -> tuple[int, Counter[str]]:
    """Run asv, showing what it measures; its exit code, and why benchmarks were skipped, with how many. Ctrl-C is
    handed on to it, and what it still says is not shown."""
    reasons: Counter[str] = Counter()
    with subprocess.Popen(
        command,
        cwd=ROOT,  # where asv finds its plugin
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        bufsize=1,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                reason = SKIPPED.search(line)
                if reason:
                    reasons[reason[2]] += 1
                elif not NOT_SHOWN.search(line):
                    print(line, end="", flush=True)
        except KeyboardInterrupt:
            print("\ninterrupted: saving what was measured", flush=True)
            _interrupt(process)
            return INTERRUPTED, reasons
    return process.returncode, reasons


def _interrupt(process: subprocess.Popen[str]) -> None:
    """As Ctrl-C does; a second one does not cut short what follows from the first."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
    finally:
        signal.signal(signal.SIGINT, before)


def _summary(
    commit: str,
    counted: Counted,
    reasons: Counter[str],
    found: Mapping[str, Any],
    patterns: Sequence[str],
    seconds: float,
    interrupted: bool,
) -> dict[str, Any]:
    """The counts, with what asv does not record."""
    return {
        "schema": 1,
        "commit": commit,
        "machine": dict(found),
        "selected": list(patterns) or "all",
        "complete": not interrupted,
        "measured": counted.measured,
        "skipped": len(counted.skipped),
        "reasons": dict(reasons),
        "failed": list(counted.failed),
        "never_run": list(counted.missing),
        "seed": 0,
        "seconds": round(seconds, 1),
    }


def _show(counted: Counted, summary: Mapping[str, Any], results: Path) -> None:
    why = ", ".join(f"{number} {reason}" for reason, number in summary["reasons"].items())
    never = f", {len(counted.missing)} never run" if counted.missing else ""
    print(f"{counted.measured} measured, {len(counted.skipped)} skipped{f' ({why})' if why else ''}, ", end="")
    print(f"{len(counted.failed)} failed{never}; {summary['seconds']:.0f} s; saved under {os.path.relpath(results)}")
    for name in counted.failed:
        print(f"  failed: {name}")
    for name in counted.missing if summary["complete"] else ():
        print(f"  never run: {name}")
    if not summary["complete"]:
        print("  interrupted")
    if str(summary["machine"]["git_revision"]).endswith("-dirty"):
        print("  tracked files differ from the revision that these results are saved under")
    if not counted.measured:
        print("  nothing was measured")


if __name__ == "__main__":
    sys.exit(main())
