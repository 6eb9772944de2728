"""``biases claims``: its arguments, and what it prints."""

from __future__ import annotations

import argparse
import json

from biases._exit_codes import FAILED, NOTHING, OK
from biases.claims.analyses import reading
from biases.claims.ledger import LABELS, NOT_REPRODUCIBLE, PAPERS, Row, claims_of, get, run_claims, summary


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``biases claims``."""
    parser.add_argument("ids", nargs="*", metavar="ID", help="show these in full (default: a table of all)")
    parser.add_argument(
        "--verdict",
        choices=(*LABELS, NOT_REPRODUCIBLE),
        metavar="V",
        help=f"only these: {', '.join(LABELS)}; with the third also the fourth",
    )
    parser.add_argument("--paper", choices=PAPERS, metavar="P", help="only those of this arXiv identifier")
    what = "analyses <study>-<size>.json, as `biases stats RUN --json` prints them (default: those of the package)"
    parser.add_argument("--results", metavar="DIR", help=what)


def run(options: argparse.Namespace) -> int:
    """``biases claims [ID...]``: returns the exit code: 1 where a test could not be run, 3 where nothing is shown.

    What a test says of a paper is no failure.

    Raises:
        ValueError: unknown id, or a folder of results that is not there.
    """
    entries = [get(id) for id in options.ids] or claims_of()
    ids = [entry.id for entry in entries if options.paper in (None, entry.paper)]
    with reading(options.results):
        rows = _progress(ids)
    # A test that could not be run has no verdict that could be asked for, and is not passed over.
    shown = [row for row in rows if options.verdict in (None, row.status, row.label) or row.evidence is None]
    if options.json:
        document = {"schema": 1, "claims": [row.as_dict() for row in shown], "summary": summary(shown)}
        print(json.dumps(document, indent=1, allow_nan=False))
    else:
        from biases.claims.show import show_all, show_one

        if options.ids:
            for row in shown:
                show_one(row)
        else:
            show_all(shown)
    if any(row.evidence is None for row in rows):
        return FAILED
    return OK if shown else NOTHING


def _progress(ids: list[str]) -> list[Row]:
    """The rows of ``ids``, with a bar on standard error while they are made."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    rows: list[Row] = []
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("claims", total=len(ids))
        for row in run_claims(ids):
            rows.append(row)
            bars.update(task, advance=1)
    return rows
