"""``biases ci``: its arguments, and what it runs, writes and shows."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from biases._exit_codes import INTERRUPTED, USAGE
from biases.bench.compare.command import compared
from biases.bench.compare.options import writable_folder
from biases.checking.command import add_annotations, checked, print_annotations
from biases.ci.outcome import Outcome
from biases.ci.plan import CONFIG, TABLE, Plan, plan_of
from biases.testing.result import Result, exit_code

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

    A part that fails or cannot be run does not keep the others from being run.

    Raises:
        ValueError: arguments or a table that make no plan, before anything is run.
        OSError: the reports cannot be written.
    """
    plan = plan_of(options)
    folder = Path(options.out)
    writable_folder("--out", folder)
    # That of an earlier run would be taken for one of this.
    (folder / "comparison.json").unlink(missing_ok=True)
    outcome = Outcome(plan.base)
    try:
        _check(plan, outcome)
        _compare(plan, outcome, folder)
    except KeyboardInterrupt:
        outcome.codes.append(INTERRUPTED)
    outcome.write(folder)
    outcome.append_to_job()
    _show(outcome, options.json)
    if options.annotations:
        print_annotations(outcome.annotations(), options.json)
    return outcome.exit_code


def _check(plan: Plan, outcome: Outcome) -> None:
    from biases.checking.run import locate

    for line, options in plan.checks.items():
        try:
            results = checked(options)
            places = locate(options.targets)
        except ValueError as error:
            outcome.codes.append(USAGE)
            outcome.results.append(Result(line, "can-be-checked", _PROMISE, "error", message=str(error)))
            continue
        outcome.codes.append(exit_code(results))
        before = {result.subject for result in outcome.results}
        for result in results:
            # One subject may be checked twice, as in two dtypes.
            name = f"{result.subject} ({line})" if result.subject in before else result.subject
            outcome.results.append(replace(result, subject=name))
            if result.subject in places:
                outcome.locations[name] = places[result.subject]


def _compare(plan: Plan, outcome: Outcome, folder: Path) -> None:
    if plan.base is None:
        return
    try:
        outcome.comparison = compared(plan.base, None, plan.compare, folder)
    except ValueError as error:
        outcome.refused = str(error)
        outcome.codes.append(USAGE)
    else:
        outcome.codes.append(INTERRUPTED if outcome.comparison.interrupted else outcome.comparison.exit_code)


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
