"""``biases ci``: its arguments, and what it runs, writes and shows."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

from biases._checks import fail
from biases._exit_codes import INTERRUPTED, USAGE
from biases._files import writable_folder
from biases.bench.compare.command import compared
from biases.bench.compare.revisions import Repository
from biases.checking.command import add_annotations, checked, print_annotations
from biases.ci.outcome import NOT_COMPARED, REPORTS, Outcome
from biases.ci.plan import CONFIG, TABLE, Plan, plan_of
from biases.testing.result import Result, exit_code

NOT_RUN = (ValueError, OSError, ModuleNotFoundError)
"""What keeps a part from being run, and is no fault of this package."""
_PROMISE = "What is to be checked can be imported, and takes the traits and options that are given."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``biases ci``."""
    what = f"arguments of `biases check`, one check a line; may be repeated (default: the list check of {TABLE})"
    parser.add_argument("--check", action="append", default=[], metavar="LINES", help=what)
    what = f"the revision that the working tree is compared with (default: base of {TABLE}; without one, nothing is)"
    parser.add_argument("--base", metavar="REV", help=what)
    what = f"options of `biases compare`, in one text (default: compare of {TABLE})"
    parser.add_argument("--compare", metavar="OPTIONS", help=what)
    parser.add_argument("--config", metavar="FILE", help=f"TOML with {TABLE} (default: {CONFIG}, if there is one)")
    what = "for junit.xml, results.sarif, summary.md and comparison.json (default: %(default)s)"
    parser.add_argument("--out", default="biases-report", metavar="DIR", help=what)
    add_annotations(parser)


def run(options: argparse.Namespace) -> int:
    """``biases ci``: returns the exit code, of the parts the gravest: 130, 1, 2, 3 or 0, in this order.

    A part that fails or cannot be run does not keep the others from being run, and what was found until an interruption
    or an error of this package is shown and written.

    Raises:
        ValueError: arguments or a table that make no plan, before anything is run.
        OSError: the reports cannot be written, or those of an earlier run not be removed.
    """
    folder = Path(options.out)
    # Those of an earlier run would be taken for what this one found, also where it is refused.
    for name in REPORTS:
        with suppress(NotADirectoryError):
            (folder / name).unlink(missing_ok=True)
    plan = plan_of(options)
    writable_folder("--out", folder)
    outcome = Outcome(plan.base)
    try:
        _find_base(outcome)
        _check(plan, outcome, options.extra)
        _compare(plan, outcome, folder, options.extra)
    except KeyboardInterrupt:
        outcome.codes.append(INTERRUPTED)
    except Exception:
        outcome.codes.append(USAGE)
        raise
    finally:
        _report(outcome, folder, options)
    return outcome.exit_code


def _report(outcome: Outcome, folder: Path, options: argparse.Namespace) -> None:
    """What is shown, what is written and what the job gets: none is lost with another."""
    with ExitStack() as reports:
        reports.callback(outcome.append_to_job)
        reports.callback(outcome.write, folder)
        _show(outcome, options.json)
        if options.annotations:
            print_annotations(outcome.annotations(), options.json)


def _check(plan: Plan, outcome: Outcome, extra: str) -> None:
    from biases.checking.run import locate

    for line, options in plan.checks.items():
        try:
            places = locate(options.targets)
            results, interrupted = checked(options)
        except NOT_RUN as error:
            outcome.codes.append(USAGE)
            outcome.results.append(Result(line, "can-be-checked", _PROMISE, "error", message=_why(error, extra)))
            continue
        outcome.codes.append(INTERRUPTED if interrupted else exit_code(results))
        before = {result.subject for result in outcome.results}
        for result in results:
            # One subject may be checked twice, as in two dtypes.
            name = f"{result.subject} ({line})" if result.subject in before else result.subject
            outcome.results.append(replace(result, subject=name))
            if result.subject in places:
                outcome.locations[name] = places[result.subject]
        if interrupted:
            raise KeyboardInterrupt


def _find_base(outcome: Outcome) -> None:
    """A base that there is not is told before the battery takes its time."""
    if outcome.base is None:
        return
    try:
        if not outcome.base.strip("0"):
            zeros = f"{outcome.base!r}, which stands for what was before the first push of a branch"
            fail("--base", "a revision", zeros)
        Repository().resolve(outcome.base)
    except NOT_RUN as error:
        outcome.refused = str(error)
        outcome.codes.append(USAGE)
        print(f"comparison with {outcome.base}: {outcome.refused}", file=sys.stderr, flush=True)


def _compare(plan: Plan, outcome: Outcome, folder: Path, extra: str) -> None:
    if plan.base is None or outcome.refused:
        return
    try:
        outcome.comparison = compared(plan.base, None, plan.compare, folder)
    except NOT_RUN as error:
        outcome.refused = _why(error, extra)
        outcome.codes.append(USAGE)
    else:
        outcome.codes.append(INTERRUPTED if outcome.comparison.interrupted else outcome.comparison.exit_code)


def _why(error: Exception, extra: str) -> str:
    """``extra``: what has the packages that may be missing."""
    needed = f"; pip install 'attention-biases[{extra}]'" if isinstance(error, ModuleNotFoundError) else ""
    return f"{error}{needed}"


def _show(outcome: Outcome, as_json: bool) -> None:
    from biases.bench.compare.render import show as show_comparison
    from biases.checking.show import show as show_results

    if as_json:
        print(json.dumps(outcome.as_dict(), indent=1))
        return
    if outcome.results:
        show_results(outcome.results)
    if outcome.comparison is not None:
        show_comparison(outcome.comparison)
    if outcome.refused:
        print(f"comparison with {outcome.base}: {outcome.refused}")
    if outcome.base is None:
        print(NOT_COMPARED)
