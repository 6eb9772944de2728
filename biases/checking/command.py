"""``biases check``: its arguments, and what it writes and shows."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import biases
from biases._exit_codes import INTERRUPTED
from biases._files import writable_file
from biases._signals import terminated_as_interrupted
from biases.testing.annotations import FORMS
from biases.testing.result import Result

_PROMISE = "The check comes to its end."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is checked, and how."""
    parser.add_argument(
        "targets", nargs="+", metavar="TARGET", help="a name of the zoo, `all` of it, `peers`, or module:factory"
    )
    what = "the plain function that module:factory is: operator, encoding, decoder, gate, bias, slopes or mask"
    parser.add_argument("--as", dest="kind", metavar="KIND", help=what)
    parser.add_argument(
        "--widths", action="append", metavar="DIM:HEADS", help="that it can be built with; may be repeated"
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="argument of module:factory; may be repeated",
    )
    parser.add_argument(
        "--trait",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="what module:factory promises, such as causal=true, mask=boolean, decay=linear,past,logits,alibi",
    )
    parser.add_argument("--property", action="append", metavar="P", help="only this property; may be repeated")
    parser.add_argument("--max-examples", type=int, default=25, metavar="N", help="inputs each (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the search (default: %(default)s)")
    parser.add_argument("--device", default="cpu", metavar="D", help="where it runs (default: %(default)s)")
    parser.add_argument("--dtype", metavar="T", help="of the checks of behaviour (default: float64 where it is taken)")
    parser.add_argument("--slow", action="store_true", help="check also that compiled and exported it is the same")
    parser.add_argument(
        "--deadline", type=float, default=30.0, metavar="SECONDS", help="for each property (default: %(default)s)"
    )
    parser.add_argument("--known-failures", metavar="FILE", help="TOML: a table a subject, property = reason")


def add_reports(parser: argparse.ArgumentParser) -> None:
    """What is written beside the table."""
    parser.add_argument("--junit", metavar="FILE", help="also write JUnit XML")
    parser.add_argument("--markdown", metavar="FILE", help="also write a summary in Markdown")
    parser.add_argument("--sarif", metavar="FILE", help="also write SARIF 2.1.0, for code scanning")
    add_annotations(parser)


def add_annotations(parser: argparse.ArgumentParser) -> None:
    """``--annotations``."""
    what = "also print each failure as an annotation of its line, as the CI system reads them: github"
    parser.add_argument("--annotations", choices=FORMS, metavar="CI", help=what)


def print_annotations(lines: Iterable[str], as_json: bool) -> None:
    """Runners read both streams; with ``--json``, standard output is for the reader of that."""
    for line in lines:
        print(line, file=sys.stderr if as_json else sys.stdout, flush=True)


def checked(options: argparse.Namespace) -> tuple[list[Result], bool]:
    """The results of what :func:`add_arguments` was given, and whether it was interrupted, in which case the last
    result is an error that says so.

    Raises:
        ValueError: unusable targets, traits or known failures, before anything is checked.
    """
    from biases.checking.run import check_all
    from biases.testing.targets import parse_options, parse_widths, read_known_failures

    results: list[Result] = []
    try:
        with terminated_as_interrupted():
            check_all(
                options.targets,
                traits=options.trait,
                known_failures=read_known_failures(options.known_failures) if options.known_failures else None,
                properties=options.property,
                max_examples=options.max_examples,
                seed=options.seed,
                kind=options.kind,
                device=options.device,
                dtype=options.dtype,
                slow=options.slow,
                deadline=options.deadline,
                widths=parse_widths(options.widths) if options.widths else None,
                options=parse_options(options.option),
                found=results.append,
            )
    except KeyboardInterrupt:
        where = results[-1].subject if results else options.targets[0]
        why = "interrupted: what is not listed was not checked"
        return [*results, Result(where, "interrupted", _PROMISE, "error", message=why)], True
    return results, False


def document(options: argparse.Namespace, results: Sequence[Result]) -> dict[str, Any]:
    """What ``--json`` prints: the results, and with what, on what and when they were found."""
    from importlib.metadata import version

    from biases.bench import facts
    from biases.testing.result import as_document

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    names = vars(parser.parse_args(["TARGET"]))
    return {
        **as_document(results),
        "configuration": {name: getattr(options, name) for name in names},
        "versions": {"attention-biases": biases.__version__, "hypothesis": version("hypothesis")},
        "machine": facts(),
    }


def run(options: argparse.Namespace) -> int:
    """``biases check TARGET...``: returns the exit code. What was found until an interruption is shown and written.

    Raises:
        ValueError: what :func:`checked` refuses, or a file that cannot be written, before anything is checked.
        OSError: a report can no longer be written; the others are.
    """
    from biases.checking.run import locate
    from biases.checking.show import show
    from biases.testing.annotations import github
    from biases.testing.junit import write_junit
    from biases.testing.markdown import write_markdown
    from biases.testing.result import exit_code
    from biases.testing.sarif import write_sarif

    for name in ("junit", "markdown", "sarif"):
        if getattr(options, name):
            writable_file(f"--{name}", getattr(options, name))
    results, interrupted = checked(options)
    unfinished = ["interrupted"] if interrupted else []
    locations = locate(options.targets) if options.sarif or options.annotations else {}
    # Neither what is shown nor a report is lost with another.
    with ExitStack() as reports:
        if options.junit:
            reports.callback(write_junit, results, options.junit)
        if options.markdown:
            reports.callback(write_markdown, results, options.markdown)
        if options.sarif:
            version = biases.__version__
            reports.callback(write_sarif, results, options.sarif, locations, version=version, unfinished=unfinished)
        if options.json:
            print(json.dumps(document(options, results), indent=1))
        else:
            show(results)
        if options.annotations:
            print_annotations(github(results, locations), options.json)
    return INTERRUPTED if interrupted else exit_code(results)
