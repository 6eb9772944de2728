"""``biases compare``: its arguments, and what it writes and shows."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from biases._exit_codes import INTERRUPTED
from biases._files import writable_file
from biases.bench.compare.options import Options
from biases.bench.compare.results import Comparison
from biases.bench.compare.run import compare

# Those of Options that are arguments of the same name.
NAMES = (
    *("suite", "bench", "deterministic_only", "threshold", "rounds", "seconds", "tolerance", "seed", "python"),
    "prepare",
)


def add_revisions(parser: argparse.ArgumentParser) -> None:
    """What is compared."""
    parser.add_argument("base", metavar="BASE", help="a revision")
    parser.add_argument("head", metavar="HEAD", nargs="?", help="a revision (default: the working tree as it is)")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How it is compared."""
    parser.add_argument("--suite", metavar="DIR", help="asv-style suite, in HEAD (default: as asv.conf.json says)")
    parser.add_argument("--bench", metavar="REGEX", help="only benchmarks whose name it is found in")
    what = "only bytes, counts and other fixed quantities, which need no quiet machine"
    parser.add_argument("--deterministic-only", action="store_true", help=what)
    what = "ratio that matters (default: %(default)s)"
    parser.add_argument("--threshold", type=float, default=1.1, metavar="X", help=what)
    parser.add_argument("--rounds", type=int, metavar="N", help="for each benchmark, at most (default: 100)")
    what = "for each benchmark, beyond the least rounds (default: %(default)s)"
    parser.add_argument("--seconds", type=float, default=5.0, metavar="S", help=what)
    what = "relative increase of a deterministic quantity that passes (default: 0.01 of bytes, 0 of anything else)"
    parser.add_argument("--tolerance", type=float, metavar="X", help=what)
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the order (default: %(default)s)")
    parser.add_argument("--python", metavar="FILE", help="interpreter to measure with (default: this one)")
    parser.add_argument("--prepare", metavar="COMMAND", help="run it in both trees first, as to build in place")


def add_reports(parser: argparse.ArgumentParser) -> None:
    """What is written beside the table."""
    parser.add_argument("--markdown", metavar="FILE", help="also write a table in Markdown")
    parser.add_argument("--out", metavar="DIR", help="write comparison.json there after every benchmark")


def options_of(options: argparse.Namespace, out: str | os.PathLike[str] | None = None) -> Options:
    """What :func:`add_arguments` was given.

    Args:
        options: parsed.
        out: folder for ``comparison.json``, if any.

    Raises:
        ValueError: values that cannot be.
    """
    return Options(**{name: getattr(options, name) for name in NAMES}, out=out)


def compared(
    base: str, head: str | None, options: argparse.Namespace, out: str | os.PathLike[str] | None
) -> Comparison:
    """The comparison of two revisions; progress goes to standard error.

    Args:
        base: a revision.
        head: another one; ``None`` = the working tree as it is.
        options: what :func:`add_arguments` was given.
        out: folder for ``comparison.json``, if any.

    Raises:
        ValueError: as :func:`biases.bench.compare.compare` does.
    """

    def progress(name: str, done: int, total: int) -> None:
        print(f"{done + 1}/{total} {name}", file=sys.stderr, flush=True)

    return compare(base, head, options=options_of(options, out), progress=progress)


def run(options: argparse.Namespace) -> int:
    """``biases compare BASE [HEAD]``: returns the exit code."""
    from biases.bench.compare.render import markdown, show

    if options.markdown:
        writable_file("--markdown", options.markdown)
    comparison = compared(options.base, options.head, options, options.out)
    try:
        if options.json:
            print(json.dumps(comparison.as_dict(), indent=1))
        else:
            show(comparison)
    finally:
        # Neither what is shown nor what is written is lost with the other.
        if options.markdown:
            Path(options.markdown).write_text(markdown(comparison), encoding="utf-8")
    return INTERRUPTED if comparison.interrupted else comparison.exit_code
